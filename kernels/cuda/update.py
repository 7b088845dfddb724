"""θ' = θ − α[segment]·g, or θ − α∘g, over flat buffers, and Adam; signatures as in
`kernels.plain.update`. The sums behind the gradient of the rates are in float64 and in one order.
"""

import math

import torch
from torch import Tensor

from kernels import checks, cuda
from kernels.cuda.tensors import expect, ops, stream
from kernels.plain.layout import vectors, whole
from kernels.plain.update import added
from kernels.plain.update import of_rates as of_rates
from kernels.tensors import Pieces, address, flat, left_out, matrix, pieces, update_rows


def fwd(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L]
    sizes: tuple[int, ...] | None,
) -> Tensor:  # [T, P]
    checks.tensors("cuda update", theta=theta, grad=grad, rates=rates)
    return _descend(theta, rates, grad, None, None, sizes)


def bwd(
    d_theta: Tensor,  # [T, P] gradient of θ'; θ has the same
    grad: Tensor,  # [T, P]
    rates: Tensor | None,  # [L]; None: the gradient of g is not wanted
    sizes: tuple[int, ...] | None,
) -> tuple[Tensor | None, Tensor]:  # of g [T, P], of the rates [T, L]
    checks.tensors("cuda update", d_theta=d_theta, grad=grad)
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
    rate: float | Tensor,  # [] on the device of param, where it is a tensor
    correction: float | Tensor,  # likewise
    beta1: float,
    beta2: float,
    clamp: float = 0.0,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = param.shape
    expect("update", param, first=(first, shape), second=(second, shape), grad=(grad, shape))
    operands = [whole(t) for t in (param, first, second, grad)]
    scales = [_scale(s, param) for s in (rate, correction)]
    results = tuple(torch.empty(shape, dtype=param.dtype, device=param.device) for _ in range(3))
    ops(param.dtype).adam(
        stream(param),
        param.numel(),
        *map(address, operands),
        clamp or math.inf,
        beta1,
        beta2,
        eps,
        *((0.0, s.data_ptr()) if isinstance(s, Tensor) else (s, 0) for s in scales),
        *map(address, results),
    )
    return results


def _scale(value: float | Tensor, like: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return value
    if value.dim() or value.device != like.device:
        raise ValueError(
            f"cuda update: rate and correction must be numbers, or [] on {like.device}, got "
            f"{list(value.shape)} on {value.device}"
        )
    return value.double()


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
    rows = update_rows("cuda", like, sizes)
    per_segment = {"rates": rates, "rates_dot": rates_dot}
    matrices = {"theta": theta, "grad": grad, "grad_dot": grad_dot}
    expect("update", like, optional, **flat(rows, sizes, per_segment, **matrices))
    theta, grad, grad_dot = map(vectors, (theta, grad, grad_dot))
    rates, rates_dot = whole(rates), whole(rates_dot)
    out = torch.empty(rows, dtype=like.dtype, device=like.device)
    ops(like.dtype).update_fwd(
        stream(like),
        rows[0],
        _tables(_pieces(sizes or rows[1:], like)),
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
    rows = update_rows("cuda", d_theta, sizes)
    operands = flat(rows, sizes, {"rates": rates}, d_theta=d_theta, grad=grad)
    expect("update", d_theta, ("grad", "rates"), **operands)
    d_theta, grad = vectors(d_theta), vectors(grad)
    rates = whole(rates)
    found, kind = _pieces(sizes or rows[1:], d_theta), {"device": d_theta.device}
    d_grad = d_rates = shares = None
    if rates is not None:
        d_grad = torch.empty(rows, dtype=d_theta.dtype, **kind)
    if grad is not None:
        width = rows[1] if sizes is None else len(sizes)
        d_rates = torch.empty((rows[0], width), dtype=d_theta.dtype, **kind)
        shares = torch.empty((rows[0], len(found.table)), dtype=torch.float64, **kind)
    ops(d_theta.dtype).update_bwd(
        stream(d_theta),
        rows[0],
        _tables(found),
        sizes is None,
        matrix(d_theta),
        matrix(grad),
        address(rates),
        matrix(d_grad),
        matrix(d_rates),
        address(shares),
    )
    return d_grad, d_rates


def _pieces(sizes: tuple[int, ...], like: Tensor) -> Pieces:
    return pieces(sizes, cuda.module.piece_values, like.device)


def _tables(found: Pieces) -> tuple[int, int, int, int]:
    """As the module reads them."""
    return len(found.table), len(found.first) - 1, address(found.table), address(found.first)
