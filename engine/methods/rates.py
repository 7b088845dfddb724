"""Gradient steps: θ' = θ − α ∘ g.

LSLR (Antoniou et al. 2018, eq. 4) has a rate for each tensor and step [K, L], MAML (Finn et al.
2017, eq. 1) the same in all of them, Meta-SGD (Li et al. 2017, eq. 4) one for each number, [1, P].
What the inner loop leaves (ANIL, BOIL) has the rate 0, which is not learned.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

import kernels

HEAD = 2  # tensors of a classifier, its weight and bias: the last of a network's


class Rule(NamedTuple):
    """From the parameters before a step to those after it, and back."""

    update: ModuleType  # of a backend
    sizes: tuple[int, ...] | None  # of the segments; None: each number has its own rate

    def fwd(self, theta: Tensor, gradient: Tensor, rates: Tensor) -> Tensor:  # [T, P]
        """The adapted parameters."""
        return self.update.fwd(theta, gradient, rates, self.sizes)

    def reverse(
        self,
        carry: Tensor | None,  # [T, P] gradient of what comes after the step, may be written over
        product: Tensor | None,  # [T, P] what the step's own pass adds to it, likewise
        target: tuple[Tensor, Tensor] | None,  # weight [] and gradient [T, P] of its target loss
        gradient: Tensor,  # [T, P] of the support loss
        rates: Tensor | None,  # None: the gradient of the gradient is not wanted
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of ⟨d, adapted⟩, d the sum of what is given: d, which is theta's gradient too, that in
        the gradient, and what `of_rates` makes that in the rates of.
        """
        return self.update.reverse(carry, product, target, gradient, rates, self.sizes)

    def of_rates(self, parts: Tensor) -> Tensor:  # [T, L] or [T, P]
        return self.update.of_rates(parts, self.sizes)


def rule(rates: Tensor, sizes: tuple[int, ...]) -> Rule:
    """Of rates [K, L] or [K or 1, P], for θ of segments `sizes`: their width says which."""
    update = kernels.backend("update", rates)
    if rates.shape[1] == len(sizes):
        return Rule(update, sizes)
    if rates.shape[1] == sum(sizes):
        return Rule(update, None)
    raise ValueError(
        f"rates are {list(rates.shape)}: they end in one for each of {len(sizes)} tensors or for "
        f"each of {sum(sizes)} numbers"
    )


def initial(
    sizes: tuple[int, ...], steps: int, rate: float, per_number: bool, adapt: str, like: Tensor
) -> Tensor:  # [K, L] or [1, P]
    """Equal rates where the inner loop changes something."""
    row = adapted(sizes, per_number, adapt, like.dtype, like.device)
    return (rate * row).repeat(1 if per_number else steps, 1)


@cache
def adapted(
    sizes: tuple[int, ...], per_number: bool, adapt: str, dtype: torch.dtype, device: torch.device
) -> Tensor:  # [L] or [P]
    """1 where the inner loop changes a tensor or number, else 0; adapt: all, head or body."""
    body, head = float(adapt != "head"), float(adapt != "body")
    values = [body] * (len(sizes) - HEAD) + [head] * HEAD
    with torch.inference_mode(False):
        mask = torch.tensor(values, dtype=dtype, device="cpu")
        if per_number:
            mask = mask.repeat_interleave(torch.tensor(sizes, device="cpu"))
        return mask.to(device)


def by_tensor(rates: Tensor, sizes: tuple[int, ...]) -> Tensor:  # [K or 1, L]
    """Of each tensor the rate, or the mean of its numbers' rates."""
    if rates.shape[1] == len(sizes):
        return rates
    return torch.stack([part.mean(1) for part in rates.split(sizes, 1)], 1)
