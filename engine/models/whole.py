"""Networks that see a task whole: what a method with one of its own has in place of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from engine.episodes import Episode, mapped
from engine.models.interface import Moments, Params
from engine.models.module import Module


class TaskNetwork(nn.Module):
    """In ordinary torch, of one task. Random numbers are drawn by `loss` alone, of torch's own
    generators; the network is otherwise the same in training and after it.
    """

    # Numbers that `learn` gives a set, and each image or class of it.
    remembered_sizes: tuple[int, int]
    random = False  # whether `loss` draws any

    def learn(
        self,
        x: Tensor,  # [n, C, H, W]
        labels: Tensor,  # [n], each class from 0 on at least once
    ) -> Tensor:  # [M]
        """What it remembers of a support set."""
        raise NotImplementedError

    def answer(self, remembered: Tensor, x: Tensor, ways: int) -> Tensor:  # logits [N, ways]
        raise NotImplementedError

    def loss(
        self, x: Tensor, labels: Tensor, target_x: Tensor, target_y: Tensor, second_order: bool
    ) -> tuple[Tensor, Tensor]:  # [], logits [m, W]
        """What the outer loop minimises."""
        raise NotImplementedError

    def forward(
        self,
        support_x: Tensor | None = None,
        support_y: Tensor | None = None,
        target_x: Tensor | None = None,
        target_y: Tensor | None = None,
        remembered: Tensor | None = None,
        ways: int | None = None,
        second_order: bool = True,
    ) -> Any:
        """The one of these that the arguments are of: batch norm is told of by a call."""
        if target_y is not None:
            return self.loss(support_x, support_y, target_x, target_y, second_order)
        if remembered is None:
            return self.learn(support_x, support_y)
        return self.answer(remembered, target_x, ways)


class Whole(Module):
    """A `Model` of a `TaskNetwork`: θ is all of its parameters. There are no rows, no rates of any
    meaning, and statistics of batch norm as every `Module` has them.
    """

    norm_widths = ()  # of gains and biases apart from θ

    def __init__(self, make: Callable[[], TaskNetwork]):
        """`make` draws the first weights."""
        super().__init__(_drawn(make, 0), self._no_criterion, adapt=lambda name: True)
        self._make = make

    @staticmethod
    def _no_criterion(output: Any, y: Any) -> Tensor:
        raise NotImplementedError("the network has its own")

    def init(
        self,
        steps: int,
        norm_rows: int,
        inner_rate: float,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Params:
        made = _drawn(self._make, generator.initial_seed())
        theta = torch.cat([p.detach().flatten() for p in made.parameters()])
        theta = theta.to(generator.device, dtype)
        return Params(
            theta,
            theta.new_empty(norm_rows, 0),
            theta.new_full((steps, len(self.sizes)), inner_rate),
        )

    @property
    def random(self) -> bool:
        return self.module.random

    def tied(self, gradient: Params) -> Params:
        return gradient

    def during(self, episode: Episode, keeps: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def task_block(self, episode: Episode, keeps: bool) -> int:
        return 1

    def run(
        self,
        theta: Tensor,  # [P]
        given: Moments | None = None,  # [S]
        **inputs: Any,  # of `TaskNetwork.forward`, of one task
    ) -> tuple[Any, Tensor, Tensor]:  # what it gives, batch mean and unbiased variance [S]
        with torch.inference_mode(False), torch.no_grad():
            inputs, given = mapped(_plain, (inputs, given))
            return self.task(theta.clone(), theta.new_empty(0), inputs, given)

    def differentiated(
        self,
        theta: Tensor,  # [P]
        given: Moments | None = None,  # [S]
        **inputs: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Loss [], logits [m, W], gradient [P], batch mean and unbiased variance [S]."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf, (inputs, given) = theta.clone().requires_grad_(), mapped(_plain, (inputs, given))
            (loss, logits), *moments = self.task(leaf, leaf.new_empty(0), inputs, given)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), logits.detach(), gradient, *moments

    def _run(self, x: dict[str, Any], call: Callable) -> Any:
        return call(**x)  # what it raises is the engine's own mistake, not its user's


def _plain(tensor: Tensor) -> Tensor:
    """Not of inference mode, so that autograd may keep it."""
    return tensor.clone() if tensor.is_inference() else tensor


def _drawn(make: Callable[[], TaskNetwork], seed: int) -> TaskNetwork:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return make()
