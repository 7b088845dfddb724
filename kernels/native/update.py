"""θ' = θ − α[segment]·g, or θ − α∘g, over flat buffers, and Adam; signatures as in
`kernels.plain.update`. The sums behind the gradient of the rates are in float64 and in one order,
whatever the number of threads.
"""

import math

import torch
from torch import Tensor

from kernels import checks
from kernels.native.tensors import expect, ops
from kernels.plain.layout import vectors, whole
from kernels.plain.update import added
from kernels.plain.update import of_rates as of_rates
from kernels.tensors import address, flat, left_out, matrix, update_rows
from kernels.threads import threads


def fwd(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L]
    sizes: tuple[int, ...] | None,
) -> Tensor:  # [T, P]
    checks.tensors("native update", theta=theta, grad=grad, rates=rates)
    return _descend(theta, rates, grad, None, None, sizes)


def bwd(
    d_theta: Tensor,  # [T, P] gradient of θ'; θ has the same
    grad: Tensor,  # [T, P]
    rates: Tensor | None,  # [L]; None: the gradient of g is not wanted
    sizes: tuple[int, ...] | None,
) -> tuple[Tensor | None, Tensor]:  # of g [T, P], of the rates [T, L]
    checks.tensors("native update", d_theta=d_theta, grad=grad)
    return _gradients(d_theta, grad, rates, sizes)


def reverse(carry, product, target, grad, rates, sizes) -> tuple[Tensor, Tensor | None, Tensor]:
    d_theta = added(carry, product, target)
    return d_theta, *bwd(d_theta, grad, rates, sizes)


def tan_fwd(grad, rates, theta_dot, grad_dot, rates_dot, sizes) -> Tensor | None:
    if grad_dot is None and rates_dot is None:
        return theta_dot
    return _descend(theta_dot, rates, grad_dot, rates_dot, grad, sizes)


def tan_bwd(d_theta, grad_dot, rates_dot, sizes) -> tuple[Tensor | None, Tensor | None]:
    """Directions of both results of `bwd`, for a fixed `d_theta`."""
    return _gradients(d_theta, grad_dot, rates_dot, sizes)


def adam(
    param: Tensor,
    first: Tensor,
    second: Tensor,
    grad: Tensor,
    rate: float | Tensor,
    correction: float | Tensor,
    beta1: float,
    beta2: float,
    clamp: float = 0.0,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = param.shape
    expect("update", param, first=(first, shape), second=(second, shape), grad=(grad, shape))
    operands = [whole(t) for t in (param, first, second, grad)]
    results = tuple(torch.empty(shape, dtype=param.dtype, device=param.device) for _ in range(3))
    ops(param.dtype).adam(
        param.numel(),
        threads(),
        *map(address, operands),
        clamp or math.inf,
        beta1,
        beta2,
        float(rate),
        float(correction),
        eps,
        *map(address, results),
    )
    return results


def _descend(
    theta: Tensor | None,  # None: 0
    rates: Tensor,
    grad: Tensor | None,
    rates_dot: Tensor | None,
    grad_dot: Tensor | None,
    sizes: tuple[int, ...] | None,
) -> Tensor:
    """theta − rates·grad − rates_dot·grad_dot, without what misses `grad` or `rates_dot`."""
    optional = left_out(grad, rates_dot)
    if grad is None:
        rates = None
    if rates_dot is None:
        grad_dot = None
    like = grad if grad is not None else grad_dot
    rows = update_rows("native", like, sizes)
    per_segment = {"rates": rates, "rates_dot": rates_dot}
    matrices = {"theta": theta, "grad": grad, "grad_dot": grad_dot}
    expect("update", like, optional, **flat(rows, sizes, per_segment, **matrices))
    theta, grad, grad_dot = map(vectors, (theta, grad, grad_dot))
    rates, rates_dot = whole(rates), whole(rates_dot)
    out = torch.empty(rows, dtype=like.dtype, device=like.device)
    ops(like.dtype).update_fwd(
        sizes or rows[1:],
        rows[0],
        threads(),
        sizes is None,
        matrix(theta),
        address(rates),
        matrix(grad),
        address(rates_dot),
        matrix(grad_dot),
        matrix(out),
    )
    return out


def _gradients(
    d_theta: Tensor, grad: Tensor | None, rates: Tensor | None, sizes: tuple[int, ...] | None
) -> tuple[Tensor | None, Tensor | None]:
    """−d_theta·rates, and −Σ d_theta·grad of each task's segments, or −d_theta∘grad; `None` for
    what misses an operand.
    """
    rows = update_rows("native", d_theta, sizes)
    operands = flat(rows, sizes, {"rates": rates}, d_theta=d_theta, grad=grad)
    expect("update", d_theta, ("grad", "rates"), **operands)
    d_theta, grad = vectors(d_theta), vectors(grad)
    rates = whole(rates)
    d_grad = (
        None if rates is None else torch.empty(rows, dtype=d_theta.dtype, device=d_theta.device)
    )
    width = rows[1] if sizes is None else len(sizes)
    d_rates = None if grad is None else d_theta.new_zeros((rows[0], width))
    ops(d_theta.dtype).update_bwd(
        sizes or rows[1:],
        rows[0],
        threads(),
        sizes is None,
        matrix(d_theta),
        matrix(grad),
        address(rates),
        matrix(d_grad),
        matrix(d_rates),
    )
    return d_grad, d_rates
