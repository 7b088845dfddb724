"""Batch norm, leaky ReLU and 2×2 max pool of a pass, between its convolutions.

The merges of partial sums are one program a task and block of filters; they also leave the
coefficients that the operands of `kernels.triton.operands` are built with.
"""

import triton
import triton.language as tl

from kernels.triton.operands import pixels_of


@triton.jit
def _row(coef, row: tl.constexpr, task, f, filters):
    return coef + (task * 8 + row) * filters + f


@triton.jit
def _sums(part, task, tiles, f, filters, BT: tl.constexpr):
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
def moments_kernel(
    part,  # [T, tiles, 2, F] mean and M2 of `per_tile` pixels each, the last one of what is left
    given_mean, given_var,  # [F] of a task, the next `given_step` further on
    coef, rstd,  # [T, 8, F], [T, F]
    mean_out, var_out,  # of the batch [T, F], tasks `out_step` apart
    tiles, per_tile, pixels, filters, given_step, out_step, eps,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task = tl.program_id(0)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    total = tl.zeros((BF,), tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        at = part + ((task * tiles + t) * 2 * filters)[:, None] + f[None, :]
        valid = (t < tiles)[:, None] & (f < filters)[None, :]
        count = tl.minimum(pixels - t * per_tile, per_tile)
        total += tl.sum(tl.load(at, mask=valid, other=0.0) * count[:, None], 0)
    mean = total / pixels
    m2 = tl.zeros((BF,), tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        at = part + ((task * tiles + t) * 2 * filters)[:, None] + f[None, :]
        valid = (t < tiles)[:, None] & (f < filters)[None, :]
        count = tl.minimum(pixels - t * per_tile, per_tile)
        apart = tl.where(valid, tl.load(at, mask=valid, other=0.0) - mean[None, :], 0.0)
        within = tl.load(at + filters, mask=valid, other=0.0)
        m2 += tl.sum(within + apart * apart * count[:, None], 0)
    var = m2 / pixels
    tl.store(mean_out + task * out_step + f, mean, mask=f < filters)
    tl.store(var_out + task * out_step + f, var, mask=f < filters)
    if GIVEN:
        mean = tl.load(given_mean + task * given_step + f, mask=f < filters, other=0.0)
        var = tl.load(given_var + task * given_step + f, mask=f < filters, other=1.0)
    tl.store(_row(coef, 3, task, f, filters), mean, mask=f < filters)
    tl.store(rstd + task * filters + f, 1 / tl.sqrt(var + eps), mask=f < filters)


@triton.jit
def bwd_sums_kernel(
    part,  # [T, tiles, 2, F] Σδ, Σδx̂
    coef, rstd, gain,  # [T, 8, F], [T, F], [F]
    sums,  # [T, 2, F]
    norm_gradient,  # [2, F] of the stage: of gain and bias, tasks `out_step` apart
    tiles, pixels, filters, out_step,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task = tl.program_id(0)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    s1, s2 = _sums(part, task, tiles, f, filters, BT)
    real = f < filters
    tl.store(sums + task * 2 * filters + f, s1, mask=real)
    tl.store(sums + (task * 2 + 1) * filters + f, s2, mask=real)
    tl.store(norm_gradient + task * out_step + f, s2, mask=real)
    tl.store(norm_gradient + task * out_step + filters + f, s1, mask=real)
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)
    a0 = tl.load(gain + f, mask=real, other=0.0) * r
    share = 0.0 if GIVEN else 1.0 / pixels
    tl.store(_row(coef, 0, task, f, filters), a0, mask=real)
    tl.store(_row(coef, 1, task, f, filters), -a0 * r * s2 * share, mask=real)
    tl.store(_row(coef, 2, task, f, filters), -a0 * s1 * share, mask=real)


@triton.jit
def tan_fwd_sums_kernel(
    part,  # [T, tiles, 2, F] Σ z_dot, Σ z_dot(z − μ)
    coef, rstd, q,  # [T, 8, F], [T, F], [T, F]
    tiles, pixels, filters,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """μ_dot and q = mean(x̂·z_dot)."""
    task = tl.program_id(0)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    first, second = _sums(part, task, tiles, f, filters, BT)
    share = 0.0 if GIVEN else 1.0 / pixels
    r = tl.load(rstd + task * filters + f, mask=f < filters, other=0.0)
    tl.store(_row(coef, 7, task, f, filters), first * share, mask=f < filters)
    tl.store(q + task * filters + f, second * r * share, mask=f < filters)


@triton.jit
def tan_bwd_sums_kernel(
    part,  # [T, tiles, 2, F] Σδ_dot, Σ(δ_dot·x̂ + δ·x̂_dot)
    coef, rstd, q,  # [T, 8, F], [T, F], [T, F]
    sums_dot,  # [T, 2, F]
    norm_product,  # [2, F] of the stage, tasks `out_step` apart
    tiles, pixels, filters, out_step,
    GIVEN: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    task = tl.program_id(0)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    s1, s2 = _sums(part, task, tiles, f, filters, BT)
    real = f < filters
    tl.store(sums_dot + task * 2 * filters + f, s1, mask=real)
    tl.store(sums_dot + (task * 2 + 1) * filters + f, s2, mask=real)
    tl.store(norm_product + task * out_step + f, s2, mask=real)
    tl.store(norm_product + task * out_step + filters + f, s1, mask=real)
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)
    rq = r * tl.load(q + task * filters + f, mask=real, other=0.0)
    a0 = tl.load(_row(coef, 0, task, f, filters), mask=real, other=0.0)
    a1 = tl.load(_row(coef, 1, task, f, filters), mask=real, other=0.0)
    a2 = tl.load(_row(coef, 2, task, f, filters), mask=real, other=0.0)
    share = 0.0 if GIVEN else 1.0 / pixels
    tl.store(_row(coef, 4, task, f, filters), -rq * a0, mask=real)
    tl.store(_row(coef, 5, task, f, filters), -2 * rq * a1 - a0 * r * s2 * share, mask=real)
    tl.store(_row(coef, 6, task, f, filters), -rq * a2 - a0 * s1 * share, mask=real)


@triton.jit
def winner_of(z00, z01, z10, z11, gain):
    """Position of the winner of gain·z, the first one of equals, and its z."""
    sign = tl.where(gain > 0, 1.0, tl.where(gain < 0, -1.0, 0.0))
    key, value, position = z00 * sign, z00, tl.zeros(z00.shape, tl.int32)
    more = z01 * sign > key
    key, value, position = (
        tl.where(more, z01 * sign, key), tl.where(more, z01, value), tl.where(more, 1, position)
    )  # fmt: skip
    more = z10 * sign > key
    key, value, position = (
        tl.where(more, z10 * sign, key), tl.where(more, z10, value), tl.where(more, 2, position)
    )  # fmt: skip
    more = z11 * sign > key
    return tl.where(more, 3, position), tl.where(more, z11, value)


@triton.jit
def normalise_kernel(
    z, gain, coef, rstd,  # [T, N, H, W, F], [F], [T, 8, F], [T, F]
    x_hat, winners,  # [T, N, h, w, F]
    images, dense, pooled, filters,
    POOL: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """x̂ at the winners, and the winners."""
    task = tl.program_id(1)
    pixels = images * pooled * pooled
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x = pixels_of(m, pooled, pooled)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    mean = tl.load(_row(coef, 3, task, f, filters), mask=f < filters, other=0.0)[None, :]
    r = tl.load(rstd + task * filters + f, mask=f < filters, other=0.0)[None, :]
    out = (task * pixels + m)[:, None] * filters + f[None, :]
    if POOL:
        corner = ((task * images + n) * dense + 2 * y) * dense + 2 * x
        at = z + corner[:, None] * filters + f[None, :]
        below = at + dense * filters
        position, value = winner_of(
            tl.load(at, mask=valid, other=0.0),
            tl.load(at + filters, mask=valid, other=0.0),
            tl.load(below, mask=valid, other=0.0),
            tl.load(below + filters, mask=valid, other=0.0),
            tl.load(gain + f, mask=f < filters, other=0.0)[None, :],
        )
        tl.store(winners + out, position.to(tl.uint8), mask=valid)
    else:
        value = tl.load(z + out, mask=valid, other=0.0)
    tl.store(x_hat + out, (value - mean) * r, mask=valid)


@triton.jit
def normalise_dot_kernel(
    z_dot, x_hat, winners, coef, rstd, q,
    x_hat_dot,  # [T, N, h, w, F]
    images, dense, pooled, filters,
    POOL: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """x̂_dot = r(z_dot − μ_dot − x̂q) at the winners."""
    task = tl.program_id(1)
    pixels = images * pooled * pooled
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x = pixels_of(m, pooled, pooled)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    out = (task * pixels + m)[:, None] * filters + f[None, :]
    if POOL:
        winner = tl.load(winners + out, mask=valid, other=0).to(tl.int32)
        row = ((task * images + n) * dense + 2 * y)[:, None] + winner // 2
        at = (row * dense + (2 * x)[:, None] + winner % 2) * filters + f[None, :]
    else:
        at = out
    mean_dot = tl.load(_row(coef, 7, task, f, filters), mask=f < filters, other=0.0)[None, :]
    r = tl.load(rstd + task * filters + f, mask=f < filters, other=0.0)[None, :]
    slope = tl.load(q + task * filters + f, mask=f < filters, other=0.0)[None, :]
    value = tl.load(z_dot + at, mask=valid, other=0.0)
    value -= mean_dot + tl.load(x_hat + out, mask=valid, other=0.0) * slope
    tl.store(x_hat_dot + out, value * r, mask=valid)
