"""The meta-learner LSTM's inner loop: its rule for every coordinate of the network, gains and
biases of batch norm among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.episodes import Episode
from engine.methods import beside, lstm_rule
from engine.methods.inner import Inner
from engine.models.interface import Model, Moments, Params
from engine.unroll import MetaGradient, Record


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
        weight, record = loss_weights[-1], Record(model)
        support = episode.support_x, episode.support_y
        steps = [*self.inner_loop(model, params, *support, len(loss_weights))]
        for step in steps:
            record.add(step.index, step.moments, episode.support_x)
        target = self.prepare(model, episode.target_x, 1).loss_and_gradient(
            step.adapted, step.row, episode.target_y
        )
        record.add(step.index, target.moments, episode.target_x)
        shared, own = beside.split(model, params)
        rule, start = lstm_rule.Rule.of(own), torch.cat([shared.theta, shared.norm[0]])
        carry = torch.cat([target.gradient, target.norm_gradient], 1)
        of_tasks = [
            lstm_rule.reverse(
                rule,
                [step.loss[t] for step in steps],
                [step.gradient[t] for step in steps],
                start,
                carry[t],
            )
            for t in range(episode.tasks)
        ]
        of_start, of_rule = map(torch.stack, zip(*of_tasks, strict=True))
        theta, row = of_start.split([len(shared.theta), shared.norm.shape[1]], 1)
        gradient = Params(
            weight * theta,
            weight * torch.cat([row, of_rule], 1).unsqueeze(1),
            params.rates.new_zeros(episode.tasks, *params.rates.shape),
        )
        per_step = (None,) * (len(steps) - 1) + (target.loss,)
        return MetaGradient(
            weight * target.loss, target.logits, gradient, per_step, *record.result()
        )

    def inner_loop(
        self, model: Model, params: Params, x: Tensor, labels: Tensor, steps: int
    ) -> Iterator[Step]:
        shared, own = beside.split(model, params)
        rule, sizes = lstm_rule.Rule.of(own), (len(shared.theta), shared.norm.shape[1])
        start = torch.cat([shared.theta, shared.norm[0]])
        states = [lstm_rule.State.first(start)] * len(x)
        inputs, (theta, row) = self.prepare(model, x, steps), start.split(sizes)
        theta, row = (part.expand(len(x), -1) for part in (theta, row))
        for k in range(steps):
            found = inputs.loss_and_gradient(theta, row, labels)
            gradient = torch.cat([found.gradient, found.norm_gradient], 1)
            tasks = zip(found.loss, gradient, states, strict=True)
            states = [lstm_rule.forward(rule, *task) for task in tasks]
            theta, row = torch.stack([state.c for state in states]).split(sizes, 1)
            yield Step(k, row, theta, found.loss, gradient, found.moments)
