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

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from engine import averages, unroll
from engine.adapted import Adapted, evaluating, one_task
from engine.by_step import at_step
from engine.config import PROTOCOLS
from engine.episodes import Episode, Values, mapped
from engine.errors import UserError
from engine.models.backbone import Backbone
from engine.models.interface import Moments, Params
from engine.models.module import Module
from engine.models.resnet12 import ResNet12
from engine.outer_loss import OuterLoss
from engine.runtime.replay import Replays
from engine.runtime.workers import over_blocks
from engine.scores import METRICS, Score, measured, score
from engine.tasks import Tasks
from engine.told import check_images, check_lengths, checked, kind

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
        `engine.Backbone` or `engine.ResNet12`, with passes of their own. A batch norm of it that is
        in evaluation mode in training keeps its statistics.
    loss: of (output, y), one number a task.
    rate, rates: the initial inner rate, and what becomes of it: "learned" a tensor and step (LSLR),
        "fixed", or "per-parameter", learned and without steps (Meta-SGD).
    adapt: what the inner loop changes: "all" but batch norm's gains and biases, the "head" (ANIL),
        the "body" (BOIL), or a test of parameters' names.
    norm: rows of gains and biases of batch norm, "per-step" (BNWB) or "shared": `learner.norm` has
        them, and `adapt(x, y).module()`, but not the module that was given, whose own stay.
    norm_statistics: what normalises in `adapt` and `evaluate`: the "batch", or "running" ones,
        averaged by a momentum of 0.1 whatever the norms' own is.
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
        _check("rate", rate, _is_rate(rate), "a number > 0")
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
            self.module, self.training = module, module.training
            start = self._values(rows, rate)
            self._rows_of: dict[int, tuple[int, Tensor]] = {}  # version and value of each of these
            if isinstance(loss, nn.Module):
                self.loss = loss
        self.norm = nn.Parameter(start.norm)
        if not self._fused:
            self.model.norms.stand_in(self.norm, self.model.affine)
        width = (1, sum(self.model.sizes)) if rates == "per-parameter" else start.rates.shape
        self.rates = nn.Parameter(start.rates.new_full(width, rate), rates != "fixed")
        mean, var = self._moments(start.theta)
        self.register_buffer("running_mean", mean.repeat(rows, 1))
        self.register_buffer("running_var", var.repeat(rows, 1))
        self._check_rows()

    def _values(self, rows: int, rate: float) -> Params:
        """From what the module has now."""
        inner = self._own(self.model.shapes)
        theta = torch.cat([p.detach().flatten() for p in inner])
        row = torch.cat([theta.new_empty(0), *map(self.model.norms.gain, self.model.affine)])
        return Params(theta, row.repeat(rows, 1), theta.new_full((self.steps, len(inner)), rate))

    def _moments(self, like: Tensor) -> Moments:  # [S]
        """Where running statistics begin: as the module has them."""
        if self._fused:
            zeros = like.new_zeros(self.model.stat_width)
            return Moments(zeros, zeros + 1)
        return self.model.norms.running(like)

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
        self._check_rows()
        return episode

    def _check_rows(self) -> None:
        """Of a module that was changed, or loaded into, whose gains are not read any more."""
        if self._fused:
            return
        self.model.require_as_made()
        self.model.norms.require_rows(self.model.affine)
        if (own := kind(self.rates)) != (now := kind(self._own(self.model.shapes)[0])):
            raise UserError(
                f"the module's parameters are {now} and the learner's own {own}: move or cast the "
                "learner, and the module with it"
            )
        for name, p in zip(self.model.affine, self._own(self.model.affine), strict=True):
            version, value = self._rows_of.get(id(p), (None, None))  # of a copy none is known
            if version not in (None, p._version) and not torch.equal(p, value):
                raise UserError(
                    f"{name} of the module was changed, which the rows of learner.norm stand for: "
                    "load into the learner, or load before it is made"
                )
            if version != p._version:
                self._rows_of[id(p)] = p._version, p.detach().clone()

    def _apply(self, fn: Any, recurse: bool = True) -> Learner:
        """Moved and cast, rows and all."""
        self._forget_rows()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget_rows()
        super()._load_from_state_dict(*args)
        if not self._fused:  # the rows may be another tensor now
            self.model.norms.stand_in(self.norm, self.model.affine)

    def _forget_rows(self) -> None:
        if not self._fused:
            self._rows_of.clear()

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
        weights = [0.0] * (self.steps - 1) + [1.0] if weights is None else weights
        if isinstance(weights, str) or not hasattr(weights, "__iter__"):
            raise UserError(f"weights are {weights!r}: give {self.steps}, one for each inner step")
        weights = list(weights)
        _check("order", order, order in (1, 2), "1 or 2")
        self.checked(episode)
        _check_constant(**vars(episode), weights=weights)
        if len(weights) != self.steps or not any(weights):
            raise UserError(
                f"weights are {weights}: give {self.steps}, one for each inner step, some not 0"
            )
        outer = (
            [self.theta] if self._fused else self._own({**self.model.shapes, **self.model.shared})
        )
        return Output(
            *OuterLoss.apply(self, episode, weights, order, self.norm, self.rates, *outer)
        )

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
        running = averages.update(
            self.running(), gradient.rows, gradient.moments, _MOMENTUM, not self._fused
        )
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
        """To one task: x [N, ...] and y [N, ...], in evaluation mode. The learner itself stays as
        it is. Raises UserError when they do not fit it, or its parameters are no longer finite."""
        steps = self.steps if steps is None else steps
        _check_steps(steps)
        one, labels = one_task("x", x), one_task("y", y)
        check_lengths("x", one, "y", labels, 1)
        self._check_fields(x=one, y=labels)
        self._check_rows()
        statistics = Moments(*(at_step(m, steps - 1).clone() for m in self.running()))
        given = self.running() if self.norm_statistics == "running" else None
        with evaluating(self), self.model.during(Episode(one, labels, one, labels), False):
            for step in unroll.inner_loop(self.model, self.params(), one, labels, steps, given):
                theta, row = step.adapted, step.row.clone()
            if not theta.isfinite().all():
                raise UserError(
                    f"the parameters are not finite after {steps} inner steps (the loss before the "
                    f"last was {step.support.loss.item():.4g}): give fewer, a lower rate or other "
                    "x, y"
                )
            if given is None:
                _, found = self.model.prepare(one, 1).predict(theta, row)
                statistics = found if self._fused else averages.called(found, statistics)
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
        protocol: by batch statistics, "transductive" normalises a target with the others of its
            task, "inductive" by the support set's; by running ones both are the same.
        """
        if not callable(metric):
            _check(
                "metric", metric, metric in METRICS, f"one of {', '.join(METRICS)} or a function"
            )
        if isinstance(tasks, Episode):
            raise UserError("tasks are one Episode: give a list of some, or Tasks")
        several = hasattr(tasks, "__iter__") or hasattr(tasks, "__getitem__")
        _check("tasks", tasks, several, "a list of episodes, or Tasks")
        if isinstance(tasks, Tasks) and tasks.length is None:
            raise UserError("tasks do not end: give Tasks a length, the number of their episodes")
        found = []
        with evaluating(self):
            for episode in tasks:
                predictions = self.predict(episode, steps=steps, protocol=protocol)
                found += measured(predictions, episode.target_y, metric, self.criterion)
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
        """Adapts to each task and answers its targets, in evaluation mode."""
        steps = self.steps if steps is None else steps
        _check_steps(steps)
        _check("protocol", protocol, protocol in PROTOCOLS, f"one of {', '.join(PROTOCOLS)}")
        self.checked(episode)
        params, running = self.params(), self.running()
        with evaluating(self):
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


def _check_constant(**fields: Any) -> None:
    """Of what gradients do not go back to."""
    for name, values in fields.items():
        found: list[Tensor] = []
        mapped(found.append, values)
        if any(tensor.requires_grad for tensor in found):
            raise UserError(
                f"{name} requires grad, and no gradient goes back to it: give it detached, or make "
                "what it comes from a part of the module"
            )


def _is_rate(rate: Any) -> bool:
    return isinstance(rate, int | float) and type(rate) is not bool and 0 < rate < math.inf


def _check_steps(steps: Any) -> None:
    _check("steps", steps, type(steps) is int and steps >= 1, "a number >= 1")


def _check(name: str, value: Any, allowed: bool, words: str) -> None:
    if not allowed:
        raise UserError(f"{name} is {value!r}: give {words}")
