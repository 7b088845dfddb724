"""The everyday face: a network that learns to adapt, as an ordinary `nn.Module`.

    learner = engine.Learner(network, F.cross_entropy, steps=5)
    optimizer = torch.optim.Adam(learner.parameters())
    loss = learner(episode).loss          # MAML++ through the inner loop
    loss.backward()                       # fills .grad of network, gains and rates
    adapted = learner.adapt(x, y)         # a value: call it on new inputs

The meta-gradient is there with the loss, by the adjoint of `engine.unroll`: backward only scales
it. So DDP, GradScaler, clipping, any optimiser and scheduler see one ordinary node, and nothing is
differentiated twice behind their back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from engine import meta, unroll
from engine.episodes import Episode, Values
from engine.errors import UserError
from engine.models.backbone import Backbone
from engine.models.interface import Moments, Params
from engine.models.module import Module
from engine.models.resnet12 import ResNet12
from engine.runtime.replay import Replays
from engine.runtime.workers import over_blocks
from engine.scores import METRICS, Score, measured, score
from engine.tasks import Tasks
from engine.told import check_images, check_lengths, checked, is_samples, shown

RATES = ("learned", "fixed", "per-parameter")
ROWS = ("per-step", "shared")
STATISTICS = ("batch", "running")
_MOMENTUM = 0.1  # of running statistics, torch's


class Output(NamedTuple):
    loss: Tensor  # [] mean over tasks of sum_k weights[k] · target loss
    predictions: Values  # [T, M, ...] after the last step that has a weight, detached
    per_step: Tensor  # [T, K] target losses where weights[k] != 0, else NaN


class Learner(nn.Module):
    """MAML++ (Antoniou et al. 2018) around any module and loss.

    module: called with the inputs of one task [N, ...] (by keyword if these are a dict), or an
        `engine.Backbone` or `engine.ResNet12`, with passes of their own.
    loss: of (output, y), one number a task.
    rate, rates: the initial inner rate, and what becomes of it: "learned" a tensor and step (LSLR),
        "fixed", or "per-parameter", learned and without steps (Meta-SGD).
    adapt: what the inner loop changes: "all" but batch norm's gains and biases, the "head" (ANIL),
        the "body" (BOIL), or a test of parameters' names.
    norm: rows of gains and biases of batch norm, "per-step" (BNWB) or "shared".
    norm_statistics: what normalises in `adapt` and `evaluate`: the "batch", or "running" ones.
    memory: "fast" keeps the graphs of the support passes, "low" makes one anew when its turn comes
        (and `fit` leaves the C allocator as it is).
    vectorize: tasks by vmap: True, False, so many at once, or "auto", for tiny networks and on a
        GPU.
    capture: "auto": on a GPU a call whose shapes came before is replayed as a CUDA graph
        (`engine.runtime.replay` says what that asks of the module), False: never.

    Raises UserError when nothing is adapted, or a setting is not allowed.
    """

    def __init__(
        self,
        module: nn.Module | Backbone | ResNet12,
        loss: Any = F.cross_entropy,
        *,
        steps: int = 5,
        rate: float = 0.1,
        rates: str = "learned",
        adapt: Any = "all",
        norm: str = "per-step",
        norm_statistics: str = "batch",
        memory: str = "fast",
        vectorize: bool | int | str = "auto",
        capture: bool | str = "auto",
    ):
        super().__init__()
        _check_steps(steps)
        _check("rate", rate, isinstance(rate, int | float) and rate > 0, "a number > 0")
        _check("loss", loss, callable(loss), "a function of (output, y)")
        if not isinstance(module, nn.Module | Backbone | ResNet12):
            raise UserError(
                f"module is {module!r}: give an nn.Module, an engine.Backbone or engine.ResNet12"
            )
        for name, value, known in (
            ("rates", rates, RATES),
            ("norm", norm, ROWS),
            ("norm_statistics", norm_statistics, STATISTICS),
            ("capture", capture, ("auto", False)),
        ):
            _check(name, value, value in known, f"one of {', '.join(map(str, known))}")
        self.steps, self.norm_statistics = steps, norm_statistics
        self.replays = Replays() if capture else None
        self._fused = not isinstance(module, nn.Module)  # with passes of its own
        rows = steps if norm == "per-step" else 1
        if self._fused:
            if loss is not F.cross_entropy or adapt != "all":
                raise UserError(
                    f"a {type(module).__name__} has its own loss and adapts all but batch norm's "
                    "gains and biases; give another module for another loss or adapt"
                )
            self.model = module
            start = module.init(steps, rows, rate, torch.default_generator)
            self.theta = nn.Parameter(start.theta)
        else:
            self.model = Module(module, loss, adapt=adapt, memory=memory, vectorize=vectorize)
            self.module = module
            start = self._values(rows, rate)
            for name in self.model.affine:  # the rows stand for these
                module.get_parameter(name).requires_grad_(False)
        self.norm = nn.Parameter(start.norm)
        width = (1, sum(self.model.sizes)) if rates == "per-parameter" else start.rates.shape
        self.rates = nn.Parameter(start.rates.new_full(width, rate), rates != "fixed")
        kind = {"dtype": start.theta.dtype, "device": start.theta.device}
        shape = rows, self.model.stat_width
        self.register_buffer("running_mean", torch.zeros(shape, **kind))
        self.register_buffer("running_var", torch.ones(shape, **kind))

    def _values(self, rows: int, rate: float) -> Params:
        """From what the module has now."""
        inner = self._own(self.model.shapes)
        theta = torch.cat([p.detach().flatten() for p in inner])
        affine = [p.detach().flatten() for p in self._own(self.model.affine)]
        row = torch.cat([theta.new_empty(0), *affine])
        return Params(theta, row.repeat(rows, 1), theta.new_full((self.steps, len(inner)), rate))

    def _own(self, names: Iterable[str]) -> list[nn.Parameter]:
        return [self.module.get_parameter(name) for name in names]

    @property
    def adapted_names(self) -> tuple[str, ...]:
        """Of the tensors that the inner loop changes, in the order of `rates`."""
        return tuple(self.model.shapes)

    def params(self) -> Params:
        """What the unroll works with, detached."""
        if self._fused:
            return Params(*(p.detach() for p in (self.theta, self.norm, self.rates)))
        theta = torch.cat([p.detach().flatten() for p in self._own(self.model.shapes)])
        shared = [p.detach().flatten() for p in self._own(self.model.shared)]
        rows = [part.expand(len(self.norm), -1) for part in shared]
        return Params(theta, torch.cat([self.norm.detach(), *rows], 1), self.rates.detach())

    def checked(self, episode: Any) -> Episode:
        """The same. Raises UserError when it is no episode, or does not fit."""
        self._check_fields(**vars(checked(episode)))
        return episode

    def _check_fields(self, **fields: Values) -> None:
        if self._fused:
            check_images(self.model, self.theta, **fields)

    def running(self) -> Moments:
        return Moments(self.running_mean, self.running_var)

    def forward(
        self, episode: Episode, weights: Sequence[float] | None = None, order: int = 2
    ) -> Output:
        """The outer loss of some tasks: its backward fills the gradients.

        weights: of the target loss after each of the K steps; by default the last one's alone.
        order: 2, or 1 to leave out second derivatives (first-order MAML).
        """
        weights = [0.0] * (self.steps - 1) + [1.0] if weights is None else list(weights)
        _check("order", order, order in (1, 2), "1 or 2")
        self.checked(episode)
        if len(weights) != self.steps or not any(weights):
            raise UserError(
                f"weights are {weights}: give {self.steps}, one for each inner step, some not 0"
            )
        outer = (
            [self.theta] if self._fused else self._own({**self.model.shapes, **self.model.shared})
        )
        return Output(*_Meta.apply(self, episode, weights, order, self.norm, self.rates, *outer))

    def meta_gradient(
        self, episode: Episode, weights: Sequence[float], order: int
    ) -> unroll.MetaGradient:
        """Summed over the tasks."""
        model, params = self.model, self.params()
        adjoint = partial(self.replays.call, unroll.adjoint) if self.replays else unroll.adjoint
        parts = over_blocks(
            lambda block: adjoint(model, params, block, weights, order == 2),
            episode,
            model,
            order == 2,
        )
        with kernels.only_kernels():
            return unroll.total(parts)

    @torch.no_grad()
    def track(self, gradient: unroll.MetaGradient) -> None:
        """Takes the batches' statistics into the running ones."""
        running = meta.update_running(self.running(), gradient.rows, gradient.moments, _MOMENTUM)
        self.running_mean.copy_(running.mean)
        self.running_var.copy_(running.var)

    @torch.no_grad()
    def load(self, params: Params, running: Moments) -> None:
        """The inverse of `params` and `running`."""
        self.norm.copy_(params.norm[:, : self.norm.shape[1]])
        self.rates.copy_(params.rates)
        self.running_mean.copy_(running.mean)
        self.running_var.copy_(running.var)
        if self._fused:
            self.theta.copy_(params.theta)
            return
        shared = params.norm[0, self.norm.shape[1] :]
        for names, flat in ((self.model.shapes, params.theta), (self.model.shared, shared)):
            parts = flat.split([shape.numel() for shape in names.values()])
            for parameter, value in zip(self._own(names), parts, strict=True):
                parameter.copy_(value.view_as(parameter))

    @torch.inference_mode()
    def adapt(self, x: Any, y: Any, *, steps: int | None = None) -> Adapted:
        """To one task: x [N, ...] and y [N, ...]. The learner itself stays as it is. Raises
        UserError when they do not fit it, or its parameters are no longer finite."""
        steps = self.steps if steps is None else steps
        _check_steps(steps)
        one, labels = _one("x", x), _one("y", y)
        check_lengths("x", one, "y", labels, 1)
        self._check_fields(x=one, y=labels)
        running = self.norm_statistics == "running"
        given = self.running() if running else None
        for step in unroll.inner_loop(self.model, self.params(), one, labels, steps, given):
            theta, row = step.adapted, step.row
        if not theta.isfinite().all():
            raise UserError(
                f"the parameters are not finite after {steps} inner steps (the loss before the "
                f"last was {step.support.loss.item():.4g}): give fewer, a lower rate or other x, y"
            )
        if running:
            statistics = Moments(*(unroll.at_step(m, steps - 1) for m in given))
        else:
            _, statistics = self.model.prepare(one, 1).predict(theta, row)
        return Adapted(self, theta, row, statistics)

    def evaluate(
        self,
        tasks: Iterable[Episode],
        metric: Any = "accuracy",
        *,
        steps: int | None = None,
        protocol: str = "transductive",
    ) -> Score:
        """The mean over tasks, with the half-width of its 95 % interval.

        metric: "accuracy" or "loss", or a function of (predictions, y) of one task.
        protocol: "transductive" normalises a target with the others of its task, "inductive" by
            the support set's statistics.
        """
        if not callable(metric):
            _check(
                "metric", metric, metric in METRICS, f"one of {', '.join(METRICS)} or a function"
            )
        if isinstance(tasks, Episode):
            raise UserError("tasks are one Episode: give a list of some, or Tasks")
        if isinstance(tasks, Tasks) and tasks.length is None:
            raise UserError("tasks do not end: give Tasks a length, the number of their episodes")
        found, training = [], self.training
        self.eval()
        try:
            for episode in tasks:
                predictions = self.predict(episode, steps=steps, protocol=protocol)
                found += measured(predictions, episode.target_y, metric, self.criterion)
        finally:
            self.train(training)
        if not found:
            raise UserError("there is no task to evaluate: give one or more")
        return score(torch.tensor(found, dtype=torch.float64))

    @property
    def criterion(self) -> Any:
        return F.cross_entropy if self._fused else self.model.criterion

    @torch.inference_mode()
    def predict(
        self, episode: Episode, *, steps: int | None = None, protocol: str = "transductive"
    ) -> Values:  # [T, M, ...]
        """Adapts to each task and answers its targets."""
        steps = self.steps if steps is None else steps
        _check_steps(steps)
        self.checked(episode)
        params, running = self.params(), self.running()
        blocks = over_blocks(
            lambda block: unroll.adapt_and_predict(
                self.model,
                params,
                running,
                block,
                steps=steps,
                norm_statistics=self.norm_statistics,
                protocol=protocol,
            ),
            episode,
            self.model,
        )
        return unroll.joined(blocks)


class Adapted:
    """A network adapted to one task."""

    def __init__(self, learner: Learner, theta: Tensor, row: Tensor, statistics: Moments):
        self._learner, self._theta, self._row = learner, theta, row
        self._statistics = statistics

    @torch.inference_mode()
    def __call__(self, x: Any) -> Any:
        """Predictions for x [M, ...], each by itself: batch norm uses the support set's statistics,
        or running ones."""
        one = _one("x", x)
        self._learner._check_fields(x=one)
        inputs = self._learner.model.prepare(one, 1)
        predictions, _ = inputs.predict(self._theta, self._row, self._statistics)
        return predictions[0]

    def state_dict(self) -> dict[str, Tensor]:
        """The values that the inner loop has changed, by name."""
        model = self._learner.model
        if not isinstance(model, Module):
            parts = (weight[0] for weight in model.weights(self._theta))
        else:
            parts = self._theta[0].split(model.sizes)
            parts = (p.view(s) for p, s in zip(parts, model.shapes.values(), strict=True))
        return {n: p.clone() for n, p in zip(model.shapes, parts, strict=True)}

    def module(self) -> nn.Module:
        """A copy of the learner's module with the adapted values, batch norm's row and statistics,
        in evaluation mode. Raises UserError of a Backbone, which has none.
        """
        model = self._learner.model
        if not isinstance(model, Module):
            kind = type(model).__name__
            raise UserError(f"a {kind} is no nn.Module; call the adapted value itself")
        made = copy.deepcopy(self._learner.module).eval()
        row = self._row.split([shape.numel() for shape in model.outer.values()])
        outer = {n: p.view(s) for (n, s), p in zip(model.outer.items(), row, strict=True)}
        with torch.no_grad():
            for name, value in {**self.state_dict(), **outer}.items():
                made.get_parameter(name).copy_(value)
            widths = list(model.tracked.values())
            parts = (m.flatten().split(widths) for m in self._statistics)
            for name, mean, var in zip(model.tracked, *parts, strict=True):
                norm = made.get_submodule(name)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
        return made


class _Meta(torch.autograd.Function):
    """The outer loss, with its gradient."""

    @staticmethod
    def forward(ctx, learner, episode, weights, order, norm, rates, *outer):
        tasks = episode.tasks
        found = learner.meta_gradient(episode, weights, order)
        with kernels.only_kernels():
            return _Meta._outputs(ctx, learner, found, tasks, norm)

    @staticmethod
    def _outputs(ctx, learner, found, tasks, norm):
        if learner.training:
            learner.track(found)
        theta, rows, rate = (g / tasks for g in found.gradient)
        if learner._fused:
            parts = [theta]
        else:
            inner, shared = learner.model.shapes, learner.model.shared
            widths = [norm.shape[1], *(shape.numel() for shape in shared.values())]
            rows, *others = rows.split(widths, 1)
            parts = [*theta.split(learner.model.sizes), *(o.sum(0) for o in others)]
            parts = [p.view(s) for p, s in zip(parts, (inner | shared).values(), strict=True)]
        ctx.save_for_backward(rows, rate, *parts)
        nothing = found.loss.new_full((tasks,), torch.nan)
        per_step = torch.stack([nothing if s is None else s for s in found.per_step], 1)
        ctx.mark_non_differentiable(per_step)
        if isinstance(found.logits, Tensor):
            predictions = found.logits.clone()
            ctx.mark_non_differentiable(predictions)
        else:
            predictions = found.logits
        return found.loss / tasks, predictions, per_step

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale, *_):
        with kernels.only_kernels():
            return None, None, None, None, *(scale * g for g in ctx.saved_tensors)


def _one(name: str, values: Any) -> Values:
    """As of an episode of one task."""
    if not is_samples(values, 1):
        found = f"of shape {list(values.shape)}" if isinstance(values, Tensor) else shown(values)
        raise UserError(f"{name} is {found}: give a tensor [samples, ...] or a dict of tensors")
    if isinstance(values, dict):
        return {name: tensor.unsqueeze(0) for name, tensor in values.items()}
    return values.unsqueeze(0)


def _check_steps(steps: Any) -> None:
    _check("steps", steps, isinstance(steps, int) and steps >= 1, "a number >= 1")


def _check(name: str, value: Any, allowed: bool, words: str) -> None:
    if not allowed:
        raise UserError(f"{name} is {value!r}: give {words}")
