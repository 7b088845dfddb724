"""Any network by plain autograd: the way that everybody writes it first.

For each task of a batch the inner loop makes new parameters with `create_graph`, and the outer loss
is differentiated through all of it. Gains and biases of batch norm have a row a step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.episodes import Episode


class PlainModule(nn.Module):
    """`adapted`, `affine`: names of what the inner loop changes, and of what has a row a step."""

    def __init__(
        self,
        module: nn.Module,
        criterion: Callable[[Any, Tensor], Tensor],
        adapted: list[str],
        affine: list[str],
        rates: Tensor,  # [K, L] at the start
    ):
        super().__init__()
        self.module, self.criterion, self.adapted, self.affine = module, criterion, adapted, affine
        values = dict(module.named_parameters())
        self.rates = nn.Parameter(rates.clone())
        self.rows = nn.ParameterList(
            values[name].detach().expand(len(rates), -1).clone() for name in affine
        )
        for name in affine:
            values[name].requires_grad_(False)

    def backward(self, episode: Episode, weights: list[float]) -> Tensor:
        """The mean loss of the tasks, whose graphs are freed one after the other."""
        total = self.rates.new_zeros(())
        with sdpa_kernel(SDPBackend.MATH):  # of fused attention there is no second derivative
            for task in zip(*vars(episode).values(), strict=True):
                loss = self.task(*task, weights) / episode.tasks
                loss.backward()
                total += loss.detach()
        return total

    def task(self, support_x, support_y, target_x, target_y, weights: list[float]) -> Tensor:
        fast = {name: self.module.get_parameter(name) for name in self.adapted}
        loss = self.rates.new_zeros(())
        for k, weight in enumerate(weights):
            row = {name: rows[k] for name, rows in zip(self.affine, self.rows, strict=True)}
            inner = self.criterion(functional_call(self.module, fast | row, support_x), support_y)
            gradients = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
            steps = zip(fast.items(), gradients, self.rates[k], strict=True)
            fast = {name: value - rate * gradient for (name, value), gradient, rate in steps}
            if weight:
                output = functional_call(self.module, fast | row, target_x)
                loss = loss + weight * self.criterion(output, target_y)
        return loss

    def gradients(self) -> list[Tensor]:
        """Of each adapted tensor, of the rows [K, G] and of the rates [K, L]."""
        rows = [self.rates.new_empty(len(self.rates), 0), *(row.grad for row in self.rows)]
        adapted = [self.module.get_parameter(name).grad for name in self.adapted]
        return [*adapted, torch.cat(rows, 1), self.rates.grad]
