"""Methods whose steps are not those of `engine.unroll`: what they have in its place, around an
inner loop of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engine import unroll
from engine.by_step import Record
from engine.episodes import Episode
from engine.methods.base import Adapted
from engine.models import rows
from engine.models.interface import Inputs, Model, Moments, Params


class Step(NamedTuple):
    index: int
    row: Tensor  # [G], or of each task its own [T, G]
    adapted: Tensor  # [T, P]


def ended(
    params: Params,
    loss_weights: Sequence[float | Tensor],  # K; that of the last step counts
    loss: Tensor,  # [T] of the target set after it
    logits: Tensor,
    theta: Tensor,  # [T, P] its gradient in θ
    norm: Tensor,  # [T, G] in the single row
    record: Record,
) -> unroll.MetaGradient:
    """The end of an adjoint whose rates take no part."""
    weight = loss_weights[-1]
    rates = params.rates.new_zeros(len(loss), *params.rates.shape)
    gradient = Params(weight * theta, weight * norm.unsqueeze(1), rates)
    per_step = (None,) * (len(loss_weights) - 1) + (loss,)
    return unroll.MetaGradient(weight * loss, logits, gradient, per_step, *record.result())


class Inner(ABC):
    """A `Loop`."""

    @abstractmethod
    def adjoint(
        self,
        model: Model,
        params: Params,
        episode: Episode,
        loss_weights: Sequence[float | Tensor],
        second_order: bool,
        running: Moments | None = None,
    ) -> unroll.MetaGradient:
        """See `engine.unroll.adjoint`."""

    @abstractmethod
    def inner_loop(
        self, model: Model, params: Params, x: Tensor, labels: Tensor, steps: int
    ) -> Iterator[Adapted]:
        """Adapts to support sets as in evaluation."""

    def prepare(self, model: Model, x: Tensor, passes: int) -> Inputs:
        """For the rows of its steps."""
        return rows.of(model, x, passes)

    def with_outputs(
        self, model: Model, params: Params, take: Callable[[Tensor], Tensor]
    ) -> Params:
        """Those of some of a network's outputs, which `take` takes of a θ [..., P]."""
        return params._replace(theta=take(params.theta))

    @torch.inference_mode()
    def adapt_and_predict(
        self,
        model: Model,
        params: Params,
        running: Moments,
        episode: Episode,
        *,
        steps: int,
        norm_statistics: str = "batch",  # nothing else is allowed
        protocol: str = "transductive",
        every: bool = False,
    ) -> Tensor:
        """See `engine.unroll.adapt_and_predict`."""
        adapted = self.inner_loop(model, params, episode.support_x, episode.support_y, steps)
        prepare = partial(self.prepare, model)
        return unroll.predictions(prepare, adapted, episode, None, protocol, every)
