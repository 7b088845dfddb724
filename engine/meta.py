"""The outer loop's arithmetic: Adam by the schedules of a configuration, and one meta-iteration
from state to state.

Each trick has one home here or in `Params`, and a neutral value that turns it off (paper §4).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kernels
from engine import averages, schedules, unroll
from engine.config import Config
from engine.episodes import Episode, Values, count, each
from engine.methods import beside, rates
from engine.methods.loops import loop
from engine.models import buffers, network
from engine.models.interface import Model, Moments, Params
from engine.models.module import Module
from engine.runtime import ranks
from engine.runtime.replay import Replays
from engine.runtime.workers import over_blocks
from engine.scores import classes_last, ignored
from kernels.branch import Branch


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


CHECKED = ("loss", *(f"gradient of {name}" for name in Params._fields))


class Metrics(NamedTuple):
    loss: float  # mean over tasks of the step-weighted target loss, nats
    accuracy: float  # of the target sets after the last step, 0…1
    nonfinite: str | None  # what was NaN or infinite; the state is then the one before

    @classmethod
    def of(cls, measured: Sequence[float]) -> "Metrics":
        """Of the values of `measure`."""
        loss, accuracy, *finite = measured
        bad = [name for name, good in zip(CHECKED, finite, strict=True) if not good]
        return cls(loss, accuracy, ", ".join(bad) or None)


def init_state(cfg: Config, device: torch.device | str = "cpu") -> State:
    """The state before the first iteration; a function of `cfg.seed`."""
    model, generator = network(cfg), torch.Generator("cpu").manual_seed(cfg.seed)
    norm_rows = cfg.steps if cfg.norm_weights == "per-step" else 1
    params = model.init(cfg.steps, norm_rows, cfg.inner_rate, generator)
    shape = cfg.steps, cfg.inner_rate, cfg.rates == "per-parameter", cfg.adapt
    params = params._replace(
        norm=beside.begun(cfg, model, params.norm, generator),
        rates=rates.initial(model.sizes, *shape, params.theta),
    )
    zeros = Params(*(torch.zeros_like(p) for p in params))
    shape = (cfg.steps if cfg.norm_stats == "per-step" else 1, model.stat_width)
    kind = dict(dtype=params.theta.dtype, device=params.theta.device)
    running = Moments(torch.zeros(shape, **kind), torch.ones(shape, **kind))
    return State(params, zeros, zeros, running, 0).to(device)


def layout(cfg: Config) -> State:
    """The shapes and dtypes of a state, on torch's meta device: they take no memory."""
    model = network(cfg)
    norm_rows = cfg.steps if cfg.norm_weights == "per-step" else 1
    stat_rows = cfg.steps if cfg.norm_stats == "per-step" else 1
    parameters = sum(model.sizes)
    of_rates = (1, parameters) if cfg.rates == "per-parameter" else (cfg.steps, len(model.sizes))
    row = 2 * sum(model.norm_widths) + beside.width(cfg, model)
    shapes = (parameters,), (norm_rows, row), of_rates
    kind = {"dtype": torch.float32, "device": "meta"}
    params = Params(*(torch.empty(shape, **kind) for shape in shapes))
    running = torch.empty(stat_rows, model.stat_width, **kind)
    return State(params, params, params, Moments(running, running), 0)


def loss_weights(epoch: int, cfg: Config) -> list[float]:
    return schedules.msl_weights(epoch, cfg.steps, cfg.msl_epochs)


def second_order(epoch: int, cfg: Config) -> bool:
    return schedules.second_order(epoch, cfg.first_order_epochs)


def learning_rate(epoch: int, cfg: Config) -> float:
    if cfg.annealing == "halving":
        return schedules.halving(epoch, cfg.halving_epochs, cfg.lr, cfg.min_lr)
    anneal = schedules.linear if cfg.annealing == "linear" else schedules.cosine
    return anneal(epoch, cfg.epochs, cfg.lr, cfg.min_lr)


def adam_scales(lr: float, beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """lr / (1 − beta1ᵗ) and 1 / √(1 − beta2ᵗ): what Adam's step t, 1 for the first, scales its
    moments by (Kingma & Ba 2015, §2).
    """
    return lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)


class Schedule(NamedTuple):
    """What the epoch says about an iteration: numbers, or tensors that a captured one reads."""

    loss_weights: Sequence[float | Tensor]  # K, of a task; the number 0 skips that target pass
    second_order: bool
    adam: Sequence[float | Tensor]  # its scales; of gradient descent the first is the rate

    @classmethod
    def of(cls, iteration: int, cfg: Config) -> "Schedule":
        epoch = iteration // cfg.iterations
        per_task = cfg.tasks if cfg.task_reduction == "mean" else 1
        scales = lr, _ = learning_rate(epoch, cfg), 1.0
        if cfg.optimizer == "adam":
            scales = adam_scales(lr, cfg.beta1, cfg.beta2, iteration + 1)
        return cls(
            [weight / per_task for weight in loss_weights(epoch, cfg)],
            second_order(epoch, cfg),
            scales,
        )


class Rows(NamedTuple):
    """What an iteration makes of its tasks, each still by itself."""

    found: unroll.MetaGradient
    right: Tensor  # [T] the share of right answers

    def tensors(self) -> list[Tensor]:
        """Of a row a task: all that the sum needs."""
        return [self.found.loss, *self.found.gradient, *self.found.moments, self.right]

    def of(self, tensors: Sequence[Tensor]) -> "Rows":
        """Such rows of other tasks; the logits and the losses of single steps are not theirs."""
        loss, theta, norm, rates, mean, var, right = tensors
        found = self.found._replace(
            loss=loss,
            gradient=Params(theta, norm, rates),
            moments=Moments(mean, var),
            logits=None,
            per_step=(),
        )
        return Rows(found, right)


def meta_gradient(
    state: State,
    episode: Episode,
    cfg: Config,
    schedule: Schedule | None = None,
    model: Model | None = None,
) -> unroll.MetaGradient:
    """The outer loss and its gradient over the episode's tasks, summed in their order; by the
    schedule of the state's iteration and of the network of `cfg` unless others are given.
    """
    schedule = schedule or Schedule.of(state.iteration, cfg)
    return summed(task_rows(state, episode, cfg, schedule, model), cfg, model)


def task_rows(
    state: State,
    episode: Episode,
    cfg: Config,
    schedule: Schedule,
    model: Model | None = None,
    replays: Replays | None = None,
) -> Rows:
    """Of the episode's tasks, in blocks that suit the device, and by graphs if there are `replays`.

    In the child of a fork, too: there torch's own threads, if it had any, would be waited for.
    """
    running = state.running if cfg.train_norm_statistics == "running" else None
    model, (weights, second, _) = model or network(cfg), schedule
    own = loop(cfg, model)
    differentiate = own.adjoint if cfg.unroll == "adjoint" else unroll.autograd
    if replays:
        differentiate = partial(replays.call, differentiate)
    parts = over_blocks(
        lambda block: differentiate(model, state.params, block, weights, second, running),
        episode,
        model,
        second,
        single=getattr(own, "alone", False)
        or cfg.unroll == "autograd",  # which sums what it is given
        key=lambda i: (cfg.seed, state.iteration, ranks.current().share(cfg.tasks)[0] + i),
    )
    with kernels.only_kernels():
        found = unroll.together(parts)
        loss = model.criterion if isinstance(model, Module) else None
        return Rows(found, hits(found.logits, episode.target_y, loss).to(found.loss))


def summed(rows: Rows, cfg: Config, model: Model | None = None) -> unroll.MetaGradient:
    """Over the tasks in their order: the same bits whoever made which rows."""
    with kernels.only_kernels():
        total = unroll.total([rows.found])
        return total._replace(gradient=(model or network(cfg)).tied(total.gradient))


def meta_step(
    state: State,
    episode: Episode,
    cfg: Config,
    model: Model | None = None,
    replays: Replays | None = None,
) -> tuple[State, Metrics]:
    """One outer iteration: the meta-gradient over `cfg.tasks` tasks, and Adam. The episode has
    those of this rank; the rows of the others are gathered.
    """
    schedule = Schedule.of(state.iteration, cfg)
    own = task_rows(state, episode, cfg, schedule, model, replays)
    rows = own.of(ranks.current().gathered(own.tensors()))
    total = summed(rows, cfg, model)
    with kernels.only_kernels():
        metrics = Metrics.of(measure(total, rows.right, cfg).tolist())
        if not metrics.nonfinite:
            state = advance(state, total, cfg, schedule, model)
        return state, metrics


def measure(
    total: unroll.MetaGradient, right: Tensor, cfg: Config, out: Tensor | None = None
) -> Tensor:
    """Loss, accuracy, and for each of `CHECKED` 1 if it is finite, [2 + 4]; of the sum over tasks
    and the share of right answers in each [T].
    """
    loss = total.loss if cfg.task_reduction == "mean" else total.loss / len(right)
    # a network without batch norm has no values there
    values = [v if v.numel() else v.new_zeros(1) for v in (total.loss, *total.gradient)]
    largest = torch._foreach_norm(values, torch.inf)  # NaN if one is
    measured = torch.stack([loss, right.mean(), *largest], out=out)
    measured[2:].lt_(torch.inf)  # which NaN is not
    return measured


def hits(logits: Values, labels: Values, loss: Any = None) -> Tensor:  # [T]
    """The share of right answers in each task, but of labels that a loss of one's own leaves out; 0
    where these are no classes.
    """
    if isinstance(logits, list):
        tasks = zip(logits, each(labels), strict=True)
        return torch.cat([hits(_alone(answers), _alone(y), loss) for answers, y in tasks])
    tensors = isinstance(logits, Tensor) and isinstance(labels, Tensor)
    if not tensors or labels.is_floating_point() or not classes_last(logits, labels, loss, 1):
        return torch.zeros(count(labels))
    right = (logits.argmax(-1) == labels).flatten(1)
    if loss is None:
        return right.mean(1, dtype=logits.dtype)
    known = (labels != ignored(loss)).flatten(1)
    return (right & known).sum(1, dtype=logits.dtype) / known.sum(1).clamp(min=1)


def _alone(values: Values) -> Values:
    return values.unsqueeze(0) if isinstance(values, Tensor) else values


def advance(
    state: State,
    meta: unroll.MetaGradient,
    cfg: Config,
    schedule: Schedule,
    model: Model | None = None,
) -> State:
    """The state after an iteration: a step of the optimiser, and the running statistics."""
    with Branch(meta.loss.device).on() as averaged:
        skips = getattr(model, "skips", False)
        running = averages.update(state.running, meta.rows, meta.moments, cfg.norm_momentum, skips)
    gradient = learned(meta.gradient, cfg)
    if cfg.max_norm:
        gradient = within(gradient, cfg.max_norm, getattr(model, "shared_width", 0))
    if cfg.optimizer == "sgd":
        params, first, second = descend(state, gradient, schedule.adam[0], cfg.clamp)
    else:
        scales = *schedule.adam, cfg.beta1, cfg.beta2, cfg.clamp
        params, first, second = adam(state, gradient, *scales)
    params = beside.averaged(cfg, network(cfg), params, meta.gradient)
    averaged.wait()
    return State(params, first, second, running, state.iteration + 1)


def learned(gradient: Params, cfg: Config) -> Params:
    """With 0 for what the configuration does not learn: rates that are fixed, or of tensors that
    the inner loop leaves, gains, and what a method averages that is no parameter.
    """
    if cfg.rates == "fixed":
        gradient = gradient._replace(rates=torch.zeros_like(gradient.rates))
    elif cfg.adapt != "all":
        gradient = gradient._replace(rates=gradient.rates * adapted(cfg, gradient.rates))
    if cfg.norm_gains == "fixed":
        widths = network(cfg).norm_widths
        biases = buffers.biases(widths, gradient.norm.dtype, gradient.norm.device)
        rows, own = gradient.norm.split([len(biases), gradient.norm.shape[1] - len(biases)], 1)
        gradient = gradient._replace(norm=torch.cat([rows * biases, own], 1))
    return gradient._replace(norm=beside.learned_rows(cfg, network(cfg), gradient.norm))


def within(gradient: Params, most: float, shared: int = 0) -> Params:
    """Scaled such that the norm of all of it is at most so much; so many of the last columns of
    `norm` are one value in all rows.
    """
    own = gradient.norm.shape[1] - shared
    rows = gradient.norm[:, :own], gradient.norm[:1, own:]
    parts = gradient.theta, *(rows if shared else (gradient.norm,)), gradient.rates
    norms = torch.stack([torch.linalg.vector_norm(g) for g in parts])
    scale = (most / torch.linalg.vector_norm(norms)).clamp(max=1)
    return Params(*(g * scale for g in gradient))


def adapted(cfg: Config, like: Tensor) -> Tensor:  # [L] or [P]
    """1 where the inner loop changes a tensor or number, else 0."""
    per_number = cfg.rates == "per-parameter"
    return rates.adapted(network(cfg).sizes, per_number, cfg.adapt, like.dtype, like.device)


def adam(
    state: State,
    gradient: Params,
    rate: float | Tensor,
    correction: float | Tensor,
    beta1: float,
    beta2: float,
    clamp: float = 0.0,
) -> tuple[Params, Params, Params]:
    """Adam (Kingma & Ba 2015, algorithm 1) from state to state, by `adam_scales`; `clamp` bounds
    each entry of the network's gradient, not of the rates'.
    """
    update = kernels.backend("update", gradient.theta)

    def adam(*tensors: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
        return update.adam(*tensors, rate, correction, beta1, beta2, bound)

    theta, norm, rates = zip(*state[:3], gradient, strict=True)
    with Branch(gradient.theta.device).on() as small:
        rows = adam(*norm, bound=clamp), adam(*rates, bound=0.0)
    groups = adam(*theta, bound=clamp), *rows
    small.wait()
    return tuple(Params(*group) for group in zip(*groups, strict=True))


def descend(
    state: State, gradient: Params, rate: float | Tensor, clamp: float = 0.0
) -> tuple[Params, Params, Params]:
    """A step of gradient descent; `clamp` as of `adam`."""
    if clamp:
        theta, norm = (g.clamp(-clamp, clamp) for g in gradient[:2])
        gradient = Params(theta, norm, gradient.rates)
    params = (p - rate * g for p, g in zip(state.params, gradient, strict=True))
    return Params(*params), state.first, state.second
