"""Reptile's inner loop: minibatches of the support set, by Adam or gradient descent, gains and
biases of batch norm among what changes.

What it has beside the network is Adam's second moment of all that changes, and the number of steps
that it has seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine.by_step import Record
from engine.episodes import Episode
from engine.methods import beside, heads
from engine.methods.inner import Inner, ended
from engine.models.interface import Model, Moments, Params
from engine.unroll import MetaGradient, stacked

BETA2 = 0.999  # of TensorFlow's Adam, as the authors' code has it
# Of splitmix64 (Steele 2014), as numbers with a sign.
_ADDED, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


class Step(NamedTuple):
    index: int
    row: Tensor  # [T, G]
    adapted: Tensor  # [T, P]
    moments: Moments  # [T, S] of its minibatch
    images: Tensor  # [T, b, C, H, W]
    own: Tensor  # [T, R] after it


@dataclass(frozen=True)
class Reptile(Inner):
    rate: float
    batch: int  # images of a step in training, 0: all
    eval_batch: int
    adam: bool = True

    @torch.inference_mode()
    def adjoint(
        self,
        model: Model,
        params: Params,
        episode: Episode,
        loss_weights: Sequence[float | Tensor],  # K; that of the last step counts
        second_order: bool,  # there is no derivative of a step
        running: Moments | None = None,  # never given
    ) -> MetaGradient:
        """Of each task θ − φ_K in the place of the gradient, the same of gains and biases, and what
        is beside them after the last step. The target set is for the metrics alone.
        """
        record, support = Record(model), (episode.support_x, episode.support_y)
        for step in self._steps(model, params, *support, len(loss_weights), self.batch):
            record.add(step.index, step.moments, step.images)
        prepared = self.prepare(model, episode.target_x, 1)
        logits, _ = prepared.predict(step.adapted, step.row)
        loss, _ = heads.cross_entropy(logits, episode.target_y)
        shared, _ = beside.split(model, params)
        moved = shared.theta - step.adapted, shared.norm[0] - step.row
        found = ended(params, loss_weights, loss, logits, *moved, record)
        norm = torch.cat([found.gradient.norm, step.own.unsqueeze(1)], 2)
        return found._replace(gradient=found.gradient._replace(norm=norm))

    def inner_loop(
        self, model: Model, params: Params, x: Tensor, labels: Tensor, steps: int
    ) -> Iterator[Step]:
        return self._steps(model, params, x, labels, steps, self.eval_batch or self.batch)

    def _steps(
        self, model: Model, params: Params, x: Tensor, labels: Tensor, steps: int, batch: int
    ) -> Iterator[Step]:
        shared, own = beside.split(model, params)
        phi = torch.cat([shared.theta, shared.norm[0]]).expand(len(x), -1)
        second, seen = own[:-1].expand(len(x), -1), own[-1]
        update, sizes = kernels.backend("update", phi), (sum(model.sizes), shared.norm.shape[1])
        places = minibatches(x.shape[1], batch, steps, seen) if batch else [slice(None)] * steps
        for k, taken in enumerate(places):
            images, y = x[:, taken], labels[:, taken]
            theta, row = phi.split(sizes, 1)
            found = self.prepare(model, images, 1).loss_and_gradient(theta, row, y)
            gradient = torch.cat([found.gradient, found.norm_gradient], 1)
            seen = seen + 1
            if self.adam:
                correction = (1 - BETA2**seen).rsqrt()
                moments = gradient, second  # the first one is not carried on
                scales = self.rate, correction, 0.0, BETA2
                phi, _, second = update.adam(phi, *moments, gradient, *scales)
            else:
                phi = phi - self.rate * gradient
            row = phi[:, sizes[0] :]
            state = torch.cat([second, seen.expand(len(x), 1)], 1)
            yield Step(k, row, phi[:, : sizes[0]], found.moments, images, state)

    def with_outputs(
        self, model: Model, params: Params, take: Callable[[Tensor], Tensor]
    ) -> Params:
        """Adam's moment follows θ."""
        (theta, norm, rates), own = beside.split(model, params)
        end = sum(model.sizes)
        own = torch.cat([take(own[:end]), own[end:]])
        return Params(take(theta), torch.cat([norm, own.unsqueeze(0)], 1), rates)

    @torch.inference_mode()
    def adapt_and_predict(
        self,
        model: Model,
        params: Params,
        running: Moments,
        episode: Episode,
        *,
        steps: int,
        norm_statistics: str = "batch",
        protocol: str = "transductive",
        every: bool = False,
    ) -> Tensor:
        """`inductive`: each target in a batch with the whole support set."""
        if protocol == "transductive":
            options = {"steps": steps, "every": every}
            return super().adapt_and_predict(model, params, running, episode, **options)
        support = episode.support_x, episode.support_y
        adapted = self.inner_loop(model, params, *support, steps)
        shown = deque(adapted, None if every else 1)
        logits = [_beside_support(model, step, episode) for step in shown]
        return stacked(logits) if every else logits[0]


def minibatches(
    images: int,
    batch: int,
    steps: int,
    seen: Tensor,  # [] steps before
) -> Tensor:  # int64 [steps, batch]
    """Places in a support set: passes over it in an order each, and batches across their ends. A
    function of the steps before, the same for all tasks, whose images are in no order.
    """
    passes = -(-steps * batch // images)
    numbers = torch.arange(passes * images, device=seen.device).view(passes, images)
    keys = _mixed(_mixed(seen.round().long()) + numbers)
    order = keys.argsort(dim=1, stable=True).flatten()
    return order[: steps * batch].view(steps, batch)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int64 that scatters its input (finaliser of splitmix64)."""
    x = x + _ADDED
    x = (x ^ _down(x, 30)) * _FIRST
    x = (x ^ _down(x, 27)) * _SECOND
    return x ^ _down(x, 31)


def _down(x: Tensor, bits: int) -> Tensor:
    """Shifted as if it had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _beside_support(model: Model, step: Step, episode: Episode) -> Tensor:  # [T, m, W]
    logits = []
    for x, target, theta, row in zip(
        episode.support_x, episode.target_x, step.adapted, step.row, strict=True
    ):
        count = len(target)
        both = torch.cat([x.expand(count, *x.shape), target.unsqueeze(1)], 1)
        found, _ = model.prepare(both, 1).predict(theta.expand(count, -1), row)
        logits.append(found[:, -1])
    return torch.stack(logits)
