"""θ' = θ − α[segment]·g over flat buffers, its gradient and tangents, and Adam; signatures as in
`kernels.plain.update`. Sums behind the rates are in one order: pieces of a segment, then segments.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 1024  # values of one segment that a program updates


@triton.jit
def descend_kernel(
    theta, grad, grad_dot, out,  # [T, P] each, rows `..._step` apart
    rates, rates_dot,  # [L], of grad and of grad_dot
    pieces,  # int32 [pieces, 3]: segment, from, to
    theta_step, grad_step, grad_dot_step, out_step,
    THETA: tl.constexpr, GRAD: tl.constexpr, GRAD_DOT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """theta − rates·grad − rates_dot·grad_dot, without what is off."""
    piece, task = tl.program_id(0), tl.program_id(1)
    segment = tl.load(pieces + 3 * piece)
    i = tl.load(pieces + 3 * piece + 1) + tl.arange(0, BLOCK)
    valid = i < tl.load(pieces + 3 * piece + 2)
    value = tl.zeros((BLOCK,), tl.float32)
    if THETA:
        value = tl.load(theta + task * theta_step + i, mask=valid)
    if GRAD:
        value -= tl.load(rates + segment) * tl.load(grad + task * grad_step + i, mask=valid)
    if GRAD_DOT:
        rate = tl.load(rates_dot + segment)
        value -= rate * tl.load(grad_dot + task * grad_dot_step + i, mask=valid)
    tl.store(out + task * out_step + i, value, mask=valid)


@triton.jit
def rates_kernel(
    d_theta, grad, d_grad,  # [T, P]
    rates,  # [L]
    pieces, part,  # int32 [pieces, 3], [pieces]
    tasks, d_theta_step, grad_step, d_grad_step,
    GRAD: tl.constexpr, RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_grad = −rates·d_theta, and −Σ d_theta·grad of each piece over the tasks."""
    piece = tl.program_id(0)
    segment = tl.load(pieces + 3 * piece)
    i = tl.load(pieces + 3 * piece + 1) + tl.arange(0, BLOCK)
    valid = i < tl.load(pieces + 3 * piece + 2)
    total = tl.zeros((BLOCK,), tl.float32)
    for task in range(tasks):
        d = tl.load(d_theta + task * d_theta_step + i, mask=valid, other=0.0)
        if GRAD:
            total += d * tl.load(grad + task * grad_step + i, mask=valid, other=0.0)
        if RATES:
            tl.store(d_grad + task * d_grad_step + i, -tl.load(rates + segment) * d, mask=valid)
    if GRAD:
        tl.store(part + piece, -tl.sum(total, 0))


@triton.jit
def segments_kernel(part, first, d_rates, BLOCK: tl.constexpr):
    """Σ of a segment's pieces, `first` [L + 1] being where they begin."""
    segment = tl.program_id(0)
    begin, end = tl.load(first + segment), tl.load(first + segment + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(part + i, mask=i < end, other=0.0)
    tl.store(d_rates + segment, tl.sum(total, 0))


@triton.jit
def adam_kernel(
    param, first, second, grad, param_out, first_out, second_out,
    rate, correction,  # [] each: lr / (1 − beta1ᵗ), 1 / √(1 − beta2ᵗ)
    n, beta1, beta2, clamp, eps,
    CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < n
    g = tl.load(grad + i, mask=valid, other=0.0)
    if CLAMP:
        g = tl.minimum(tl.maximum(g, -clamp), clamp)
    m = tl.load(first + i, mask=valid, other=0.0)
    m += (1 - beta1) * (g - m)
    v = beta2 * tl.load(second + i, mask=valid, other=0.0) + (1 - beta2) * g * g
    scale = tl.sqrt(v) * tl.load(correction) + eps
    value = tl.load(param + i, mask=valid, other=0.0) - tl.load(rate) * m / scale
    tl.store(param_out + i, value, mask=valid)
    tl.store(first_out + i, m, mask=valid)
    tl.store(second_out + i, v, mask=valid)


def fwd(theta: Tensor, grad: Tensor, rates: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return _descend(theta, rates, grad, None, None, sizes)


def bwd(
    d_theta: Tensor, grad: Tensor, rates: Tensor | None, sizes: tuple[int, ...]
) -> tuple[Tensor | None, Tensor]:
    return _gradients(d_theta, grad, rates, sizes)


def tan_fwd(grad, rates, theta_dot, grad_dot, rates_dot, sizes) -> Tensor | None:
    if grad_dot is None and rates_dot is None:
        return theta_dot
    return _descend(theta_dot, rates, grad_dot, rates_dot, grad, sizes)


def tan_bwd(d_theta, grad_dot, rates_dot, sizes) -> tuple[Tensor | None, Tensor | None]:
    return _gradients(d_theta, grad_dot, rates_dot, sizes)


def _descend(theta, rates, grad, rates_dot, grad_dot, sizes) -> Tensor:
    grad_dot = None if rates_dot is None else grad_dot
    like = next(x for x in (grad, grad_dot, theta) if x is not None)
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    pieces, _ = _pieces(sizes, like.device)
    rows = [like if x is None else x for x in (theta, grad, grad_dot)]
    descend_kernel[(len(pieces), len(like))](
        *rows, out,
        like if grad is None else rates, like if grad_dot is None else rates_dot, pieces,
        *(x.stride(0) for x in rows), out.stride(0),
        THETA=theta is not None, GRAD=grad is not None, GRAD_DOT=grad_dot is not None,
        BLOCK=PIECE,
    )  # fmt: skip
    return out


def _gradients(d_theta, grad, rates, sizes) -> tuple[Tensor | None, Tensor | None]:
    pieces, first = _pieces(sizes, d_theta.device)
    d_grad = None if rates is None else torch.empty_like(d_theta)
    d_rates = None if grad is None else d_theta.new_empty(len(sizes))
    part = d_theta.new_empty(len(pieces))
    rows = [d_theta, d_theta if grad is None else grad, d_theta if d_grad is None else d_grad]
    rates_kernel[(len(pieces),)](
        *rows, d_theta if rates is None else rates, pieces, part,
        len(d_theta), *(x.stride(0) for x in rows),
        GRAD=grad is not None, RATES=rates is not None, BLOCK=PIECE,
    )  # fmt: skip
    if grad is not None:
        segments_kernel[(len(sizes),)](part, first, d_rates, BLOCK=128)
    return d_grad, d_rates


@cache
def _pieces(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Segment and bounds of every piece [pieces, 3], and each segment's first piece [L + 1]."""
    pieces, first, start = [], [0], 0
    for segment, size in enumerate(sizes):
        end = start + size
        pieces += [(segment, at, min(at + PIECE, end)) for at in range(start, end, PIECE)]
        first.append(len(pieces))
        start = end
    return (
        torch.tensor(pieces, dtype=torch.int32, device=device),
        torch.tensor(first, dtype=torch.int32, device=device),
    )
