"""iMAML's inner loop, and its gradient by conjugate gradients on the tangent of the last support
pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.by_step import Record
from engine.episodes import Episode
from engine.methods.inner import Inner, Step, ended
from engine.models.interface import Inputs, Model, Moments, Params
from engine.unroll import MetaGradient

# Of a direction [T, P]: its product with the Hessian, and with the derivatives in the row [T, G].
Product = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Implicit(Inner):
    rate: float
    proximal: float  # λ
    cg_steps: int

    @torch.inference_mode()
    def adjoint(
        self,
        model: Model,
        params: Params,  # with a single row of norm
        episode: Episode,
        loss_weights: Sequence[float | Tensor],  # K; that of the last step counts
        second_order: bool,  # else the target's gradient is θ's
        running: Moments | None = None,  # never given
    ) -> MetaGradient:
        """See `engine.unroll.adjoint`; nothing is kept of the steps."""
        steps, record = len(loss_weights), Record(model)
        support = episode.support_x, episode.support_y
        inputs = model.prepare(support[0], steps + 1)
        (step,) = deque(self._steps(inputs, params, support[1], steps, record, support[0]), 1)
        target = model.prepare(episode.target_x, 1).loss_and_gradient(
            step.adapted, step.row, episode.target_y
        )
        record.add(step.index, target.moments, episode.target_x)
        theta, norm = target.gradient, target.norm_gradient
        if second_order:
            end = inputs.loss_and_gradient(step.adapted, step.row, support[1], keep=True)
            theta, product = solved(end.kept.tangent, theta, self.proximal, self.cg_steps)
            norm = norm - product / self.proximal
        return ended(params, loss_weights, target.loss, target.logits, theta, norm, record)

    def inner_loop(
        self, model: Model, params: Params, x: Tensor, labels: Tensor, steps: int
    ) -> Iterator[Step]:
        return self._steps(model.prepare(x, steps), params, labels, steps, Record(model), x)

    def prepare(self, model: Model, x: Tensor, passes: int) -> Inputs:
        return model.prepare(x, passes)

    def _steps(
        self,
        inputs: Inputs,
        params: Params,
        labels: Tensor,
        steps: int,
        record: Record,
        x: Tensor,
    ) -> Iterator[Step]:
        theta, row = params.theta.expand(len(labels), -1), params.norm[0]
        pull = self.rate * self.proximal
        phi = theta
        for k in range(steps):
            found = inputs.loss_and_gradient(phi, row, labels)
            record.add(k, found.moments, x)
            phi = (phi - self.rate * found.gradient + pull * theta) / (1 + pull)
            yield Step(k, row, phi)


def solved(
    product: Product,
    target: Tensor,  # [T, P]
    proximal: float,
    steps: int,
) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
    """u of (I + H/λ) u = target by so many conjugate gradients from 0 in each task, and the product
    of u with the derivatives in the row.

    A direction along which I + H/λ has no positive curvature ends a task's; if it is the first one,
    u is the target.
    """
    found, residual, direction = torch.zeros_like(target), target, target
    of_row, square, going = None, _dot(target, target), torch.ones_like(target[:, :1])
    for j in range(steps):
        along, mixed = product(direction)
        along = direction + along / proximal
        curvature = _dot(direction, along)
        going = going * (curvature > 0)
        first = (1 - going) if j == 0 else 0
        step = torch.where(going > 0, square / curvature, first)
        found = found + step * direction
        of_row = step * mixed if of_row is None else of_row + step * mixed
        residual = residual - step * along
        before, square = square, _dot(residual, residual)
        direction = residual + torch.where(before > 0, square / before, 0) * direction
    return found, of_row


def _dot(a: Tensor, b: Tensor) -> Tensor:  # [T, 1]
    return (a * b).sum(1, keepdim=True)
