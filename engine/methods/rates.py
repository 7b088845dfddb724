"""Gradient steps: θ' = θ − α ∘ g.

LSLR (Antoniou et al. 2018, eq. 4) has a rate for each tensor and step [K, L], MAML (Finn et al.
2017, eq. 1) the same in all of them, Meta-SGD (Li et al. 2017, eq. 4) one for each number, [1, P].
"""

from __future__ import annotations

from torch import Tensor

import kernels
from engine.methods import Rule


def rule(rates: Tensor, sizes: tuple[int, ...]) -> Rule:
    """Of rates [K, L] or [K or 1, P], for θ of segments `sizes`: their width says which."""
    if rates.shape[1] == len(sizes):
        return kernels.backend("update", rates)
    if rates.shape[1] == sum(sizes):
        return PerNumber
    raise ValueError(
        f"rates are {list(rates.shape)}: they end in one for each of {len(sizes)} tensors or for "
        f"each of {sum(sizes)} numbers"
    )


class PerNumber:
    """A rate for each number of θ, with the interface of the kernels' update."""

    @staticmethod
    def fwd(theta: Tensor, gradient: Tensor, rates: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return theta.addcmul(rates, gradient, value=-1)

    @staticmethod
    def bwd(
        d_theta: Tensor, gradient: Tensor, rates: Tensor | None, sizes: tuple[int, ...]
    ) -> tuple[Tensor | None, Tensor]:
        d_gradient = None if rates is None else -d_theta * rates
        return d_gradient, -d_theta * gradient
