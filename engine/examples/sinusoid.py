"""Regression of sine waves, the first example of the MAML paper (Finn et al. 2017, §5.1).

A task is a wave of amplitude 0.1 to 5 and phase 0 to π; the network sees K = 10 of its points on
[-5, 5] and has to give the rest. Two hidden layers of 40 ReLUs, mean squared error.

    python -m engine.examples.sinusoid [iterations]
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from engine import Episode, Learner
from engine.examples import script

POINTS, STEPS, TASKS = 10, 5, 25


def waves(tasks: int, generator: torch.Generator, targets: int = POINTS) -> Episode:
    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(tasks, *shape, 1, generator=generator)

    amplitude, phase = uniform(0.1, 5, 1), uniform(0, math.pi, 1)
    x = uniform(-5, 5, POINTS + targets)
    y = amplitude * torch.sin(x - phase)
    return Episode(x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:])


def train(iterations: int, seed: int = 0) -> tuple[Learner, float]:
    """The learner, and the mean loss of the last tenth of its training."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    learner = Learner(network, F.mse_loss, steps=STEPS, rate=0.01)
    network_own = [p for name, p in learner.named_parameters() if name != "rates"]
    # The inner rates slower than the network: at its pace they overshoot, and the loss explodes.
    groups = [{"params": network_own}, {"params": [learner.rates], "lr": 1e-5}]
    optimizer = torch.optim.Adam(groups, 1e-3)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(iterations):
        loss = learner(waves(TASKS, generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    last = losses[-(-len(losses) // 10) * -1 :]
    return learner, sum(last) / len(last)


def errors(learner: Learner, steps: int = 10, tasks: int = 600) -> list[float]:
    """Mean squared error over new waves before adapting and after each of so many steps."""
    episode = waves(tasks, torch.Generator().manual_seed(1), targets=50)
    found = [F.mse_loss(learner.module(episode.target_x), episode.target_y).item()]
    for k in range(1, steps + 1):
        found.append(F.mse_loss(learner.predict(episode, steps=k), episode.target_y).item())
    return found


def main(iterations: int) -> None:
    learner, last = train(iterations)
    print(f"loss at the end of {iterations} iterations: {last:.4f}")
    for k, error in enumerate(errors(learner)):
        print(f"after {k:>2} steps: {error:.4f}")


if __name__ == "__main__":
    script.run(main, __doc__, iterations=10_000)
