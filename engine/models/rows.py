"""Gains and biases of batch norm that an inner loop changes: a row of each task."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engine.models.backbone import Backbone
from engine.models.interface import Inputs, Model, Moments, Pass
from engine.models.passes import Fused, backend_of


def of(model: Model, x: Tensor, passes: int) -> Inputs:
    """A network's inputs [T, ...], whose passes take rows [T, G] in place of one [G]."""
    backend = backend_of(model, x)[0] if isinstance(model, Backbone) else None
    if backend:
        return model.prepare(x, passes)
    return Rows([model.prepare(one, passes) for one in x.split(1)])


def repeated(inputs: Inputs, times: int) -> Inputs | None:
    """The same inputs as of so many times T tasks, all of them `times` in turn, whose passes take
    rows [times · T, G]; `None` where passes one after the other are as good.
    """
    if times < 2 or not isinstance(inputs, Fused):
        return None
    images = inputs.backend.repeated(inputs.images, times)
    return None if images is None else inputs._replace(images=images)


class Rows(NamedTuple):
    """Where passes take one row for all: tasks are passed one by one."""

    tasks: list[Inputs]

    def predict(
        self, theta: Tensor, row: Tensor, statistics: Moments | None = None
    ) -> tuple[Tensor, Moments]:
        logits, moments = zip(*self._each("predict", theta, row, statistics), strict=True)
        return torch.cat(logits), _together(moments)

    def loss_and_gradient(
        self, theta: Tensor, row: Tensor, labels: Tensor, statistics: Moments | None = None
    ) -> Pass:
        found = self._each("loss_and_gradient", theta, row, statistics, labels)
        *tensors, moments, _ = zip(*found, strict=True)
        return Pass(*map(torch.cat, tensors), _together(moments), None)

    def _each(self, name: str, theta: Tensor, row: Tensor, statistics, *labels: Tensor) -> list:
        found = []
        for t, one in enumerate(self.tasks):
            given = statistics and Moments(*(m[-1 if len(m) == 1 else t] for m in statistics))
            own = (of_tasks[t : t + 1] for of_tasks in labels)
            found.append(getattr(one, name)(theta[t : t + 1], row[t], *own, given))
        return found


def _together(moments: tuple[Moments, ...]) -> Moments:
    return Moments(*map(torch.cat, zip(*moments, strict=True)))
