"""Any `nn.Module` with any loss as a model of the unroll: its passes are autograd's own.

Parameters are of three kinds: adapted by the inner loop (`Params.theta`); learned by the outer loop
alone (`Params.norm`: gains and biases of batch norm, a row a step, then all others that `adapt`
leaves); and frozen (`requires_grad=False`), which stay as the module has them. A tied tensor is
listed once, by its first name.

The Hessian-vector product of a step is a second backward through its support pass, whose graph is
kept (`memory="fast"`) or made anew when its turn comes (`"low"`: one step's memory in all). Only
the support pass is differentiated twice, whatever the number of target passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from engine.episodes import Episode, Values, each, mapped
from engine.errors import UserError, listed
from engine.models.attention import composed_attention
from engine.models.interface import Moments, Params, Pass
from engine.models.randomness import draws, is_random, random_state, set_random_state
from engine.models.skeleton import Skeleton, contents
from engine.told import fitting, kind

ADAPT = ("all", "head", "body")
MEMORY = ("fast", "low")
_LARGE = 200_000  # parameters, or values of a task's inputs
_TINY = 20_000  # parameters; below, a call of torch costs more than its arithmetic
_LINE = 64  # bytes, to which torch aligns


class Module:
    """`module` is called with the inputs of one task, [N, ...], or by keyword where these are a
    dict; `criterion(output, y)` gives one number.

    adapt: the parameters that the inner loop changes, "all" but batch norm's, the "head" (the last
        layer that has any; ANIL), the "body" (all but it; BOIL), or a test of their names.
    vectorize: tasks by `vmap` in place of one after the other: all, or so many at once; "auto":
        where the network is tiny or on a GPU, unless `vmap` cannot.

    Raises UserError when nothing is adapted, or dtypes or devices of the parameters differ.
    """

    def __init__(
        self,
        module: nn.Module,
        criterion: Callable[[Any, Any], Tensor],
        *,
        adapt: str | Callable[[str], bool] = "all",
        memory: str = "fast",
        vectorize: bool | int | str = "auto",
    ):
        for name, value, known in (("memory", memory, MEMORY), ("adapt", adapt, ADAPT)):
            if value not in known and not (name == "adapt" and callable(value)):
                raise UserError(f"{name} is {value!r}: choose one of {', '.join(known)}")
        some = type(vectorize) is int and vectorize > 0
        if not (some or vectorize == "auto" or isinstance(vectorize, bool)):
            raise UserError(
                f"vectorize is {vectorize!r}: choose True, False, 'auto' or a number of tasks"
            )
        norms = {n: m for n, m in module.named_modules() if isinstance(m, _BatchNorm)}
        affine = {_at(n, leaf) for n in norms for leaf in ("weight", "bias")}
        learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
        wanted = (
            adapt if callable(adapt) else _adapted(adapt, [n for n in learned if n not in affine])
        )
        shapes = {n: p.shape for n, p in learned.items()}
        self.shapes = {n: s for n, s in shapes.items() if wanted(n)}
        left = {n: s for n, s in shapes.items() if not wanted(n)}
        self.affine = {n: s for n, s in left.items() if n in affine}
        self.shared = {n: s for n, s in left.items() if n not in affine}
        _require_some(self.shapes, module, adapt)
        _require_alike([learned[n] for n in shapes])
        self.sizes = tuple(math.prod(shape) for shape in self.shapes.values())
        self.tracked = {n: m.num_features for n, m in norms.items() if m.track_running_stats}
        self.module, self.criterion = module, criterion
        self.memory, self.vectorize = memory, vectorize
        self._skeleton = Skeleton(module)
        self._vmap_fails = False
        self._drawn: dict[bool, bool] = {}  # whether a pass did, in training and not

    @property
    def outer(self) -> dict[str, torch.Size]:
        """What a row of `Params.norm` holds, in its order."""
        return self.affine | self.shared

    @property
    def stat_width(self) -> int:
        return sum(self.tracked.values())

    spreads = False  # torch's sums depend on how many threads share them

    def parallel(self, episode: Episode) -> bool:
        """Random numbers come from one generator: tasks then go one after the other. So do large
        ones: their operations find work for all cores, and hold one task's memory.
        """
        inputs = each(episode.target_x)[0]
        sets = inputs.values() if isinstance(inputs, dict) else [inputs]
        most = max(sum(self.sizes), *(values.numel() for values in sets))
        return not self.random and most < _LARGE

    @property
    def random(self) -> bool:
        """Whether a pass draws random numbers."""
        training = self.module.training
        layers = training and any(map(is_random, self.module.modules()))
        return layers or self._drawn.get(training, False)

    def tied(self, gradient: Params) -> Params:
        """Only batch norm's gains and biases have a row a step."""
        width = sum(math.prod(shape) for shape in self.affine.values())
        rows, shared = gradient.norm[:, :width], gradient.norm[:, width:]
        shared = shared.sum(0, keepdim=True).expand_as(shared)
        return gradient._replace(norm=torch.cat([rows, shared], 1))

    def task_block(self, episode: Episode, keeps: bool) -> int | None:
        if not self._at_once(episode.support_x):
            return 1
        return self.vectorize if type(self.vectorize) is int else None

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def during(self, episode: Episode, keeps: bool) -> AbstractContextManager[None]:
        """Composes attention in all passes, also those that need it not: a switch that one thread
        turned for some would be met by the others by chance.
        """
        self._follow()
        self._find_random(each(episode.support_x)[0])
        return composed_attention() if self._composed(keeps) else nullcontext()

    def _follow(self) -> None:
        """The module may have changed, as by a schedule of dropout or a hook."""
        if self._skeleton.follow():
            self._drawn.clear()

    def identity(self) -> tuple:
        """What a pass depends on beside what it is given: the attributes of network and loss, and
        where the tensors lie that are not learned.
        """
        others = [*self.module.buffers(), *self.module.parameters()]
        parts = (part for part in (self.module, self.criterion) if isinstance(part, nn.Module))
        kept = tuple((t.data_ptr(), t.shape, t.dtype, t.requires_grad) for t in others)
        return self._skeleton.version, kept, *map(contents, parts)

    def _find_random(self, x: Any) -> None:
        """By a pass of one task, once: `F.dropout` is no layer that could be seen, and may be for
        evaluation too.
        """
        training = self.module.training
        if training in self._drawn or self.random:
            return
        with torch.no_grad():
            like = next(self.module.parameters())
            self._drawn[training] = draws(lambda: self._run(x, self._skeleton.own()), like)

    def _run(self, x: Any, call: Callable) -> Any:
        """The module's call with one task's inputs."""
        args, named = ((), x) if isinstance(x, dict) else ((x,), {})
        has = kind(next(self.module.parameters()))
        cure = f"its parameters are {has}: give inputs that fit, or mend its forward"
        with fitting(type(self.module).__name__, named or {"x": x}, cure):
            return call(*args, **named)

    def _composed(self, twice: bool) -> bool:
        """Also where vmap then fails, so that the first pass is as all others."""
        return twice or self._prefers_vmap

    def _at_once(self, x: Values) -> bool:
        return self._prefers_vmap and not (isinstance(x, list) or self._vmap_fails)

    @property
    def _prefers_vmap(self) -> bool:
        if self.vectorize != "auto":
            return self.vectorize is not False
        # vmap and a loop draw random numbers in different orders
        small = sum(self.sizes) < _TINY and not self.random
        return small or self._device.type == "cuda"

    def bessel(self, x: Values, like: Tensor) -> Tensor:
        return torch.ones_like(like[0])  # torch's running variance is unbiased already

    def prepare(self, x: Values, passes: int) -> _Batch:
        self._follow()
        return _Batch(self, mapped(_aligned, x))

    def task(
        self,
        theta: Tensor,  # [P]
        row: Tensor,  # [G]
        x: Any,  # [N, ...]
        given: Moments | None = None,  # [S] each
    ) -> tuple[Any, Tensor, Tensor]:  # output, batch mean and unbiased variance [S]
        """A forward pass of one task."""
        skeleton, widths = self._skeleton.own(), list(self.tracked.values())
        tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        tensors |= _split(theta, self.shapes) | _split(row, self.outer)
        start = given or theta.new_zeros(2, sum(widths)).unbind()
        for name, mean, var in zip(self.tracked, *(s.split(widths) for s in start), strict=True):
            norm = skeleton.get_submodule(name)  # momentum 1: the batch's own statistic
            norm.momentum, norm.training = 1.0, given is None
            tensors[_at(name, "running_mean")] = mean if given else mean.clone()
            tensors[_at(name, "running_var")] = var if given else var.clone()
            tensors[_at(name, "num_batches_tracked")] = theta.new_zeros(())
        output = self._run(x, lambda *a, **k: functional_call(skeleton, tensors, a, k))
        moments = (
            torch.cat([theta.new_empty(0), *(tensors[_at(n, kind)] for n in self.tracked)])
            for kind in ("running_mean", "running_var")
        )
        return output, *(m.detach() for m in moments)

    def loss(
        self, theta: Tensor, row: Tensor, x: Values, labels: Values, statistics=None, ops=None
    ) -> tuple[Tensor, Values, Moments]:  # loss [T], output of each task, moments [T, S]
        """`ops` are of no use: the module has its own."""

        def one(theta, row, x, y, *given):
            output, *moments = self.task(theta, row, x, Moments(*given) if given else None)
            return self._loss(output, y), output, *moments

        return _stacked(self._over(one, theta, row, x, labels, statistics), x)

    def predict(
        self, theta: Tensor, row: Tensor, x: Values, statistics=None
    ) -> tuple[Values, Moments]:
        def one(theta, row, x, *given):
            output, *moments = self.task(theta, row, x, Moments(*given) if given else None)
            return theta.new_zeros(()), output, *moments

        return _stacked(self._over(one, theta, row, x, None, statistics), x)[1:]

    def _over(self, one: Callable, theta: Tensor, row: Tensor, x: Values, labels, statistics):
        """`one` of every task; vmap gives stacked results, a loop a list of them."""
        rows = row.expand(len(theta), -1)
        given = [m.expand(len(theta), -1) for m in statistics or ()]
        values = [x] if labels is None else [x, labels]
        if self._at_once(x):
            if self.vectorize != "auto":
                return vmap(one, randomness="different")(theta, rows, *values, *given)
            try:
                return vmap(one, randomness="different")(theta, rows, *values, *given)
            except (RuntimeError, NotImplementedError, ValueError, UserError):
                results = list(map(one, theta, rows, *map(each, values), *given))
                self._vmap_fails = True  # for it was no mistake: the loop would have met it too
                return results
        return list(map(one, theta, rows, *map(each, values), *given))

    def _loss(self, output: Any, y: Any) -> Tensor:
        name = getattr(self.criterion, "__name__", type(self.criterion).__name__)
        cure = "give outputs and y that fit it (labels of classes are from 0 to outputs - 1)"
        with fitting(f"the loss {name}", {"an output": output, "y": y}, cure):
            loss = self.criterion(output, y)
        if not isinstance(loss, Tensor) or loss.dim():
            shape = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else None
            found = shape or f"type {type(loss).__name__}"
            raise UserError(
                f"the loss of a task has {found}: it must be a tensor of one number; give a loss "
                "that averages, as F.cross_entropy with reduction='mean'"
            )
        return loss


@contextmanager
def _recording(composed: bool) -> Iterator[None]:
    """The unroll runs in inference mode."""
    attention = composed_attention() if composed else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), attention:
        yield


@dataclass(frozen=True)
class _Batch:
    """Inputs of each task."""

    model: Module
    x: Values

    def predict(self, theta, row, statistics=None):
        with _recording(self.model._composed(twice=False)), torch.no_grad():
            return self.model.predict(theta.clone(), row.clone(), self.x, _plain(statistics))

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        graph = keep and self.model.memory == "fast"
        again = keep and not graph and self.model.random
        state = random_state(theta) if again else None
        point = _Point(self, theta, row, labels, _plain(statistics), state)
        (loss, output, moments), leaves, gradients = point.differentiated(twice=graph)
        kept = _Graph(leaves, gradients) if graph else point if keep else None
        results = (loss.detach(), mapped(Tensor.detach, output), *(g.detach() for g in gradients))
        return Pass(*results, moments, kept)


@dataclass(frozen=True)
class _Graph:
    """A kept graph: the gradients and what they are functions of."""

    leaves: list[Tensor]
    gradients: tuple[Tensor, ...]

    def tangent(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The Hessian is symmetric: the product with it is the gradient's pullback."""
        along = direction.clone()  # not of inference mode
        with _recording(composed=True):
            return torch.autograd.grad(
                self.gradients[0], self.leaves, along, materialize_grads=True
            )


@dataclass(frozen=True)
class _Point:
    """Where a pass is, to be done anew."""

    batch: _Batch
    theta: Tensor
    row: Tensor
    labels: Values
    statistics: Moments | None
    random: list[Tensor] | None  # the generators, so that dropout repeats itself

    def differentiated(self, twice: bool):
        """Tasks are independent: the gradient of the summed losses is each task's own."""
        with _recording(self.batch.model._composed(twice)):
            rows = self.row.expand(len(self.theta), -1)
            leaves = [t.clone().requires_grad_() for t in (self.theta, rows)]
            result = self.batch.model.loss(*leaves, self.batch.x, self.labels, self.statistics)
            _require_derivative(result[0])
            gradients = torch.autograd.grad(
                result[0].sum(), leaves, create_graph=twice, materialize_grads=True
            )
        return result, leaves, gradients

    def tangent(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        devices = [self.theta.device] if self.theta.is_cuda else []
        with torch.random.fork_rng(devices, enabled=self.random is not None):
            if self.random is not None:
                set_random_state(self.random, self.theta)
            _, leaves, gradients = self.differentiated(twice=True)
            return _Graph(leaves, gradients).tangent(direction)


def _stacked(results: list | tuple, x: Values) -> tuple[Tensor, Values, Moments]:
    """Of the results of all tasks: losses [T], outputs [T, ...] or each task's, moments [T, S]."""
    if isinstance(results, tuple):  # vmap's
        loss, output, *moments = results
        if not isinstance(output, Tensor):
            output = [mapped(lambda t, i=i: t[i], output) for i in range(len(loss))]
        return loss, output, Moments(*moments)
    losses, outputs, *moments = zip(*results, strict=True)
    tensors = all(isinstance(output, Tensor) for output in outputs)
    output = torch.stack(outputs) if tensors and not isinstance(x, list) else list(outputs)
    return torch.stack(losses), output, Moments(*map(torch.stack, moments))


def _aligned(x: Tensor) -> Tensor:
    """At an address as new tensors have: libraries' sums may depend on it, and a slice's depends on
    which tasks are before it.
    """
    if x.data_ptr() % _LINE == 0:
        return x
    with torch.inference_mode(False):
        return x.clone()


def _plain(statistics: Moments | None) -> Moments | None:
    """Not of inference mode, so that autograd may keep them."""
    return None if statistics is None else Moments(*(m.clone() for m in statistics))


def _adapted(adapt: str, names: list[str]) -> Callable[[str], bool]:
    """The test of a parameter's name for the words of ADAPT."""
    head = names[-1].rpartition(".")[0] if names else ""
    in_head = {name for name in names if name.rpartition(".")[0] == head}
    chosen = {"all": {*names}, "head": in_head, "body": {*names} - in_head}[adapt]
    return chosen.__contains__


def _require_some(adapted: dict, module: nn.Module, adapt: Any) -> None:
    if adapted:
        return
    names = [name for name, _ in module.named_parameters()]
    learned = [name for name, p in module.named_parameters() if p.requires_grad]
    kind = type(module).__name__
    if not names:
        why = "it has none"
    elif not learned:
        why = f"each of {listed(names, 5)} is frozen (requires_grad=False)"
    else:
        why = f"adapt={adapt!r} leaves {listed(learned, 5)} to the outer loop"
    raise UserError(f"no parameter of {kind} is adapted by the inner loop: {why}; adapt some")


def _require_derivative(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise UserError(
            f"the loss of a task, {loss[0].item():.4g}, does not depend on the parameters for "
            "autograd: give one without argmax, detach, item or no_grad in it or in the network"
        )


def _require_alike(parameters: list[Tensor]) -> None:
    kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters})
    if len(kinds) > 1:
        raise UserError(
            f"the parameters are {' and '.join(kinds)}: they lie in one buffer, of one dtype and "
            "device; move the module, or freeze those that differ"
        )


def _at(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _split(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
