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
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from engine.episodes import Episode, Values, each, mapped
from engine.errors import UserError, listed
from engine.models.attention import composed_attention
from engine.models.batch_norms import BatchNorms, modes
from engine.models.interface import Moments, Params
from engine.models.looked import Looked
from engine.models.module_passes import Batch, aligned
from engine.models.skeleton import Skeleton
from engine.models.stateless import called
from engine.models.suitable import (
    require_alike,
    require_apart,
    require_some,
    require_whole,
)
from engine.told import fitting, kind

ADAPT = ("all", "head", "body")
MEMORY = ("fast", "low")
_LARGE = 200_000  # parameters, or values of a task's inputs


class Module(Looked):
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
        require_whole(module, criterion)
        self.norms = BatchNorms(module)
        affine, by_rows = self.norms.leaves, self.norms.by_rows
        learned = {n: p for n, p in module.named_parameters() if p.requires_grad or n in by_rows}
        inner = [n for n in learned if n not in affine]
        wanted = adapt if callable(adapt) else _adapted(adapt, inner, module)
        shapes = {n: p.shape for n, p in learned.items()}
        self.shapes = {n: s for n, s in shapes.items() if wanted(n)}
        left = {n: s for n, s in shapes.items() if not wanted(n)}
        self.affine = {n: s for n, s in left.items() if n in affine}
        self.shared = {n: s for n, s in left.items() if n not in affine}
        require_some(self.shapes, module, adapt)
        if taken := sorted(by_rows & self.shapes.keys()):
            raise UserError(
                f"adapt takes {listed(taken, 5)}, for which another Learner of this module has "
                "rows of its own: leave them, or make the module anew"
            )
        require_alike([learned[n] for n in shapes])
        require_apart({n: learned[n] for n in shapes})
        self.sizes = tuple(math.prod(shape) for shape in self.shapes.values())
        self.module, self.criterion = module, criterion
        self._made_of = self._parameters()
        self.memory, self.vectorize = memory, vectorize
        super().__init__(Skeleton(module))

    @property
    def outer(self) -> dict[str, torch.Size]:
        """What a row of `Params.norm` holds, in its order."""
        return self.affine | self.shared

    @property
    def shared_width(self) -> int:
        """Of what is the same in all rows of `Params.norm`, its last columns."""
        return sum(math.prod(shape) for shape in self.shared.values())

    @property
    def stat_width(self) -> int:
        return sum(self.norms.widths.values())

    spreads = False  # torch's sums depend on how many threads share them
    skips = True  # a pass may leave out a batch norm, whose variance is then -1

    def parallel(self, episode: Episode) -> bool:
        """Not where passes draw random numbers or write, as these would come in any order, or where
        threads cannot have copies of the module, the loss keeps something of its own, or there is
        one device. Large tasks go one after the other, too: their operations find work for all
        cores, and hold one task's memory.
        """
        inputs = each(episode.target_x)[0]
        sets = inputs.values() if isinstance(inputs, dict) else [inputs]
        most = max(sum(self.sizes), *(values.numel() for values in sets))
        alone = self._skeleton.copied and not (self._left or any(self._found[:3]))
        return most < _LARGE and alone and self._device.type == "cpu"

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

    def during(self, episode: Episode, keeps: bool) -> AbstractContextManager[None]:
        """Composes attention in all passes, also those that need it not: a switch that one thread
        turned for some would be met by the others by chance.
        """
        self._follow()
        self.require_as_made()
        self.norms.follow()
        if modes(self.module) not in self._probed:
            self._probe(each(episode.support_x)[0], each(episode.support_y)[0])
        if self._found.masks and self.vectorize not in ("auto", False):
            raise UserError(
                f"vectorize is {self.vectorize}, and an embedding has a padding_idx, which torch's "
                "vmap masks for one task alone: give 'auto' or False"
            )
        if keeps and self.memory == "low" and not self.repeats:
            does = {
                "module draws random numbers of its own": self._found.foreign,
                "module writes to buffers or parameters": self._found.writes,
                f"module counts in {', '.join(self.counts)}": self.counts,
                "loss keeps something of its own": self._loss_writes,
            }
            what = next(words for words, found in does.items() if found)
            raise UserError(
                f"memory is 'low', which does a pass again, and the {what}: give 'fast'"
            )
        return composed_attention() if self.composed(keeps) else nullcontext()

    def require_as_made(self) -> None:
        """Raises UserError where the module has other parameters than it had then."""
        now, then = self._parameters(), self._made_of
        if differing := [n for n in then | now if then.get(n) != now.get(n)]:
            raise UserError(
                f"{listed(differing, 5)} of the module are not as they were when the Learner was "
                "made (requires_grad, the shape or the name): make another Learner"
            )

    def _parameters(self) -> dict[str, tuple]:
        """Those of batch norm may be frozen by another Learner whose rows stand for them."""
        return {
            n: (p.shape, n in self.affine or p.requires_grad)
            for n, p in self.module.named_parameters()
        }

    def _run(self, x: Any, call: Callable) -> Any:
        """The module's call with one task's inputs."""
        args, named = ((), x) if isinstance(x, dict) else ((x,), {})
        has = kind(next(self.module.parameters()))
        cure = f"its parameters are {has}: give inputs that fit, or mend its forward"
        with fitting(type(self.module).__name__, named or {"x": x}, cure):
            return call(*args, **named)

    def bessel(self, x: Values, like: Tensor) -> Tensor:
        return torch.ones_like(like[0])  # that of `loss` is unbiased already, as torch has it

    def prepare(self, x: Values, passes: int) -> Batch:
        self._follow()
        return Batch(self, mapped(aligned, x))

    def task(
        self,
        theta: Tensor,  # [P]
        row: Tensor,  # [G]
        x: Any,  # [N, ...]
        given: Moments | None = None,  # [S] each
        unbiased: bool = True,
    ) -> tuple[Any, Tensor, Tensor]:  # output, batch mean and variance [S]
        """A forward pass of one task."""
        with self._skeleton.lent() as net:
            tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
            tensors |= _split(theta, self.shapes) | _split(row, self.outer)
            with self.norms.normalising(net, tensors, given, theta, unbiased) as found:
                before = dict(tensors)
                output = self._run(x, lambda *a, **k: called(net, tensors, a, k))
            self._skeleton.take_buffers(before, tensors, self.norms.has)
        return output, *found()

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
            output, *moments = self.task(theta, row, x, Moments(*given) if given else None, False)
            return theta.new_zeros(()), output, *moments

        return _stacked(self._over(one, theta, row, x, None, statistics), x)[1:]

    def _over(self, one: Callable, theta: Tensor, row: Tensor, x: Values, labels, statistics):
        """`one` of every task; vmap gives stacked results, a loop a list of them."""
        rows = row.expand(len(theta), -1)
        given = [m.expand(len(theta), -1) for m in statistics or ()]
        values = [x] if labels is None else [x, labels]
        if self._at_once(x) and not isinstance(labels, list):
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


def _adapted(adapt: str, names: list[str], module: nn.Module) -> Callable[[str], bool]:
    """The test of a parameter's name for the words of ADAPT."""
    first = {id(p): name for name, p in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    pairs = [(name, first[id(p)]) for name, p in every if first[id(p)] in names]
    head = [(name, own) for name, own in pairs if _layer(name) == _layer(pairs[-1][0])]
    for name, own in head if adapt != "all" else ():
        layers = (module.get_submodule(_layer(of)) for of in (name, own))
        if len({*map(id, layers)}) > 1:  # and not one layer by two names
            raise UserError(
                f"adapt is {adapt!r}, and {name}, of the last layer, is tied to another parameter: "
                "give a test of the parameters' names"
            )
    in_head = {own for _, own in head}
    chosen = {"all": {*names}, "head": in_head, "body": {*names} - in_head}[adapt]
    return chosen.__contains__


def _layer(name: str) -> str:
    """Of a parameter, which one of its parametrizations may hold."""
    layer, _, own = name.partition(".parametrizations.")
    return layer if own else name.rpartition(".")[0]


def _split(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
