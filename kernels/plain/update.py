"""The inner update θ' = θ − α[segment]·g over flat buffers, where `rates` has one entry a segment,
or θ − α∘g, where `sizes` is None and `rates` has one a number; and the outer one.
"""

import torch
from torch import Tensor

from kernels.plain.layout import total


def spread(rates: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    """One rate a segment [L] → one a parameter [P]."""
    if sizes is None:
        return rates
    return torch.cat([rate.expand(size) for rate, size in zip(rates, sizes, strict=True)])


def fwd(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L], or [P]
    sizes: tuple[int, ...] | None,
) -> Tensor:  # [T, P]
    return torch.addcmul(theta, spread(rates, sizes), grad, value=-1)


def bwd(
    d_theta: Tensor,  # [T, P] gradient of θ'; θ has the same
    grad: Tensor,  # [T, P]
    rates: Tensor | None,  # [L], or [P]; None: the gradient of g is not wanted
    sizes: tuple[int, ...] | None,
) -> tuple[Tensor | None, Tensor]:  # of g [T, P], of the rates [T, L], or [T, P]
    d_grad = None if rates is None else -d_theta * spread(rates, sizes)
    return d_grad, -_per_segment(d_theta * grad, sizes)


def reverse(
    carry: Tensor | None,  # [T, P], which may be written over
    product: Tensor | None,  # [T, P], likewise
    target: tuple[Tensor, Tensor] | None,  # a weight [] of what follows it [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor | None,  # as of `bwd`
    sizes: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor | None, Tensor]:  # [T, P], of g [T, P], parts of those of the rates
    """A step of a reverse sweep: the sum of its three terms without those that are None, and `bwd`
    of it. `of_rates` makes the rates' gradient of the parts, which no other step waits for.
    """
    d_theta = added(carry, product, target)
    return d_theta, *bwd(d_theta, grad, rates, sizes)


def of_rates(parts: Tensor, sizes: tuple[int, ...] | None) -> Tensor:  # [T, L], or [T, P]
    """The gradient of the rates, of the parts of `reverse`."""
    return parts


def added(
    carry: Tensor | None, product: Tensor | None, target: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The sum of the terms of `reverse`."""
    if carry is not None and product is not None:
        carry = carry.add_(product)
    elif carry is None:
        carry = product
    if target is None:
        return carry
    weight, gradient = target
    return weight * gradient if carry is None else carry.addcmul_(weight, gradient)


def tan_fwd(grad, rates, theta_dot, grad_dot, rates_dot, sizes) -> Tensor | None:
    return total(
        theta_dot,
        None if grad_dot is None else -spread(rates, sizes) * grad_dot,
        None if rates_dot is None else -spread(rates_dot, sizes) * grad,
    )


def tan_bwd(d_theta, grad_dot, rates_dot, sizes) -> tuple[Tensor | None, Tensor | None]:
    """Directions of both results of `bwd`, for a fixed `d_theta`."""
    d_grad_dot = None if rates_dot is None else -d_theta * spread(rates_dot, sizes)
    if grad_dot is None:
        return d_grad_dot, None
    return d_grad_dot, -_per_segment(d_theta * grad_dot, sizes)


def _per_segment(values: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    """[T, P] → sums [T, L], or the values themselves"""
    if sizes is None:
        return values
    return torch.stack([segment.sum(1) for segment in values.split(sizes, 1)], 1)


def adam(
    param: Tensor,
    first: Tensor,  # moments
    second: Tensor,
    grad: Tensor,
    rate: float | Tensor,  # lr / (1 − beta1ᵗ); [] on the device of param, where it is a tensor
    correction: float | Tensor,  # 1 / √(1 − beta2ᵗ); likewise
    beta1: float,
    beta2: float,
    clamp: float = 0.0,  # bound on each entry of grad, 0: none
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:  # param, first, second
    """Adam's step t (Kingma & Ba 2015, algorithm 1), as `torch.optim.Adam`, from state to state."""
    grad = grad.clamp(-clamp, clamp) if clamp else grad
    first = torch.lerp(first, grad, 1 - beta1)
    second = torch.addcmul(second * beta2, grad, grad, value=1 - beta2)
    scale = second.sqrt().mul_(correction).add_(eps)
    return torch.addcdiv(param, first * -rate, scale), first, second
