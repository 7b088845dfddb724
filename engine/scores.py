"""What a model is worth over tasks: metrics, their mean and its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from engine.episodes import Values, each
from engine.errors import UserError
from engine.told import shown

METRICS = ("accuracy", "loss")
IGNORED = -100  # torch's ignore_index, of a loss that says no other
_ASTRAY = "the inner loop went astray; give fewer steps, a lower rate or other tasks"


class NotFinite(UserError):
    """Of answers that say nothing."""


class Score(NamedTuple):
    """Of a metric over tasks: mean, half-width of its 95 % interval, number of tasks."""

    accuracy: float
    interval: float
    tasks: int


def score(per_task: Tensor) -> Score:  # [tasks]
    """Mean and 1.96 s / sqrt(n), s the sample standard deviation over the n tasks; of one task nan,
    which has none."""
    n = len(per_task)
    interval = 1.96 * per_task.std().item() / n**0.5 if n > 1 else math.nan
    return Score(per_task.mean().item(), interval, n)


def ignored(loss: Any) -> int:
    """The label that the loss leaves out: what pads a set."""
    while isinstance(loss, partial):
        if "ignore_index" in loss.keywords:
            return loss.keywords["ignore_index"]
        loss = loss.func
    found = getattr(loss, "ignore_index", None)
    return found if type(found) is int else IGNORED


def classes_last(outputs: Tensor, y: Tensor, loss: Any = None, before: int = 0) -> bool:
    """Whether outputs are y's shape and an axis of classes behind it. Torch's own losses have it
    behind the samples' axis, the first but `before`.
    """
    while isinstance(loss, partial):
        loss = loss.func
    by_torch = loss in (F.cross_entropy, F.nll_loss)
    by_torch = by_torch or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    return outputs.shape[:-1] == y.shape and (y.dim() == before + 1 or not by_torch)


def measured(predictions: Values, y: Values, metric: Any, loss: Callable) -> list[float]:
    """The metric of every task: a function of (predictions, y), or one of METRICS."""
    known = {"accuracy": partial(_accuracy, loss=loss), "loss": loss}
    function = known.get(metric) if type(metric) is str else metric
    found = [float(function(p, t)) for p, t in zip(each(predictions), each(y), strict=True)]
    if metric == "loss" and not all(map(math.isfinite, found)):
        raise NotFinite(f"a task's loss is NaN or infinite: {_ASTRAY}")
    return found


def require_classes(y: Any) -> None:
    """Raises UserError when the accuracy over y means nothing."""
    if not isinstance(y, Tensor) or y.is_floating_point():
        raise UserError(
            f"accuracy is of classes, and y is {shown(y)}: give the metric 'loss', or labels of a "
            "whole-number type"
        )


def require_several(predictions: Any) -> None:
    """Raises UserError of one output, whose largest is no class."""
    if isinstance(predictions, Tensor) and predictions.dim() and predictions.shape[-1] == 1:
        raise UserError(
            f"accuracy is of outputs for two classes or more, and the network answers "
            f"{shown(predictions)}: give the metric 'loss', or a function of (predictions, y)"
        )


def _accuracy(predictions: Any, y: Any, loss: Any = None) -> Tensor:  # [M, ways], [M]
    require_classes(y)
    if not isinstance(predictions, Tensor) or not classes_last(predictions, y, loss):
        raise UserError(
            f"accuracy is of outputs [samples, classes] and y [samples], and the network answers "
            f"{shown(predictions)} where y is {shown(y)}: give another metric (of more axes a loss "
            "of torch has the classes on the second)"
        )
    require_several(predictions)
    padding = ignored(loss)
    known = y != padding
    if not known.any():
        raise UserError(
            f"all labels of a task are {padding}, which the loss ignores: give some more"
        )
    if not predictions.amax(-1).isfinite().all():  # argmax would take the first class
        raise NotFinite(f"a task's outputs are NaN or infinite: {_ASTRAY}")
    return (predictions.argmax(-1) == y)[known].double().mean()
