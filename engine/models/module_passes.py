"""Passes of a `Module` by autograd: forward, the gradient, and the gradient's pullback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.episodes import Values, mapped
from engine.models.attention import composed_attention
from engine.models.interface import Moments, Pass
from engine.models.randomness import random_state, set_random_state
from engine.models.suitable import require_derivative, twice_differentiable

if TYPE_CHECKING:
    from engine.models.module import Module

_LINE = 64  # bytes, to which torch aligns


@contextmanager
def _recording(composed: bool) -> Iterator[None]:
    """The unroll runs in inference mode."""
    attention = composed_attention() if composed else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), attention:
        yield


@dataclass(frozen=True)
class Batch:
    """Inputs of each task."""

    model: Module
    x: Values

    def predict(self, theta, row, statistics=None):
        with _recording(self.model.composed(twice=False)), torch.no_grad():
            return self.model.predict(theta.clone(), row.clone(), self.x, _plain(statistics))

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        graph = keep and self.model.memory == "fast"
        # It may draw in the pass to come though it never did; a capture gives no state of a GPU's.
        again = keep and not graph and (self.model.random or not theta.is_cuda)
        state = random_state(theta) if again else None
        point = _Point(self, theta, row, labels, _plain(statistics), state)
        (loss, output, moments), leaves, gradients = point.differentiated(twice=graph)
        kept = _Graph(leaves, gradients) if graph else point if keep else None
        results = (loss.detach(), mapped(Tensor.detach, output), *(g.detach() for g in gradients))
        return Pass(*results, moments, kept)


@dataclass(frozen=True)
class _Graph:
    """A kept graph: the gradients and what they are functions of."""

    leaves: list[Tensor]
    gradients: tuple[Tensor, ...]

    def tangent(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The Hessian is symmetric: the product with it is the gradient's pullback."""
        if not self.gradients[0].requires_grad:  # of a loss that is linear in all of them
            return tuple(map(torch.zeros_like, self.leaves))
        along = direction.clone()  # not of inference mode
        with _recording(composed=True), twice_differentiable():
            return torch.autograd.grad(
                self.gradients[0], self.leaves, along, materialize_grads=True
            )


@dataclass(frozen=True)
class _Point:
    """Where a pass is, to be done anew."""

    batch: Batch
    theta: Tensor
    row: Tensor
    labels: Values
    statistics: Moments | None
    random: list[Tensor] | None  # the generators, so that dropout repeats itself

    def differentiated(self, twice: bool):
        """Tasks are independent: the gradient of the summed losses is each task's own."""
        with _recording(self.batch.model.composed(twice)):
            rows = self.row.expand(len(self.theta), -1)
            leaves = [t.clone().requires_grad_() for t in (self.theta, rows)]
            result = self.batch.model.loss(*leaves, self.batch.x, self.labels, self.statistics)
            require_derivative(result[0])
            with twice_differentiable():
                gradients = torch.autograd.grad(
                    result[0].sum(), leaves, create_graph=twice, materialize_grads=True
                )
        return result, leaves, gradients

    def tangent(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        devices = [self.theta.device] if self.theta.is_cuda else []
        with torch.random.fork_rng(devices, enabled=self.random is not None):
            if self.random is not None:
                set_random_state(self.random, self.theta)
            _, leaves, gradients = self.differentiated(twice=True)
            return _Graph(leaves, gradients).tangent(direction)


def aligned(x: Tensor) -> Tensor:
    """At an address as new tensors have: libraries' sums may depend on it, and a slice's depends on
    which tasks are before it.
    """
    if x.data_ptr() % _LINE == 0:
        return x
    with torch.inference_mode(False):
        return x.clone()


def _plain(statistics: Moments | None) -> Moments | None:
    """Not of inference mode, so that autograd may keep them."""
    with torch.inference_mode(False):
        return None if statistics is None else Moments(*(m.clone() for m in statistics))
