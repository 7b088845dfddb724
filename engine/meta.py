"""The outer loop's arithmetic: the paper's schedules, Adam, and one meta-iteration from state to
state.

Each trick has one home here or in `Params`, and a neutral value that turns it off (paper §4).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine import unroll
from engine.config import Config
from engine.episodes import Episode
from engine.model import Backbone, Params
from engine.passes import Moments
from engine.workers import over_tasks


class State(NamedTuple):
    """All that training changes."""

    params: Params
    first: Params  # Adam's first moments
    second: Params  # Adam's second moments
    running: Moments  # [K or 1, S] per-step running statistics (BNRS), unbiased variance
    iteration: int  # finished outer iterations

    def to(self, device: torch.device | str) -> "State":
        groups = (type(g)(*(t.to(device) for t in g)) for g in self[:-1])
        return State(*groups, self.iteration)


class Metrics(NamedTuple):
    loss: float  # mean over tasks of the step-weighted target loss, nats
    accuracy: float  # of the target sets after the last step, 0…1
    nonfinite: str | None  # what was NaN or infinite; the state is then the one before


def init_state(cfg: Config, device: torch.device | str = "cpu") -> State:
    """The state before the first iteration; a function of `cfg.seed`."""
    model, generator = Backbone.of(cfg), torch.Generator().manual_seed(cfg.seed)
    norm_rows = cfg.steps if cfg.norm_weights == "per-step" else 1
    params = model.init(cfg.steps, norm_rows, cfg.inner_rate, generator)
    zeros = Params(*(torch.zeros_like(p) for p in params))
    shape = (cfg.steps if cfg.norm_stats == "per-step" else 1, model.stat_width)
    running = Moments(torch.zeros(shape), torch.ones(shape))
    return State(params, zeros, zeros, running, 0).to(device)


def loss_weights(epoch: int, cfg: Config) -> list[float]:
    """Weight of the target loss after each inner step (MSL, paper §4): equal at first, the last
    step's growing as the others fall to 0.03/K, and from epoch `msl_epochs` on the last step alone.
    `msl_epochs=0`: never.
    """
    steps, length = cfg.steps, cfg.msl_epochs
    if epoch >= length:
        return [0.0] * (steps - 1) + [1.0]
    floor = 0.03 / steps
    early = max(1 / steps - epoch / (steps * length), floor)
    last = min(1 / steps + epoch * (steps - 1) / (steps * length), 1 - (steps - 1) * floor)
    return [early] * (steps - 1) + [last]


def second_order(epoch: int, cfg: Config) -> bool:
    """Derivative-order annealing (DA, paper §4): first order for the first `first_order_epochs`."""
    return epoch >= cfg.first_order_epochs


def learning_rate(epoch: int, cfg: Config) -> float:
    """Cosine annealing (CA, paper §4) from `lr` to `min_lr` over all epochs; `min_lr=lr`:
    constant.
    """
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * (1 + math.cos(math.pi * epoch / cfg.epochs)) / 2


def meta_gradient(state: State, episode: Episode, cfg: Config) -> unroll.MetaGradient:
    """The outer loss and its gradient, over blocks of tasks that suit the device, summed in task
    order.
    """
    epoch = state.iteration // cfg.iterations
    tasks = len(episode.support_x)
    scale = 1 / tasks if cfg.task_reduction == "mean" else 1.0
    weights = [scale * w for w in loss_weights(epoch, cfg)]
    running = state.running if cfg.train_norm_statistics == "running" else None
    differentiate = unroll.adjoint if cfg.unroll == "adjoint" else unroll.autograd
    model, second = Backbone.of(cfg), second_order(epoch, cfg)
    parts = over_tasks(
        lambda block: differentiate(model, state.params, block, weights, second, running),
        episode,
        keeps=second,
    )
    return unroll.total(parts)


def meta_step(state: State, episode: Episode, cfg: Config) -> tuple[State, Metrics]:
    """One outer iteration: the meta-gradient over the episode's tasks, and Adam."""
    with kernels.only_kernels():
        return _meta_step(state, episode, cfg)


def _meta_step(state: State, episode: Episode, cfg: Config) -> tuple[State, Metrics]:
    meta = meta_gradient(state, episode, cfg)
    per_task = 1 if cfg.task_reduction == "mean" else len(episode.support_x)
    correct = (meta.logits.argmax(2) == episode.target_y).float().mean()
    metrics = Metrics(meta.loss.item() / per_task, correct.item(), _nonfinite(meta))
    if metrics.nonfinite:
        return state, metrics
    gradient = meta.gradient
    if cfg.rates == "fixed":
        gradient = gradient._replace(rates=torch.zeros_like(gradient.rates))
    lr = learning_rate(state.iteration // cfg.iterations, cfg)
    params, first, second = adam(state, gradient, lr, cfg.beta1, cfg.beta2, cfg.clamp)
    running = update_running(state.running, meta.rows, meta.moments, cfg.norm_momentum)
    return State(params, first, second, running, state.iteration + 1), metrics


def adam(
    state: State, gradient: Params, lr: float, beta1: float, beta2: float, clamp: float = 0.0
) -> tuple[Params, Params, Params]:
    """Adam (Kingma & Ba 2015, algorithm 1) from state to state; `clamp` bounds each entry of the
    network's gradient, not of the rates'.
    """
    update = kernels.backend("update", gradient.theta)
    bounds = Params(clamp, clamp, 0.0)
    groups = [
        update.adam(*tensors, lr, beta1, beta2, state.iteration + 1, bound)
        for *tensors, bound in zip(*state[:3], gradient, bounds, strict=True)
    ]
    return tuple(Params(*group) for group in zip(*groups, strict=True))


def update_running(
    running: Moments, rows: tuple[int, ...], moments: Moments, momentum: float
) -> Moments:
    """Exponential moving averages over an iteration's batches in the reference implementation's
    order: task by task, within a task step by step, support then target. A single shared row sees
    them all.
    """
    index = torch.tensor(rows, device=moments.mean.device).clamp(max=len(running.mean) - 1)
    result = Moments(*(m.clone() for m in running))
    for row in index.unique().tolist():
        for average, batches in zip(result, moments, strict=True):
            seen = batches[:, index == row].flatten(0, 1)  # [observations, S] in order
            age = torch.arange(len(seen) - 1, -1, -1, device=seen.device, dtype=seen.dtype)
            weight = momentum * (1 - momentum) ** age
            average[row] = average[row] * (1 - momentum) ** len(seen) + weight @ seen
    return result


def _nonfinite(meta: unroll.MetaGradient) -> str | None:
    named: dict[str, Tensor] = {"loss": meta.loss} | {
        f"gradient of {name}": tensor for name, tensor in meta.gradient._asdict().items()
    }
    finite = torch.stack([tensor.isfinite().all() for tensor in named.values()]).tolist()
    bad = [name for name, good in zip(named, finite, strict=True) if not good]
    return ", ".join(bad) or None
