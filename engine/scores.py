"""What a model is worth over tasks: metrics, their mean and its interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from engine.episodes import Values, each

METRICS = ("accuracy", "loss")


class Score(NamedTuple):
    """Of a metric over tasks: mean, half-width of its 95 % interval, number of tasks."""

    accuracy: float
    interval: float
    tasks: int


def score(per_task: Tensor) -> Score:  # [tasks]
    """Mean and 1.96 s / sqrt(n), s the sample standard deviation over the n tasks."""
    n = len(per_task)
    return Score(per_task.mean().item(), 1.96 * per_task.std().item() / n**0.5, n)


def measured(predictions: Values, y: Values, metric: Any, loss: Callable) -> list[float]:
    """The metric of every task: a function of (predictions, y), or one of METRICS."""
    function = {"accuracy": _accuracy, "loss": loss}.get(metric) if type(metric) is str else metric
    return [float(function(p, t)) for p, t in zip(each(predictions), each(y), strict=True)]


def _accuracy(predictions: Tensor, y: Tensor) -> Tensor:  # [M, ways], [M]
    return (predictions.argmax(-1) == y).double().mean()
