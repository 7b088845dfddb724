"""θ' = θ − α[segment]·g over flat buffers. `rates` has one entry a segment."""

import torch
from torch import Tensor

from kernels.plain.layout import total


def spread(rates: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """One rate a segment [L] → one a parameter [P]."""
    return torch.cat([rate.expand(size) for rate, size in zip(rates, sizes, strict=True)])


def fwd(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L]
    sizes: tuple[int, ...],
) -> Tensor:  # [T, P]
    return torch.addcmul(theta, spread(rates, sizes), grad, value=-1)


def bwd(
    d_theta: Tensor,  # [T, P] gradient of θ'; θ has the same
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L]
    sizes: tuple[int, ...],
) -> tuple[Tensor, Tensor]:  # of g [T, P], of the rates [L]
    per_segment = (d_theta * grad).sum(0).split(sizes)
    d_rates = -torch.stack([segment.sum() for segment in per_segment])
    return -d_theta * spread(rates, sizes), d_rates


def tan_fwd(grad, rates, theta_dot, grad_dot, rates_dot, sizes) -> Tensor | None:
    return total(
        theta_dot,
        None if grad_dot is None else -spread(rates, sizes) * grad_dot,
        None if rates_dot is None else -spread(rates_dot, sizes) * grad,
    )


def tan_bwd(d_theta, grad_dot, rates_dot, sizes) -> tuple[Tensor | None, Tensor | None]:
    """Directions of the gradients of g and of the rates, for a fixed `d_theta`."""
    d_grad_dot = None if rates_dot is None else -d_theta * spread(rates_dot, sizes)
    d_rates_dot = None
    if grad_dot is not None:
        segments = (d_theta * grad_dot).sum(0).split(sizes)
        d_rates_dot = -torch.stack([segment.sum() for segment in segments])
    return d_grad_dot, d_rates_dot
