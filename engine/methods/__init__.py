"""What the inner loop does with a gradient, a file a rule; all of them behind `Rule`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rule(Protocol):
    """From the parameters before a step to those after it."""

    def fwd(
        self,
        theta: Tensor,  # [T, P]
        gradient: Tensor,  # [T, P] of the support loss
        rates: Tensor,  # of the step
        sizes: tuple[int, ...],
    ) -> Tensor:  # [T, P]
        """The adapted parameters."""

    def bwd(
        self,
        d_theta: Tensor,  # [T, P] gradient of the adapted parameters; theta has the same
        gradient: Tensor,  # [T, P]
        rates: Tensor | None,  # None: the gradient of the gradient is not wanted
        sizes: tuple[int, ...],
    ) -> tuple[Tensor | None, Tensor]:  # [T, P], and of the rates, one each task
        """The gradients of ⟨d_theta, adapted⟩ in the gradient and in the rates."""
