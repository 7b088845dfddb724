"""Learned rates and per-step batch norm in a loop of one's own, without the engine: MAML++ by
`create_graph`, its parts from `kernels.nn`.

A task is a pair of made-up textures, each a wave of its own direction in noise. The network sees
four of each and tells new ones apart.

    python -m engine.examples.own_loop [iterations]
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from engine.examples import script  # its command line alone
from kernels.nn import LSLR, PerStepBatchNorm2d, at_step

STEPS, TASKS, SHOTS, SIDE = 3, 2, 4, 12


def textures(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [2 · SHOTS, 1, SIDE, SIDE] of two directions, twice: [2, ...] support and target."""
    angles = torch.rand(1, generator=generator) * 3.1416 + torch.tensor([0.0, 1.5708])
    angles = angles.repeat_interleave(SHOTS).repeat(2)[:, None, None]
    phase, noise = torch.rand(2, len(angles), SIDE, SIDE, generator=generator)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = column * angles.cos() + row * angles.sin()
    waves = torch.sin(1.5 * along + 6.2832 * phase[:, :1, :1]) + 4 * (noise - 0.5)
    labels = torch.arange(2).repeat_interleave(SHOTS).repeat(2)
    return waves.view(2, 2 * SHOTS, 1, SIDE, SIDE), labels.view(2, 2 * SHOTS)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False), PerStepBatchNorm2d(width, steps=STEPS), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, bias=False), PerStepBatchNorm2d(width, steps=STEPS), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 9, 2),
    )  # fmt: skip


def adapted(model: nn.Module, lslr: LSLR, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The parameters after the inner steps, as functions of the model's own and of the rates."""
    fast = dict(model.named_parameters())
    for k in range(STEPS):
        with at_step(model, k):  # the batch norm of this step
            loss = F.cross_entropy(functional_call(model, fast, (x,)), y)
        wanted = [fast[name] for name in lslr.names]
        grads = torch.autograd.grad(loss, wanted, create_graph=True)  # the second derivatives
        fast = lslr.update(fast, dict(zip(lslr.names, grads, strict=True)), k)
    return fast


def main(iterations: int) -> tuple[float, LSLR]:
    """The accuracy over the last fifth of the tasks, in percent, and the learned rates."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = network()
    norms = {n for n, m in model.named_modules() if isinstance(m, PerStepBatchNorm2d)}
    inner = {n: p for n, p in model.named_parameters() if n.rpartition(".")[0] not in norms}
    lslr = LSLR(inner, steps=STEPS, rate=0.1)  # gains and biases are the outer loop's alone
    optimizer = torch.optim.Adam([*model.parameters(), *lslr.parameters()], 5e-3)
    right = []
    for i in range(1, iterations + 1):
        losses = []
        for x, y in (textures(generator) for _ in range(TASKS)):
            fast = adapted(model, lslr, x[0], y[0])
            with at_step(model, STEPS - 1):
                output = functional_call(model, fast, (x[1],))
            losses.append(F.cross_entropy(output, y[1]))
            right.append((output.argmax(1) == y[1]).float().mean().item())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 50 == 0:
            print(f"iteration {i}: loss {loss.item():.4f}")
    last = right[-(-len(right) // 5) * -1 :]
    accuracy = 100 * sum(last) / len(last)
    print(f"the last {len(last)} tasks: {accuracy:.2f}%")
    for name, rates in zip(lslr.names, lslr.rates.T.tolist(), strict=True):
        print(f"{name:<10} " + "  ".join(f"{rate:.4f}" for rate in rates))
    return accuracy, lslr


if __name__ == "__main__":
    script.run(main, __doc__, iterations=500)
