"""Sums over a task's pixels, a tile at a time and then over the tiles in order.

A kernel that holds a tile of z, or of δ, in registers leaves its part [2, F]. A `settle_…` merges
the parts of a block of filters, and gives what follows from the sums: the statistics, or the
coefficients that the operands of `kernels.triton.operands` are built with. Of few tiles each
program of the launch that reads them does it for itself, and one of them stores them for later
launches (`stored` are its filters, of the others 0); of many tiles a launch of its own does, one
program a task and block of filters. GIVEN statistics are constants: what goes through them is 0,
whatever the sums are.
"""

import triton
import triton.language as tl

from kernels.triton.launch import COUNTS
from kernels.triton.operands import coefficient, row_of, slope_at


@triton.jit
def store_part(part, first, second, task, tile, tiles, f, filters):
    """Two sums of a tile → part [T, tiles, 2, F]."""
    at = part + (task * tiles + tile) * 2 * filters + f
    tl.store(at, first, mask=f < filters)
    tl.store(at + filters, second, mask=f < filters)


@triton.jit
def store_moments(
    value, where, valid, z, coef, part, task, tile, tiles, pixels, f, filters,
    DUAL: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Mean and M2 of a tile of z, `where` it is valid. DUAL: of its direction Σ z_dot and
    Σ z_dot(z − μ).
    """
    value = tl.where(valid, value, 0.0)
    total = tl.sum(value, 0)
    if DUAL:
        mean = tl.load(coef + (task * 8 + 3) * filters + f, mask=f < filters, other=0.0)
        centred = tl.load(z + where, mask=valid, other=0.0) - mean[None, :]
        store_part(part, total, tl.sum(value * centred, 0), task, tile, tiles, f, filters)
    else:
        mean = total / tl.minimum(pixels - tile * BM, BM)
        centred = tl.where(valid, value - mean[None, :], 0.0)
        store_part(part, mean, tl.sum(centred * centred, 0), task, tile, tiles, f, filters)


@triton.jit
def store_delta(
    dy, where, valid, x_hat, x_hat_dot, delta, gain, bias, slope,
    out, part, task, tile, tiles, f, filters, DUAL: tl.constexpr,
):  # fmt: skip
    """A tile of δ = slope·dy → out, and its Σδ, Σδx̂. DUAL: of a direction of dy, and
    Σ(δ_dot·x̂ + δ·x̂_dot).
    """
    x = tl.load(x_hat + where, mask=valid, other=0.0)
    g = tl.load(gain + f, mask=f < filters, other=0.0)[None, :]
    b = tl.load(bias + f, mask=f < filters, other=0.0)[None, :]
    value = tl.where(valid, dy * slope_at(x, g, b, slope), 0.0)
    tl.store(out + where, value, mask=valid)
    products = value * x
    if DUAL:
        x_dot = tl.load(x_hat_dot + where, mask=valid, other=0.0)
        products += tl.load(delta + where, mask=valid, other=0.0) * x_dot
    store_part(part, tl.sum(value, 0), tl.sum(products, 0), task, tile, tiles, f, filters)


@triton.jit
def merged(part, task, tiles, f, filters, BT: tl.constexpr):
    """Σ over the tiles of part [T, tiles, 2, F], in order."""
    first = tl.zeros(f.shape, tl.float32)
    second = tl.zeros(f.shape, tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        at = part + ((task * tiles + t) * 2 * filters)[:, None] + f[None, :]
        valid = (t < tiles)[:, None] & (f < filters)[None, :]
        first += tl.sum(tl.load(at, mask=valid, other=0.0), 0)
        second += tl.sum(tl.load(at + filters, mask=valid, other=0.0), 0)
    return first, second


@triton.jit
def settle_moments(
    part,  # [T, tiles, 2, F] mean and M2 of `per_tile` pixels each, the last one of what is left
    given_mean, given_var,  # [F] of a task, the next `given_step` further on
    coef, rstd,  # [T, 8, F], [T, F]
    mean_out, var_out,  # of the batch [T, F], tasks `out_step` apart
    stored, task, f, tiles, per_tile, pixels, filters, given_step, out_step, eps,
    GIVEN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Mean and 1/σ that normalise."""
    total = tl.zeros(f.shape, tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        at = part + ((task * tiles + t) * 2 * filters)[:, None] + f[None, :]
        valid = (t < tiles)[:, None] & (f < filters)[None, :]
        count = tl.minimum(pixels - t * per_tile, per_tile)
        total += tl.sum(tl.load(at, mask=valid, other=0.0) * count[:, None], 0)
    mean = total / pixels
    m2 = tl.zeros(f.shape, tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        at = part + ((task * tiles + t) * 2 * filters)[:, None] + f[None, :]
        valid = (t < tiles)[:, None] & (f < filters)[None, :]
        count = tl.minimum(pixels - t * per_tile, per_tile)
        apart = tl.where(valid, tl.load(at, mask=valid, other=0.0) - mean[None, :], 0.0)
        within = tl.load(at + filters, mask=valid, other=0.0)
        m2 += tl.sum(within + apart * apart * count[:, None], 0)
    var = m2 / pixels
    real = f < filters
    tl.store(mean_out + task * out_step + f, mean, mask=f < stored)
    tl.store(var_out + task * out_step + f, var, mask=f < stored)
    if GIVEN:
        mean = tl.load(given_mean + task * given_step + f, mask=real, other=0.0)
        var = tl.load(given_var + task * given_step + f, mask=real, other=1.0)
    r = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    tl.store(row_of(coef, 3, task, f, filters), mean, mask=f < stored)
    tl.store(rstd + task * filters + f, r, mask=f < stored)
    return mean, r


@triton.jit
def settle_sums(
    part,  # [T, tiles, 2, F] Σδ, Σδx̂
    sums,  # [T, 2, F]
    d_gain, d_bias,  # [F] of a task, the next `out_step` further on
    stored, task, f, tiles, filters, out_step, BT: tl.constexpr,
):  # fmt: skip
    """Σδ and Σδx̂, the gradients of bias and gain; or their directions."""
    s1, s2 = merged(part, task, tiles, f, filters, BT)
    real = f < stored
    tl.store(sums + task * 2 * filters + f, s1, mask=real)
    tl.store(sums + (task * 2 + 1) * filters + f, s2, mask=real)
    tl.store(d_gain + task * out_step + f, s2, mask=real)
    tl.store(d_bias + task * out_step + f, s1, mask=real)
    return s1, s2


@triton.jit
def settle_coefficients(
    s1, s2, coef, rstd,  # Σδ, Σδx̂; [T, 8, F], [T, F]
    gain,  # [F] of a task, the next `row_step` further on
    stored, task, f, pixels, filters, row_step, GIVEN: tl.constexpr,
):  # fmt: skip
    """a0, a1, a2 of dz."""
    real = f < filters
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)
    a0 = tl.load(gain + task * row_step + f, mask=real, other=0.0) * r
    a1 = tl.zeros(f.shape, tl.float32)
    a2 = tl.zeros(f.shape, tl.float32)
    if not GIVEN:
        share = 1.0 / pixels
        a1 = -a0 * r * s2 * share
        a2 = -a0 * s1 * share
    tl.store(row_of(coef, 0, task, f, filters), a0, mask=f < stored)
    tl.store(row_of(coef, 1, task, f, filters), a1, mask=f < stored)
    tl.store(row_of(coef, 2, task, f, filters), a2, mask=f < stored)
    return a0, a1, a2


@triton.jit
def settle_moments_dot(
    part,  # [T, tiles, 2, F] Σ z_dot, Σ z_dot(z − μ)
    coef, rstd, q,  # [T, 8, F], [T, F], [T, F]
    stored, task, f, tiles, pixels, filters, GIVEN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """μ_dot and q = mean(x̂·z_dot)."""
    real = f < filters
    mean_dot = tl.zeros(f.shape, tl.float32)
    slope = tl.zeros(f.shape, tl.float32)
    if not GIVEN:
        first, second = merged(part, task, tiles, f, filters, BT)
        share = 1.0 / pixels
        mean_dot = first * share
        slope = second * tl.load(rstd + task * filters + f, mask=real, other=0.0) * share
    tl.store(row_of(coef, 7, task, f, filters), mean_dot, mask=f < stored)
    tl.store(q + task * filters + f, slope, mask=f < stored)
    return mean_dot, slope


@triton.jit
def settle_coefficients_dot(
    s1_dot, s2_dot, coef, rstd, q, sums,  # [T, 8, F], [T, F], [T, F], [T, 2, F]
    gain_dot,  # [T, F], with GAIN_DOT
    stored, task, f, pixels, filters, GIVEN: tl.constexpr, GAIN_DOT: tl.constexpr,
):  # fmt: skip
    """b1, b2, b4 of the direction of dz."""
    real = f < filters
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)
    rq = r * tl.load(q + task * filters + f, mask=real, other=0.0)
    a0 = coefficient(coef, 0, task, f, filters)
    a1 = coefficient(coef, 1, task, f, filters)
    a2 = coefficient(coef, 2, task, f, filters)
    share = 1.0 / pixels
    b1 = -rq * a0
    b2 = -2 * rq * a1 - a0 * r * s2_dot * share
    b4 = -rq * a2 - a0 * s1_dot * share
    if GAIN_DOT:
        a0_dot = tl.load(gain_dot + task * filters + f, mask=real, other=0.0) * r
        s1 = tl.load(sums + task * 2 * filters + f, mask=real, other=0.0)
        s2 = tl.load(sums + (task * 2 + 1) * filters + f, mask=real, other=0.0)
        b1 += a0_dot
        b2 -= a0_dot * r * s2 * share
        b4 -= a0_dot * s1 * share
    if GIVEN:
        b2 = tl.zeros(f.shape, tl.float32)
        b4 = tl.zeros(f.shape, tl.float32)
    tl.store(row_of(coef, 4, task, f, filters), b1, mask=f < stored)
    tl.store(row_of(coef, 5, task, f, filters), b2, mask=f < stored)
    tl.store(row_of(coef, 6, task, f, filters), b4, mask=f < stored)
    return b1, b2, b4


@triton.jit(do_not_specialize=COUNTS)
def moments_kernel(
    part, given_mean, given_var, coef, rstd, mean_out, var_out,
    tiles, per_tile, pixels, filters, given_step, out_step, eps,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task, f = tl.program_id(0), tl.program_id(1) * BF + tl.arange(0, BF)
    settle_moments(
        part, given_mean, given_var, coef, rstd, mean_out, var_out,
        filters, task, f, tiles, per_tile, pixels, filters, given_step, out_step, eps, GIVEN, BT,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def bwd_sums_kernel(
    part, coef, rstd, gain, sums, d_gain, d_bias,
    tiles, pixels, filters, row_step, out_step,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task, f = tl.program_id(0), tl.program_id(1) * BF + tl.arange(0, BF)
    s1, s2 = settle_sums(part, sums, d_gain, d_bias, filters, task, f, tiles, filters, out_step, BT)
    settle_coefficients(
        s1, s2, coef, rstd, gain, filters, task, f, pixels, filters, row_step, GIVEN
    )


@triton.jit(do_not_specialize=COUNTS)
def tan_fwd_sums_kernel(
    part, coef, rstd, q, tiles, pixels, filters,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task, f = tl.program_id(0), tl.program_id(1) * BF + tl.arange(0, BF)
    settle_moments_dot(part, coef, rstd, q, filters, task, f, tiles, pixels, filters, GIVEN, BT)


@triton.jit(do_not_specialize=COUNTS)
def tan_bwd_sums_kernel(
    part, coef, rstd, q, sums, gain_dot, sums_dot, d_gain_dot, d_bias_dot,
    tiles, pixels, filters, out_step,
    GIVEN: tl.constexpr, GAIN_DOT: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task, f = tl.program_id(0), tl.program_id(1) * BF + tl.arange(0, BF)
    s1_dot, s2_dot = settle_sums(
        part, sums_dot, d_gain_dot, d_bias_dot, filters, task, f, tiles, filters, out_step, BT
    )
    settle_coefficients_dot(
        s1_dot, s2_dot, coef, rstd, q, sums, gain_dot,
        filters, task, f, pixels, filters, GIVEN, GAIN_DOT,
    )  # fmt: skip
