"""The meta-learner LSTM's inner loop: its rule for every coordinate of the network, gains and
biases of batch norm among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine.by_step import Record
from engine.episodes import Episode
from engine.methods import beside
from engine.methods.inner import Inner, ended
from engine.models.interface import Model, Moments, Params
from engine.unroll import MetaGradient
from kernels.plain.lstm import SIZES


def initial(rate: float, generator: torch.Generator) -> Tensor:  # [R], float32
    """Near gradient descent: σ(b_F) some 0.99, and σ(b_I) around a rate."""
    own = torch.empty(sum(SIZES), device="cpu").uniform_(-0.01, 0.01, generator=generator)
    own[-1].uniform_(-0.5, 0.5, generator=generator).add_(math.log(rate / (1 - rate)))
    own[-1 - SIZES[-1]].uniform_(4, 5, generator=generator)
    return own


class Step(NamedTuple):
    index: int
    row: Tensor  # [T, G]
    adapted: Tensor  # [T, P]
    loss: Tensor  # [T] of the support set before it
    gradient: Tensor  # [T, P + G]
    moments: Moments  # [T, S]


class MetaLearner(Inner):
    @torch.inference_mode()
    def adjoint(
        self,
        model: Model,
        params: Params,
        episode: Episode,
        loss_weights: Sequence[float | Tensor],  # K; that of the last step counts
        second_order: bool,  # there are no second derivatives
        running: Moments | None = None,  # never given
    ) -> MetaGradient:
        """See `engine.unroll.adjoint`; of the steps losses and gradients are kept."""
        record = Record(model)
        support = episode.support_x, episode.support_y
        steps = [*self.inner_loop(model, params, *support, len(loss_weights))]
        for step in steps:
            record.add(step.index, step.moments, episode.support_x)
        target = self.prepare(model, episode.target_x, 1).loss_and_gradient(
            step.adapted, step.row, episode.target_y
        )
        record.add(step.index, target.moments, episode.target_x)
        shared, own = beside.split(model, params)
        start = torch.cat([shared.theta, shared.norm[0]])
        carry = torch.cat([target.gradient, target.norm_gradient], 1)
        losses, gradients = [step.loss for step in steps], [step.gradient for step in steps]
        of_start, of_rule = kernels.rule(carry).bwd(own, losses, gradients, start, carry)
        theta, row = of_start.split([len(shared.theta), shared.norm.shape[1]], 1)
        norm = torch.cat([row, of_rule], 1)
        return ended(params, loss_weights, target.loss, target.logits, theta, norm, record)

    def inner_loop(
        self, model: Model, params: Params, x: Tensor, labels: Tensor, steps: int
    ) -> Iterator[Step]:
        shared, own = beside.split(model, params)
        sizes = len(shared.theta), shared.norm.shape[1]
        c = torch.cat([shared.theta, shared.norm[0]]).expand(len(x), -1)
        rule, memory, inputs = kernels.rule(c), None, self.prepare(model, x, steps)
        theta, row = c.split(sizes, 1)
        for k in range(steps):
            found = inputs.loss_and_gradient(theta, row, labels)
            gradient = torch.cat([found.gradient, found.norm_gradient], 1)
            c, memory = rule.fwd(own, found.loss, gradient, c, memory, spent=True)
            theta, row = c.split(sizes, 1)
            yield Step(k, row, theta, found.loss, gradient, found.moments)
