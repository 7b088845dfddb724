"""What a learner's inner loop has made of one task's samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.episodes import Values
from engine.errors import UserError
from engine.models.batch_norms import modes
from engine.models.interface import Moments
from engine.models.module import Module
from engine.models.skeleton import duplicate
from engine.told import is_samples, shown

if TYPE_CHECKING:
    from engine.learner import Learner


class Adapted:
    """A network adapted to one task."""

    def __init__(self, learner: Learner, theta: Tensor, row: Tensor, statistics: Moments):
        self._learner, self._theta, self._row = learner, theta, row
        self._statistics = statistics

    @torch.inference_mode()
    def __call__(self, x: Any) -> Any:
        """Predictions for x [M, ...], each by itself, in evaluation mode: batch norm uses the
        support set's statistics, or running ones."""
        one = one_task("x", x)
        self._learner._check_fields(x=one)
        with evaluating(self._learner):
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
        in evaluation mode. Raises UserError of a Backbone, which has none, and of a module that
        reaches its parts by what no copy is made of.
        """
        model = self._learner.model
        if not isinstance(model, Module):
            kind = type(model).__name__
            raise UserError(f"a {kind} is no nn.Module; call the adapted value itself")
        made = duplicate(self._learner.module).eval()
        row = self._row.split([shape.numel() for shape in model.outer.values()])
        outer = {n: p.view(s) for (n, s), p in zip(model.outer.items(), row, strict=True)}
        with torch.no_grad():
            for name, value in {**self.state_dict(), **outer}.items():
                made.get_parameter(name).copy_(value)
            model.norms.settle(made, self._statistics, model.affine)
        return made


_lock = threading.Lock()
# Of each learner: how many threads are inside, and the modes of its parts before the first.
_inside: WeakKeyDictionary[Learner, list] = WeakKeyDictionary()


@contextmanager
def evaluating(learner: Learner) -> Iterator[None]:
    """In evaluation mode; when the last thread has left, each part is in the mode that it had."""
    with _lock:
        state = _inside.setdefault(learner, [0, []])
        if not state[0]:
            state[1] = [(part, part.training) for part in learner.modules()]
            if isinstance(learner.model, Module):
                learner.model.norms.follow()
        # Also where what runs inside has turned it since; norms are turned by others' passes.
        if not state[0] or any(modes(learner)):
            learner.eval()
        state[0] += 1
    try:
        yield
    finally:
        with _lock:
            state[0] -= 1
            if not state[0]:
                for part, training in state[1]:
                    part.training = training
                del _inside[learner]


def one_task(name: str, values: Any) -> Values:
    """As of an episode of one task."""
    if not is_samples(values, 1):
        found = f"of shape {list(values.shape)}" if isinstance(values, Tensor) else shown(values)
        raise UserError(f"{name} is {found}: give a tensor [samples, ...] or a dict of tensors")
    if isinstance(values, dict):
        return {name: tensor.unsqueeze(0) for name, tensor in values.items()}
    return values.unsqueeze(0)
