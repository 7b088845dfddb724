"""θ' = θ − α[segment]·g, or θ − α∘g, over flat buffers, its gradient, tangents, Adam; signatures in
`kernels.plain.update`. Sums behind the rates are in one order: pieces of a segment, then segments.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.plain.layout import vectors, whole
from kernels.tensors import flat, left_out, pieces, update_rows
from kernels.triton.launch import COUNTS
from kernels.triton.rows import new_rows
from kernels.triton.tensors import countable, expect, near

PIECE = 1024  # values of one segment that a program updates


@triton.jit
def rates_of(rates, segment, i, valid, EACH: tl.constexpr):
    return tl.load(rates + i, mask=valid, other=0.0) if EACH else tl.load(rates + segment)


@triton.jit(do_not_specialize=COUNTS)
def descend_kernel(
    theta, grad, grad_dot, out,  # [T, P] each, rows `..._step` apart
    rates, rates_dot,  # [L], or with EACH [P], of grad and of grad_dot
    pieces,  # int32 [pieces, 3]: segment, from, to
    theta_step, grad_step, grad_dot_step, out_step,
    THETA: tl.constexpr, GRAD: tl.constexpr, GRAD_DOT: tl.constexpr, EACH: tl.constexpr,
    BLOCK: tl.constexpr,
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
        rate = rates_of(rates, segment, i, valid, EACH)
        value -= rate * tl.load(grad + task * grad_step + i, mask=valid)
    if GRAD_DOT:
        rate = rates_of(rates_dot, segment, i, valid, EACH)
        value -= rate * tl.load(grad_dot + task * grad_dot_step + i, mask=valid)
    tl.store(out + task * out_step + i, value, mask=valid)


@triton.jit(do_not_specialize=COUNTS)
def rates_kernel(
    carry, product, target, grad, total, d_grad,  # [T, P] each, rows `..._step` apart
    weight, rates,  # [], [L], or with EACH [P]
    pieces, part,  # int32 [pieces, 3], [T, pieces], or with EACH d_rates [T, P]
    carry_step, product_step, target_step, grad_step, total_step, d_grad_step, part_step,
    CARRY: tl.constexpr, PRODUCT: tl.constexpr, TARGET: tl.constexpr,
    GRAD: tl.constexpr, RATES: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of d_theta = carry + product + weight·target, without what is off: d_grad = −rates·d_theta,
    and −Σ d_theta·grad of each piece, or −d_theta·grad; and of more than a carry the sum itself.
    """
    piece, task = tl.program_id(0), tl.program_id(1)
    segment = tl.load(pieces + 3 * piece)
    i = tl.load(pieces + 3 * piece + 1) + tl.arange(0, BLOCK)
    valid = i < tl.load(pieces + 3 * piece + 2)
    d = tl.zeros((BLOCK,), tl.float32)
    if CARRY:
        d = tl.load(carry + task * carry_step + i, mask=valid, other=0.0)
    if PRODUCT:
        d += tl.load(product + task * product_step + i, mask=valid, other=0.0)
    if TARGET:
        d += tl.load(weight) * tl.load(target + task * target_step + i, mask=valid, other=0.0)
    if PRODUCT or TARGET:
        tl.store(total + task * total_step + i, d, mask=valid)
    if RATES:
        rate = rates_of(rates, segment, i, valid, EACH)
        tl.store(d_grad + task * d_grad_step + i, -rate * d, mask=valid)
    if GRAD:
        products = d * tl.load(grad + task * grad_step + i, mask=valid, other=0.0)
        if EACH:
            tl.store(part + task * part_step + i, -products, mask=valid)
        else:
            tl.store(part + task * part_step + piece, -tl.sum(products, 0))


@triton.jit(do_not_specialize=COUNTS)
def segments_kernel(part, first, d_rates, pieces, BLOCK: tl.constexpr):
    """Σ of a segment's pieces [T, pieces] → [T, L], `first` [L + 1] being where they begin."""
    segment, task = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(first + segment), tl.load(first + segment + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(part + task * pieces + i, mask=i < end, other=0.0)
    tl.store(d_rates + task * tl.num_programs(0) + segment, tl.sum(total, 0))


@triton.jit(do_not_specialize=COUNTS)
def adam_kernel(
    param, first, second, grad, param_out, first_out, second_out,
    rate, correction,  # [] each
    n, fresh1, beta2, fresh2, clamp, eps,  # 1 − beta1, beta2, 1 − beta2
    CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = i < n
    g = tl.load(grad + i, mask=valid, other=0.0)
    if CLAMP:
        g = tl.where(g > clamp, clamp, tl.where(g < -clamp, -clamp, g))
    m = tl.load(first + i, mask=valid, other=0.0)
    m += fresh1 * (g - m)
    v = beta2 * tl.load(second + i, mask=valid, other=0.0) + fresh2 * g * g
    scale = tl.sqrt_rn(v) * tl.load(correction).to(tl.float32) + eps
    step = tl.div_rn(tl.load(rate).to(tl.float32) * m, scale)
    value = tl.load(param + i, mask=valid, other=0.0) - step
    tl.store(param_out + i, value, mask=valid)
    tl.store(first_out + i, m, mask=valid)
    tl.store(second_out + i, v, mask=valid)


def fwd(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L]
    sizes: tuple[int, ...] | None,
) -> Tensor:  # [T, P]
    checks.tensors("triton update", theta=theta, grad=grad, rates=rates)
    return _descend(theta, rates, grad, None, None, sizes)


def bwd(
    d_theta: Tensor,  # [T, P] gradient of θ'; θ has the same
    grad: Tensor,  # [T, P]
    rates: Tensor | None,  # [L]; None: the gradient of g is not wanted
    sizes: tuple[int, ...] | None,
) -> tuple[Tensor | None, Tensor]:  # of g [T, P], of the rates [T, L]
    checks.tensors("triton update", d_theta=d_theta, grad=grad)
    return _gradients(d_theta, grad, rates, sizes)


def reverse(carry, product, target, grad, rates, sizes) -> tuple[Tensor, Tensor | None, Tensor]:
    checks.tensors("triton update", grad=grad)
    along = None if target is None else target[1]
    terms = {"carry": carry, "product": product, "target": along}
    _expect(grad, sizes, ("rates", *terms), terms | {"grad": grad}, {"rates": rates})
    return _shares(carry, product, target, grad, rates, sizes)


def of_rates(parts: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    if sizes is None:
        return parts
    _, first = pieces(sizes, PIECE, parts.device)
    d_rates = parts.new_empty(len(parts), len(sizes))
    segments_kernel[(len(sizes), len(parts))](parts, first, d_rates, parts.shape[1], BLOCK=128)
    return d_rates


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
    rate: float | Tensor,  # lr / (1 − beta1ᵗ); [] on the device of param, where it is a tensor
    correction: float | Tensor,  # 1 / √(1 − beta2ᵗ); likewise
    beta1: float,
    beta2: float,
    clamp: float = 0.0,
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = param.shape
    expect("update", param, first=(first, shape), second=(second, shape), grad=(grad, shape))
    countable("update", (1, *shape))
    scales = (s if isinstance(s, Tensor) else param.new_full((), s) for s in (rate, correction))
    results = tuple(torch.empty(shape, dtype=param.dtype, device=param.device) for _ in range(3))
    adam_kernel[(triton.cdiv(param.numel(), PIECE),)](
        *(whole(t) for t in (param, first, second, grad)), *results, *scales,
        param.numel(), 1 - beta1, beta2, 1 - beta2, clamp, eps, CLAMP=clamp > 0, BLOCK=PIECE,
    )  # fmt: skip
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
    rates = None if grad is None else rates
    grad_dot = None if rates_dot is None else grad_dot
    like = grad if grad is not None else grad_dot
    rows = {"theta": theta, "grad": grad, "grad_dot": grad_dot}
    _expect(like, sizes, optional, rows, {"rates": rates, "rates_dot": rates_dot})
    table, _ = pieces(sizes or like.shape[1:], PIECE, like.device)
    out = new_rows(like, *like.shape)
    theta, grad, grad_dot = operands = [near(vectors(x)) for x in rows.values()]
    rates, rates_dot = whole(rates), whole(rates_dot)
    operands = [like if x is None else x for x in operands]
    descend_kernel[(len(table), len(like))](
        *operands, out, like if rates is None else rates, like if rates_dot is None else rates_dot,
        table, *(x.stride(0) for x in operands), out.stride(0),
        THETA=theta is not None, GRAD=grad is not None, GRAD_DOT=grad_dot is not None,
        EACH=sizes is None, BLOCK=PIECE,
    )  # fmt: skip
    return out


def _gradients(
    d_theta: Tensor, grad: Tensor | None, rates: Tensor | None, sizes: tuple[int, ...] | None
) -> tuple[Tensor | None, Tensor | None]:
    """−d_theta·rates, and −Σ d_theta·grad of each task's segments, or −d_theta∘grad; `None` for
    what misses an operand.
    """
    _expect(d_theta, sizes, ("grad", "rates"), {"d_theta": d_theta, "grad": grad}, {"rates": rates})
    if grad is rates is None:
        return None, None
    _, d_grad, parts = _shares(d_theta, None, None, grad, rates, sizes)
    return d_grad, None if grad is None else of_rates(parts, sizes)


def _shares(
    carry: Tensor | None,
    product: Tensor | None,
    target: tuple[Tensor, Tensor] | None,
    grad: Tensor | None,
    rates: Tensor | None,
    sizes: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `reverse`, of what was found to fit; what misses an operand is `None`."""
    weight, along = target or (None, None)
    rows = carry, product, along, grad
    like = next(row for row in rows if row is not None)
    table, _ = pieces(sizes or like.shape[1:], PIECE, like.device)
    tasks, sums, each = len(like), product is not None or along is not None, sizes is None
    total = new_rows(like, *like.shape) if sums else carry
    d_grad = None if rates is None else new_rows(like, *like.shape)
    parts = None if grad is None else like.new_empty(tasks, like.shape[1] if each else len(table))
    found = [*(near(vectors(x)) for x in rows), total, d_grad, parts]
    *operands, part = [like if x is None else x for x in found]
    rates_kernel[(len(table), tasks)](
        *operands, *(like if x is None else whole(x) for x in (weight, rates)), table, part,
        *(x.stride(0) for x in (*operands, part)),
        CARRY=carry is not None, PRODUCT=product is not None, TARGET=along is not None,
        GRAD=grad is not None, RATES=rates is not None, EACH=each, BLOCK=PIECE,
    )  # fmt: skip
    return total, d_grad, parts


def _expect(
    like: Tensor,
    sizes: tuple[int, ...] | None,
    optional: tuple[str, ...],
    matrices: dict,
    vectors: dict,
) -> None:
    rows = update_rows("triton", like, sizes)
    if 0 in rows:
        raise ValueError(f"triton update: nothing to update, {list(rows)} tasks and parameters")
    expect("update", like, optional, **flat(rows, sizes, vectors, **matrices))
    countable("update", rows)
