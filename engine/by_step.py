"""What belongs to the steps of an inner loop: rows of parameters and statistics, and what passes
report of them.
"""

import torch
from torch import Tensor

from engine.episodes import Values
from engine.models.interface import Model, Moments


def at_step(rows: Tensor, step: int) -> Tensor:
    """The row of a step; the last one serves every later step, and a single one all of them."""
    return rows[min(step, len(rows) - 1)]


def running_at(running: Moments | None, step: int) -> Moments | None:
    return None if running is None else Moments(*(at_step(m, step) for m in running))


class Record:
    """Batch moments in the order in which the reference implementation's running statistics see
    them.
    """

    def __init__(self, model: Model):
        self.model, self.rows, self.columns, self.factors = model, [], [], []

    def add(self, step: int, moments: Moments, x: Values) -> None:
        self.rows.append(step)
        self.columns.append(moments)
        self.factors.append(self.model.bessel(x, moments.var))

    def result(self) -> tuple[tuple[int, ...], Moments]:
        means, vars = zip(*self.columns, strict=True)
        mean, var = torch.stack([*means, *vars], 1).split(len(means), 1)
        return tuple(self.rows), Moments(mean, var * torch.stack(self.factors))


class ByStep:
    """Gradients of the rows of a parameter, each summed over the steps that it serves."""

    def __init__(self, of: Tensor, tasks: int):
        self.of, self.tasks = of, tasks
        self.found: list[Tensor | None] = [None] * len(of)

    def add(self, step: int, gradient: Tensor) -> None:  # [T, width]
        row = min(step, len(self.found) - 1)
        before = self.found[row]
        self.found[row] = gradient if before is None else before + gradient

    def result(self) -> Tensor:  # [T, rows, width]
        rows = [self._none() if row is None else row for row in self.found]
        return torch.stack(rows, 1)

    def _none(self) -> Tensor:
        return self.of.new_zeros(self.tasks, self.of.shape[1])
