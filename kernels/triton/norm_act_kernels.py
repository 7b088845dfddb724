"""Batch norm, leaky ReLU and 2×2 max pool between convolutions, pixel by pixel."""

import triton
import triton.language as tl

from kernels.triton.launch import COUNTS
from kernels.triton.operands import (
    coefficient,
    load_dz,
    load_dz_dot,
    pixels_of,
    slope_at,
    unbent,
)
from kernels.triton.sums import (
    settle_coefficients,
    settle_coefficients_dot,
    settle_moments,
    settle_moments_dot,
    settle_sums,
    store_delta,
    store_moments,
)


@triton.jit
def bordered(m, pooled, BORDER: tl.constexpr):
    """Image, row and column of pixel m, and whether it is one of the image's own; with `BORDER`
    pixels of the border count too.
    """
    if BORDER:
        n, y, x = pixels_of(m, pooled + 2, pooled + 2)
        y, x = y - 1, x - 1
        return n, y, x, (y >= 0) & (y < pooled) & (x >= 0) & (x < pooled)
    n, y, x = pixels_of(m, pooled, pooled)
    return n, y, x, m >= 0


@triton.jit
def sign_of(gain):
    """What orders sign·z as gain·z, and gives z back of it."""
    return tl.where(gain < 0, -1.0, 1.0)


@triton.jit
def winner_of(z00, z01, z10, z11, gain):
    """Position of the winner of gain·z, and its value, of z times `sign_of`: the first one of
    equals, and as in `torch.max_pool2d` whatever is not a number, the last of those. By pairs,
    which keep fewer conditions than one after another.
    """
    differ = gain != 0  # by 0 all are equal
    right, below_right = _better(z01, z00, differ), _better(z11, z10, differ)
    above, below = tl.where(right, z01, z00), tl.where(below_right, z11, z10)
    lower = _better(below, above, differ)
    position = tl.where(lower, tl.where(below_right, 3, 2), tl.where(right, 1, 0))
    return tl.where(lower, below, above), position


@triton.jit
def _better(z, other, differ):
    return ((z > other) & differ) | (z != z)


@triton.jit
def stored_by_one(filters):
    """What the first of programs with the same filters stores of `kernels.triton.sums`."""
    return tl.where(tl.program_id(0) == 0, filters, 0)


@triton.jit(do_not_specialize=COUNTS)
def normalise_kernel(
    z, gain, bias,  # [T, N, H, W, F], [F] of a task, the next `row_step` further on
    coef, rstd,  # [T, 8, F], [T, F]
    part, given_mean, given_var, mean_out, var_out,  # of `settle_moments`, with MERGE
    x_hat, winners, out,  # [T, N, h, w, F], with BORDER `out` [T, N, h + 2, w + 2, F]
    images, dense: tl.constexpr, pooled: tl.constexpr, filters: tl.constexpr,
    row_step, slope, tiles, per_tile, given_step, out_step, eps,
    POOL: tl.constexpr, ACT: tl.constexpr, BORDER: tl.constexpr,
    MERGE: tl.constexpr, GIVEN: tl.constexpr, BT: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """x̂ at the winners, and the winners; with ACT also the activation → out, with BORDER between
    zeros.
    """
    task = tl.program_id(1)
    side = pooled + 2 if BORDER else pooled
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x, inside = bordered(m, pooled, BORDER)
    there = (m < images * side * side)[:, None] & (f < filters)[None, :]
    valid = there & inside[:, None]
    if MERGE:
        mean, r = settle_moments(
            part, given_mean, given_var, coef, rstd, mean_out, var_out, stored_by_one(filters),
            task, f, tiles, per_tile, images * dense * dense, filters, given_step, out_step, eps,
            GIVEN, BT,
        )  # fmt: skip
    else:
        mean = coefficient(coef, 3, task, f, filters)
        r = tl.load(rstd + task * filters + f, mask=f < filters, other=0.0)
    g = tl.load(gain + task * row_step + f, mask=f < filters, other=0.0)[None, :]
    where = (((task * images + n) * pooled + y) * pooled + x)[:, None] * filters + f[None, :]
    if POOL:
        corner = ((task * images + n) * dense + 2 * y) * dense + 2 * x
        at = z + corner[:, None] * filters + f[None, :]
        below, sign = at + dense * filters, sign_of(g)
        value, position = winner_of(
            tl.load(at, mask=valid, other=0.0) * sign,
            tl.load(at + filters, mask=valid, other=0.0) * sign,
            tl.load(below, mask=valid, other=0.0) * sign,
            tl.load(below + filters, mask=valid, other=0.0) * sign,
            g,
        )
        value *= sign
        tl.store(winners + where, position.to(tl.uint8), mask=valid)
    else:
        value = tl.load(z + where, mask=valid, other=0.0)
    value = (value - mean[None, :]) * r[None, :]
    tl.store(x_hat + where, value, mask=valid)
    if ACT:
        b = tl.load(bias + task * row_step + f, mask=f < filters, other=0.0)[None, :]
        value = unbent(value, g, b) * slope_at(value, g, b, slope)
        at = (task * images * side * side + m)[:, None] * filters + f[None, :]
        tl.store(out + at, tl.where(valid, value, 0.0), mask=there)


@triton.jit
def store_bent_dot(out, pixel, f, valid, there, value, value_dot, gain, bias, slope, filters):
    """slope·gain·x̂_dot, 0 where it is not `valid`, at pixels `there` of images with a border."""
    g = tl.load(gain + f, mask=f < filters, other=0.0)[None, :]
    b = tl.load(bias + f, mask=f < filters, other=0.0)[None, :]
    bent = slope_at(value, g, b, slope) * g * value_dot
    at = pixel[:, None] * filters + f[None, :]
    tl.store(out + at, tl.where(valid, bent, 0.0), mask=there)


@triton.jit(do_not_specialize=COUNTS)
def normalise_dot_kernel(
    z_dot, x_hat, winners, coef, rstd, q,
    part,  # of `settle_moments_dot`, with MERGE
    gain, bias,  # [F] of a task, the next `row_step` further on, with BORDER
    x_hat_dot, out,  # [T, N, h, w, F]; with BORDER [T, N, h + 2, w + 2, F]
    images, dense: tl.constexpr, pooled: tl.constexpr, filters: tl.constexpr,
    row_step, slope, tiles,
    POOL: tl.constexpr, BORDER: tl.constexpr,
    MERGE: tl.constexpr, GIVEN: tl.constexpr, BT: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """x̂_dot = r(z_dot − μ_dot − x̂q) at the winners; with BORDER also the direction of the
    activation, slope·gain·x̂_dot, between zeros → out.
    """
    task = tl.program_id(1)
    side = pooled + 2 if BORDER else pooled
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x, inside = bordered(m, pooled, BORDER)
    there = (m < images * side * side)[:, None] & (f < filters)[None, :]
    valid = there & inside[:, None]
    own = (((task * images + n) * pooled + y) * pooled + x)[:, None] * filters + f[None, :]
    if POOL:
        winner = tl.load(winners + own, mask=valid, other=0).to(tl.int32)
        row = ((task * images + n) * dense + 2 * y)[:, None] + winner // 2
        at = (row * dense + (2 * x)[:, None] + winner % 2) * filters + f[None, :]
    else:
        at = own
    if MERGE:
        mean_dot, along = settle_moments_dot(
            part, coef, rstd, q, stored_by_one(filters),
            task, f, tiles, images * dense * dense, filters, GIVEN, BT,
        )  # fmt: skip
    else:
        mean_dot = coefficient(coef, 7, task, f, filters)
        along = tl.load(q + task * filters + f, mask=f < filters, other=0.0)
    r = tl.load(rstd + task * filters + f, mask=f < filters, other=0.0)[None, :]
    value = tl.load(x_hat + own, mask=valid, other=0.0)
    along_x_hat = mean_dot[None, :] + value * along[None, :]
    value_dot = (tl.load(z_dot + at, mask=valid, other=0.0) - along_x_hat) * r
    tl.store(x_hat_dot + own, value_dot, mask=valid)
    if BORDER:
        store_bent_dot(
            out, task * images * side * side + m, f, valid, there, value, value_dot,
            gain + task * row_step, bias + task * row_step, slope, filters,
        )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def dense_sums_kernel(
    value,  # z, or with DUAL its direction [T, N, H, W, F]
    z, coef,  # with DUAL
    part,  # [T, tiles, 2, F]
    pixels, filters, DUAL: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """What a convolution of a pass leaves of its result."""
    tile, task, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    m = tile * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    where = (task * pixels + m)[:, None] * filters + f[None, :]
    tile_of_z = tl.load(value + where, mask=valid, other=0.0)
    store_moments(
        tile_of_z, where, valid, z, coef, part, task, tile, tiles, pixels, f, filters, DUAL, BM
    )


@triton.jit(do_not_specialize=COUNTS)
def delta_kernel(
    dy,  # or with DUAL its direction [T, N, h, w, F]
    x_hat, x_hat_dot, delta,  # the last two with DUAL
    gain, bias,  # [T, F]
    out, part,  # δ, or with DUAL its direction, and [T, tiles, 2, F]
    pixels, filters, slope, DUAL: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """What the input gradient of a pass leaves of its result."""
    tile, task, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    m = tile * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    where = (task * pixels + m)[:, None] * filters + f[None, :]
    value = tl.load(dy + where, mask=valid, other=0.0)
    store_delta(
        value, where, valid, x_hat, x_hat_dot, delta, gain + task * filters, bias + task * filters,
        slope, out, part, task, tile, tiles, f, filters, DUAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def dz_kernel(
    z, z_dot, delta, delta_dot, winners, coef,
    # of `settle_sums` and what follows, with MERGE; of a direction with DUAL, as are q and sums_dot
    part, rstd, gain, q, sums, sums_dot, d_gain, d_bias,
    out,  # [T, N, H, W, F], with BORDER [T, N, H + 2, W + 2, F]
    images, dense: tl.constexpr, pooled: tl.constexpr, filters: tl.constexpr,
    tiles, row_step, out_step,
    POOL: tl.constexpr, DUAL: tl.constexpr, BORDER: tl.constexpr,
    MERGE: tl.constexpr, GIVEN: tl.constexpr, BT: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """dz, or with DUAL its direction, with BORDER between zeros."""
    task = tl.program_id(1)
    side = dense + 2 if BORDER else dense
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x, inside = bordered(m, dense, BORDER)
    n += task * images
    there = m < images * side * side
    inside = inside & there
    stored, pixels = stored_by_one(filters), images * dense * dense
    if MERGE:
        s1, s2 = settle_sums(
            part, sums_dot if DUAL else sums, d_gain, d_bias, stored, task, f, tiles, filters,
            out_step, BT,
        )  # fmt: skip
    mean = coefficient(coef, 3, task, f, filters)
    if DUAL:
        if MERGE:
            b1, b2, b4 = settle_coefficients_dot(
                s1, s2, coef, rstd, q, sums, sums, stored, task, f, pixels, filters, GIVEN, False
            )
        else:
            b1 = coefficient(coef, 4, task, f, filters)
            b2 = coefficient(coef, 5, task, f, filters)
            b4 = coefficient(coef, 6, task, f, filters)
        a0, a1 = coefficient(coef, 0, task, f, filters), coefficient(coef, 1, task, f, filters)
        value = load_dz_dot(
            z, z_dot, delta, delta_dot, winners,
            mean, coefficient(coef, 7, task, f, filters), a0, a1, b1, b2, b4,
            n, y, x, f, inside, filters, dense, pooled, POOL,
        )  # fmt: skip
    else:
        if MERGE:
            a0, a1, a2 = settle_coefficients(
                s1, s2, coef, rstd, gain, stored, task, f, pixels, filters, row_step, GIVEN
            )
        else:
            a0 = coefficient(coef, 0, task, f, filters)
            a1 = coefficient(coef, 1, task, f, filters)
            a2 = coefficient(coef, 2, task, f, filters)
        value = load_dz(
            z, delta, winners, mean, a0, a1, a2,
            n, y, x, f, inside, filters, dense, pooled, POOL,
        )  # fmt: skip
    at = (task * images * side * side + m)[:, None] * filters + f[None, :]
    tl.store(out + at, value, mask=there[:, None] & (f < filters)[None, :])


@triton.jit(do_not_specialize=COUNTS)
def activation_dot_kernel(
    x_hat, x_hat_dot,  # [T, N, h, w, F]
    gain, bias, gain_dot, bias_dot,  # [T, F]
    out,  # [T, N, h, w, F]
    pixels, filters, slope,
    X_DOT: tl.constexpr, GAIN_DOT: tl.constexpr, BIAS_DOT: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """slope·(gain·x̂_dot + x̂·gain_dot + bias_dot), without what is off."""
    task = tl.program_id(1)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    where = (task * pixels + m)[:, None] * filters + f[None, :]
    channel = task * filters + f
    real = f < filters
    value = tl.load(x_hat + where, mask=valid, other=0.0)
    g = tl.load(gain + channel, mask=real, other=0.0)[None, :]
    b = tl.load(bias + channel, mask=real, other=0.0)[None, :]
    y_dot = tl.zeros((BM, BF), tl.float32)
    if X_DOT:
        y_dot += g * tl.load(x_hat_dot + where, mask=valid, other=0.0)
    if GAIN_DOT:
        y_dot += value * tl.load(gain_dot + channel, mask=real, other=0.0)[None, :]
    if BIAS_DOT:
        y_dot += tl.load(bias_dot + channel, mask=real, other=0.0)[None, :]
    tl.store(out + where, y_dot * slope_at(value, g, b, slope), mask=valid)
