"""What is known of a module and its loss by having looked at some of their passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.episodes import Values, mapped
from engine.errors import UserError
from engine.models.batch_norms import modes
from engine.models.contents import contents, placed
from engine.models.module_passes import Batch
from engine.models.probe import Findings, findings, layers, same, strangers
from engine.models.skeleton import Skeleton, attributes, changed, undone
from engine.models.stateless import called
from engine.models.suitable import require_reached, require_untouched

_TINY = 20_000  # parameters; below, a call of torch costs more than its arithmetic


class Looked:
    """Of `engine.models.module.Module`, whose attributes it reads: may tasks go at once, in any
    order, or once more, and what would a graph of a pass be bound to.
    """

    module: nn.Module
    criterion: Callable[[Any, Any], Tensor]
    vectorize: bool | int | str
    shapes: dict[str, torch.Size]
    outer: dict[str, torch.Size]
    sizes: tuple[int, ...]

    def __init__(self, skeleton: Skeleton):
        self._skeleton = skeleton
        self._vmap_fails = self._loss_writes = self._leaves = False
        self._probed: dict[tuple[bool, ...], Findings] = {}  # by the modes of the module's parts

    def __getstate__(self) -> dict[str, Any]:
        """A copy is looked at anew: what closes over a part of the module has no copy of it."""
        return vars(self) | {"_probed": {}}

    @property
    def random(self) -> bool:
        """Whether a pass draws random numbers."""
        return self._found.random

    @property
    def writes(self) -> bool:
        """Whether a pass writes to buffers, but those of batch norm, or to frozen parameters."""
        return self._found.writes

    @property
    def in_order(self) -> bool:
        """Whether a pass may leave something that another one reads."""
        return bool(self._found.writes or self._left)

    @property
    def foreign(self) -> bool:
        """Whether a pass draws random numbers of other generators than torch's."""
        return self._found.foreign

    @property
    def loss_writes(self) -> bool:
        return self._loss_writes

    @property
    def counts(self) -> list[str]:
        """Numbers among the module's attributes that passes set."""
        parts = [*self.module.modules()]
        found = ((vars(parts[i]).get(name), name) for i, name in self._skeleton.set_by_passes)
        return sorted({name for value, name in found if isinstance(value, int | float)})

    @property
    def repeats(self) -> bool:
        """Whether a pass done again is the same, and changes nothing."""
        return not (self._found.foreign or self._found.writes or self._loss_writes or self.counts)

    @property
    def computes(self) -> bool:
        """Whether a pass does nothing that a graph of its launches would not."""
        return self.repeats and not (self.random or self._left)

    @property
    def _left(self) -> bool:
        """Whether a pass leaves something in attributes, or its loss keeps something."""
        return bool(self._skeleton.set_by_passes or self._leaves or self._loss_writes)

    @property
    def _found(self) -> Findings:
        return self._probed.get(modes(self.module)) or layers(self.module)

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _follow(self) -> None:
        """The module may have changed, as by a schedule of dropout or a hook."""
        if self._skeleton.follow():
            self._probed.clear()

    def _probe(self, x: Any, y: Any) -> None:
        """Once for each of the module's modes: `F.dropout` is no layer that could be seen, and may
        be for evaluation too.
        """
        with torch.inference_mode(False):
            given = mapped(torch.clone, (x, y))
            x, y = mapped(lambda t: t.detach().clone(), (x, y))

        def call(tensors: dict[str, Tensor]) -> Any:
            return self._run(x, lambda *a, **k: called(net, tensors, a, k))

        def with_loss(tensors: dict[str, Tensor]) -> tuple[Any, Tensor]:
            output = call(tensors)
            return output, self._loss(output, y)

        skeleton = self._skeleton
        with skeleton.lent() as net, undone(net):
            before, held = attributes(net), contents(net, written=True)
            reached = strangers(net, call)  # by a copy, which a loss may not know
            skeleton.set_by_passes |= changed(before, attributes(net))
            self._leaves |= held != contents(net, written=True)
        alone = not (reached or skeleton.set_by_passes or self._leaves)
        skeleton.copied = skeleton.copied and alone
        held = self._of_loss()
        losses = [self.criterion] if isinstance(self.criterion, nn.Module) else []
        with skeleton.lent() as net, undone(net, *losses):
            require_reached(strangers(net, with_loss))
            found = findings(net, with_loss)
            self._loss_writes |= held != self._of_loss()
        pairs: list[tuple[Tensor, Tensor]] = []
        mapped(lambda a, b: pairs.append((a, b)), given, (x, y))
        require_untouched(all(same(a, b) for a, b in pairs))
        self._probed[modes(self.module)] = found
        with undone(self.module, *losses):
            self._compare_vmap(x, y)

    def _compare_vmap(self, x: Any, y: Any) -> None:
        """With a pass of one task: under vmap no hook on a gradient is called, and no tensor
        requires grad.
        """
        found = self._found
        if not self._at_once(x) or found.random or found.foreign or found.writes:
            return
        parts = [self.module.get_parameter(n) for n in (*self.shapes, *self.outer)]
        with torch.inference_mode(False):
            flat = torch.cat([p.detach().flatten() for p in parts])
            theta, row = flat.split([sum(self.sizes), len(flat) - sum(self.sizes)])
            inputs, labels = mapped(lambda t: torch.stack([t, t]), (x, y))

        def one() -> tuple[Tensor, Tensor]:
            result = Batch(self, inputs).loss_and_gradient(theta.expand(2, -1), row, labels)
            return result.loss, result.gradient

        together = one()
        self._vmap_fails, failed = True, self._vmap_fails
        alone = one()
        self._vmap_fails = failed
        if failed or all(map(_near, alone, together)):
            return
        if self.vectorize != "auto":
            raise UserError(
                f"vectorize is {self.vectorize}, and under torch's vmap loss or gradient is "
                "another than of a task alone (it calls no hooks on gradients, and there no tensor "
                "requires grad): give 'auto' or False"
            )
        self._vmap_fails = True

    def _of_loss(self) -> tuple:
        found, of = contents(self.criterion, written=True), self.criterion
        buffers = of.buffers() if isinstance(of, nn.Module) else ()
        return found, *((id(b), b._version) for b in buffers)

    def identity(self) -> tuple:
        """What a pass depends on beside what it is given: the attributes of network and loss, and
        the tensors that are not learned.
        """
        learned = {id(self.module.get_parameter(n)) for n in (*self.shapes, *self.outer)}
        parts = [part for part in (self.module, self.criterion) if isinstance(part, nn.Module)]
        others = [t for part in parts for t in (*part.buffers(), *part.parameters())]
        kept = tuple(placed(t, self._device) for t in others if id(t) not in learned)
        own = contents(self.module, self.criterion, device=self._device)
        return self._skeleton.version, kept, own

    def composed(self, twice: bool) -> bool:
        """Also where vmap then fails, so that the first pass is as all others."""
        return twice or self._prefers_vmap

    def _at_once(self, x: Values) -> bool:
        return self._prefers_vmap and not (isinstance(x, list) or self._vmap_fails)

    @property
    def _prefers_vmap(self) -> bool:
        if self.vectorize != "auto":
            return self.vectorize is not False
        found = self._found
        if found.masks or self.in_order or _hooked(self.module):
            return False
        # vmap and a loop draw random numbers in different orders
        small = sum(self.sizes) < _TINY and not found.random
        return small or self._device.type == "cuda"


def _hooked(module: nn.Module) -> bool:
    """On gradients, of which vmap calls none."""
    return any(part._backward_hooks or part._backward_pre_hooks for part in module.modules())


def _near(a: Tensor, b: Tensor) -> bool:
    """But for rounding; both not finite are alike."""
    near = (a - b).norm() <= torch.finfo(a.dtype).eps ** 0.5 * a.norm()
    return bool(near) or not (a.isfinite().all() or b.isfinite().all())
