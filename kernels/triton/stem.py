"""The first stage, conv → batch norm → leaky ReLU → 2×2 max pool, from the moments of its patches
(the formulas are those of kernels/plain/stem.py).

Images have a border and have lost their mean over the task, border included: [T, N, H + 2, W + 2,
C]. A patch is [C][9], padded to KP values.
"""

import triton
import triton.language as tl

from kernels.triton.launch import COUNTS
from kernels.triton.norm_act_kernels import bordered, sign_of, store_bent_dot, winner_of
from kernels.triton.operands import dot, pixels_of, rounded_to, slope_at, unbent
from kernels.triton.sums import settle_sums


@triton.jit
def patches_at(n, y, x, k, side, channels):
    """[windows, KP] where the values of the patches are whose middle is pixel (y, x) of image n."""
    tap, c = k % 9, k // 9
    first = ((n * (side + 2) + y) * (side + 2) + x) * channels
    return first[:, None] + ((tap // 3 * (side + 2) + tap % 3) * channels + c)[None, :]


@triton.jit
def load_patches(images, n, y, x, k, valid, side, channels):
    """[windows, KP] of them."""
    inside = valid[:, None] & (k < 9 * channels)[None, :]
    return tl.load(images + patches_at(n, y, x, k, side, channels), mask=inside, other=0.0)


@triton.jit
def windows_at(first, n, y, x, k, valid, side, channels):
    """The same of the first of the four cells of windows of 2×2, for loads without a mask. Windows
    that are not valid are those of image `first`, and come to nothing; beyond a patch is its last
    value, whose filters are 0.
    """
    n, y, x = tl.where(valid, n, first), tl.where(valid, y, 0), tl.where(valid, x, 0)
    return patches_at(n, 2 * y, 2 * x, tl.minimum(k, 9 * channels - 1), side, channels)


@triton.jit
def load_cells(images, at, position, side, channels):
    """The patches of a cell of windows, `at` being those of the first."""
    return tl.load(images + at + (position // 2 * (side + 2) + position % 2) * channels)


@triton.jit
def load_stem_filters(w, k, f, filters, channels, PRECISION: tl.constexpr):
    """[KP, filters] of [F, 9, C], as all products take them: their statistics come from others."""
    at = (f[None, :] * 9 + (k % 9)[:, None]) * channels + (k // 9)[:, None]
    there = (k < 9 * channels)[:, None] & (f < filters)[None, :]
    return rounded_to(tl.load(w + at, mask=there, other=0.0), PRECISION)


@triton.jit
def settle_stem(
    rows,  # [KP, filters] of `load_stem_filters`
    patch_mean, cov, pivot,  # [T, KP], [T, KP, KP], [T, KP] the images' own mean at each value
    given_mean, given_var,  # [F] of a task, the next `given_step` further on
    projected,  # [T, KP, F] cov·w
    coef, rstd,  # [T, 8, F], [T, F]
    mean_out, var_out,  # tasks `out_step` apart
    stored, task, k, f, filters, given_step, out_step, eps,
    GIVEN: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Mean, less that of the images, and 1/σ that normalise; as in `kernels.triton.sums`."""
    real, kept = f < filters, f < stored
    matrix = tl.load(cov + (task * KP + k[:, None]) * KP + k[None, :])
    product = tl.dot(matrix, rows, input_precision="ieee")
    out = projected + (task * KP + k[:, None]) * filters + f[None, :]
    tl.store(out, product, mask=kept[None, :])
    centre = tl.sum(rows * tl.load(patch_mean + task * KP + k)[:, None], 0)
    lost = tl.sum(rows * tl.load(pivot + task * KP + k)[:, None], 0)
    var = tl.sum(rows * product, 0)
    var = tl.where(var < 0, 0.0, var)  # keeps what is not a number, as tl.maximum may not
    tl.store(mean_out + task * out_step + f, centre + lost, mask=kept)
    tl.store(var_out + task * out_step + f, var, mask=kept)
    if GIVEN:
        at = task * given_step + f
        centre = tl.load(given_mean + at, mask=real, other=0.0) - lost
        var = tl.load(given_var + at, mask=real, other=1.0)
    r = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    tl.store(coef + (task * 8 + 3) * filters + f, centre, mask=kept)
    tl.store(rstd + task * filters + f, r, mask=kept)
    return centre, r


@triton.jit(do_not_specialize=COUNTS)
def stem_moments_kernel(
    w,  # [F, 9, C] of a task, the next `w_step` further on
    patch_mean, cov, pivot, given_mean, given_var, projected, coef, rstd, mean_out, var_out,
    channels: tl.constexpr, filters: tl.constexpr, w_step, given_step, out_step, eps,
    GIVEN: tl.constexpr, PRECISION: tl.constexpr, KP: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """`settle_stem` by a launch of its own."""
    task = tl.program_id(0)
    k, f = tl.arange(0, KP), tl.program_id(1) * BF + tl.arange(0, BF)
    rows = load_stem_filters(w + task * w_step, k, f, filters, channels, PRECISION)
    settle_stem(
        rows, patch_mean, cov, pivot, given_mean, given_var, projected, coef, rstd,
        mean_out, var_out, filters, task, k, f, filters, given_step, out_step, eps, GIVEN, KP,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def stem_fwd_kernel(
    images, w, gain, bias,  # gain and bias of tasks are `row_step` apart
    patch_mean, cov, pivot, given_mean, given_var, projected, coef, rstd, mean_out, var_out,
    x_hat, winners, out,  # [T, N, h, w, F]; with BORDER [T, N, h + 2, w + 2, F]
    count, side: tl.constexpr, pooled: tl.constexpr, channels: tl.constexpr,
    filters: tl.constexpr, row_step, w_step, slope, given_step, out_step, eps,
    BORDER: tl.constexpr, GIVEN: tl.constexpr, MERGE: tl.constexpr, PRECISION: tl.constexpr,
    KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """x̂ at the winners, and the winners; with BORDER also the activation between zeros → out.
    MERGE: with `settle_stem`.
    """
    task = tl.program_id(1)
    out_side = pooled + 2 if BORDER else pooled
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k, f = tl.arange(0, KP), tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x, valid = bordered(m, pooled, BORDER)
    there = m < count * out_side * out_side
    valid = valid & there
    n += task * count
    real = f < filters
    scale = tl.load(gain + task * row_step + f, mask=real, other=0.0)[None, :]
    sign = sign_of(scale)
    rows = load_stem_filters(w + task * w_step, k, f, filters, channels, PRECISION)
    if MERGE:
        centre, r = settle_stem(
            rows, patch_mean, cov, pivot, given_mean, given_var, projected, coef, rstd,
            mean_out, var_out, tl.where(tl.program_id(0) == 0, filters, 0), task, k, f,
            filters, given_step, out_step, eps, GIVEN, KP,
        )  # fmt: skip
    else:
        centre = tl.load(coef + (task * 8 + 3) * filters + f, mask=real, other=0.0)
        r = tl.load(rstd + task * filters + f, mask=real, other=0.0)
    rows *= sign
    at = windows_at(task * count, n, y, x, k, valid, side, channels)
    zero = tl.zeros((BM, BF), tl.float32)
    z00 = dot(load_cells(images, at, 0, side, channels), rows, zero, PRECISION)
    z01 = dot(load_cells(images, at, 1, side, channels), rows, zero, PRECISION)
    z10 = dot(load_cells(images, at, 2, side, channels), rows, zero, PRECISION)
    z11 = dot(load_cells(images, at, 3, side, channels), rows, zero, PRECISION)
    value, position = winner_of(z00, z01, z10, z11, scale)
    at = ((n * pooled + y) * pooled + x)[:, None] * filters + f[None, :]
    both = valid[:, None] & real[None, :]
    value = (value * sign - centre[None, :]) * r[None, :]
    tl.store(x_hat + at, value, mask=both)
    tl.store(winners + at, position.to(tl.uint8), mask=both)
    if BORDER:
        shift = tl.load(bias + task * row_step + f, mask=real, other=0.0)[None, :]
        value = unbent(value, scale, shift) * slope_at(value, scale, shift, slope)
        at = (task * count * out_side * out_side + m)[:, None] * filters + f[None, :]
        tl.store(out + at, tl.where(both, value, 0.0), mask=there[:, None] & real[None, :])


@triton.jit(do_not_specialize=COUNTS)
def stem_outer_kernel(
    images, values, winners,  # values and winners [T, N, h, w, F]
    part,  # [T, splits, KP, F] Σ values·patch over the winners of a split
    count, side: tl.constexpr, pooled: tl.constexpr, channels: tl.constexpr,
    filters: tl.constexpr, per_split,
    PRECISION: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """A split is of windows, `BM` of them and each of their four pixels at a time."""
    split, task = tl.program_id(0), tl.program_id(1)
    windows = count * pooled * pooled
    k, f = tl.arange(0, KP), tl.program_id(2) * BF + tl.arange(0, BF)
    acc = tl.zeros((BF, KP), tl.float32)  # wgmma takes 64 rows or more, and KP is 16 or 32
    end = tl.minimum((split + 1) * per_split, windows)
    for start in range(split * per_split, end, BM):
        m = start + tl.arange(0, BM)
        n, y, x = pixels_of(m, pooled, pooled)
        n += task * count
        valid = m < end
        at = (task * windows + m)[:, None] * filters + f[None, :]
        both = valid[:, None] & (f < filters)[None, :]
        value = tl.load(values + at, mask=both, other=0.0)
        winner = tl.load(winners + at, mask=both, other=0)
        first = windows_at(task * count, n, y, x, k, valid, side, channels)
        for position in range(4):
            spike = tl.where(winner == position, value, 0.0)
            patches = load_cells(images, first, position, side, channels)
            acc = dot(tl.trans(spike), patches, acc, PRECISION)
    row = (task * tl.num_programs(0) + split) * KP
    out = (row + k[None, :]) * filters + f[:, None]
    tl.store(part + out, acc, mask=(f < filters)[:, None])


@triton.jit
def outer_sum(part, task, splits, k, f, filters, KP: tl.constexpr, BS: tl.constexpr):
    """[k, filters] Σ over the splits, in order, of part [T, splits, KP, F]"""
    total = tl.zeros((k.shape[0], f.shape[0]), tl.float32)
    for begin in range(0, splits, BS):
        s = begin + tl.arange(0, BS)
        rows = (task * splits + s)[:, None, None] * KP + k[None, :, None]
        there = (s < splits)[:, None, None] & (f < filters)[None, None, :]
        at = rows * filters + f[None, None, :]
        total += tl.sum(tl.load(part + at, mask=there, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=COUNTS)
def stem_wgrad_kernel(
    part, outer,  # [T, splits, KP, F] of `stem_outer_kernel` → their sum [T, KP, F]
    sums_part, sums, d_gain, d_bias,  # of `settle_sums`
    patch_mean, pivot, projected,  # [T, KP], [T, KP], [T, KP, F]
    gain, rstd,  # [F] of a task, the next `row_step` further on, [T, F]
    gradient,  # [F, 9, C], tasks `out_step` apart
    channels: tl.constexpr, filters: tl.constexpr, splits, tiles, row_step, out_step, norm_step,
    GIVEN: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, KP: tl.constexpr, BK: tl.constexpr,
    BF: tl.constexpr,
):  # fmt: skip
    """gain·r·(A − s₁m − s₂r·Gw), a few values of the patches by each program."""
    task, first = tl.program_id(0), tl.program_id(2) * BK
    k, f = first + tl.arange(0, BK), tl.program_id(1) * BF + tl.arange(0, BF)
    real, stored = f < filters, tl.where(first == 0, filters, 0)
    at = (task * KP + k[:, None]) * filters + f[None, :]
    a = outer_sum(part, task, splits, k, f, filters, KP, BS)
    tl.store(outer + at, a, mask=real[None, :])
    s1, s2 = settle_sums(
        sums_part, sums, d_gain, d_bias, stored, task, f, tiles, filters, norm_step, BT
    )
    s1, s2 = s1[None, :], s2[None, :]
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)[None, :]
    scale = tl.load(gain + task * row_step + f, mask=real, other=0.0)[None, :] * r
    if GIVEN:
        a += s1 * tl.load(pivot + task * KP + k)[:, None]
    else:
        a -= s1 * tl.load(patch_mean + task * KP + k)[:, None]
        a -= s2 * r * tl.load(projected + at, mask=real[None, :], other=0.0)
    where = (f[None, :] * 9 + (k % 9)[:, None]) * channels + (k // 9)[:, None]
    valid = (k < 9 * channels)[:, None] & real[None, :]
    tl.store(gradient + task * out_step + where, scale * a, mask=valid)


@triton.jit
def settle_stem_dot(
    rows,  # [KP, filters] of the filters' direction
    patch_mean, pivot, projected, rstd,
    coef, q,  # [T, 8, F], [T, F]
    stored, task, k, f, filters, GIVEN: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """The shift of z_dot, and q = mean(x̂·z_dot) = r·wᵀG·w_dot."""
    real = f < filters
    if GIVEN:
        shift = -tl.sum(rows * tl.load(pivot + task * KP + k)[:, None], 0)
        slope = tl.zeros(f.shape, tl.float32)
    else:
        shift = tl.sum(rows * tl.load(patch_mean + task * KP + k)[:, None], 0)
        at = (task * KP + k[:, None]) * filters + f[None, :]
        slope = tl.sum(rows * tl.load(projected + at, mask=real[None, :], other=0.0), 0)
        slope *= tl.load(rstd + task * filters + f, mask=real, other=0.0)
    tl.store(coef + (task * 8 + 7) * filters + f, shift, mask=f < stored)
    tl.store(q + task * filters + f, slope, mask=f < stored)
    return shift, slope


@triton.jit(do_not_specialize=COUNTS)
def stem_dot_kernel(
    images, w_dot, x_hat, winners, patch_mean, pivot, projected, rstd, coef, q,
    gain, bias,  # [F] of a task, the next `row_step` further on, with BORDER
    x_hat_dot, out,  # [T, N, h, w, F]; with BORDER [T, N, h + 2, w + 2, F]
    count, side: tl.constexpr, pooled: tl.constexpr, channels: tl.constexpr,
    filters: tl.constexpr, row_step, w_step, slope,
    BORDER: tl.constexpr, GIVEN: tl.constexpr, PRECISION: tl.constexpr,
    KP: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """x̂_dot = r(w_dot·patch − shift − x̂q) at the winners; with BORDER also the direction of the
    activation between zeros → out.
    """
    task = tl.program_id(1)
    out_side = pooled + 2 if BORDER else pooled
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k, f = tl.arange(0, KP), tl.program_id(2) * BF + tl.arange(0, BF)
    n, y, x, valid = bordered(m, pooled, BORDER)
    there, real = m < count * out_side * out_side, f < filters
    valid = valid & there
    n += task * count
    rows = load_stem_filters(w_dot + task * w_step, k, f, filters, channels, PRECISION)
    stored = tl.where(tl.program_id(0) == 0, filters, 0)
    shift, along = settle_stem_dot(
        rows, patch_mean, pivot, projected, rstd, coef, q, stored, task, k, f, filters, GIVEN, KP
    )
    at = ((n * pooled + y) * pooled + x)[:, None] * filters + f[None, :]
    both = valid[:, None] & real[None, :]
    winner = tl.load(winners + at, mask=both, other=0)
    value = tl.zeros((BM, BF), tl.float32)
    first = windows_at(task * count, n, y, x, k, valid, side, channels)
    for position in tl.static_range(4):
        patches = load_cells(images, first, position, side, channels)
        zero = tl.zeros((BM, BF), tl.float32)
        value = tl.where(winner == position, dot(patches, rows, zero, PRECISION), value)
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)[None, :]
    own = tl.load(x_hat + at, mask=both, other=0.0)
    value = (value - (shift[None, :] + own * along[None, :])) * r
    tl.store(x_hat_dot + at, value, mask=both)
    if BORDER:
        store_bent_dot(
            out, task * count * out_side * out_side + m, f, both, there[:, None] & real[None, :],
            own, value, gain + task * row_step, bias + task * row_step, slope, filters,
        )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def stem_tan_wgrad_kernel(
    w_dot, outer,
    part,  # [T, splits, KP, F] of the direction of `outer`
    sums_part, sums_dot, d_gain_dot, d_bias_dot,  # of `settle_sums`
    patch_mean, cov, pivot, projected, gain, rstd, q, sums,
    product,  # [F, 9, C], tasks `out_step` apart
    channels: tl.constexpr, filters: tl.constexpr, splits, tiles,
    row_step, w_step, out_step, norm_step,
    GIVEN: tl.constexpr, PRECISION: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, KP: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """The direction of gain·r·(A − s₁m − s₂r·Gw), r_dot = −r²q."""
    task, first = tl.program_id(0), tl.program_id(2) * BK
    k, f = first + tl.arange(0, BK), tl.program_id(1) * BF + tl.arange(0, BF)
    real, stored = f < filters, tl.where(first == 0, filters, 0)
    at = (task * KP + k[:, None]) * filters + f[None, :]
    a_dot = outer_sum(part, task, splits, k, f, filters, KP, BS)
    s1_dot, s2_dot = settle_sums(
        sums_part, sums_dot, d_gain_dot, d_bias_dot, stored, task, f, tiles, filters, norm_step, BT
    )
    s1_dot, s2_dot = s1_dot[None, :], s2_dot[None, :]
    r = tl.load(rstd + task * filters + f, mask=real, other=0.0)[None, :]
    g = tl.load(gain + task * row_step + f, mask=real, other=0.0)[None, :]
    if GIVEN:
        value = g * r * (a_dot + s1_dot * tl.load(pivot + task * KP + k)[:, None])
    else:
        m = tl.load(patch_mean + task * KP + k)[:, None]
        a = tl.load(outer + at, mask=real[None, :], other=0.0)
        s1 = tl.load(sums + task * 2 * filters + f, mask=real, other=0.0)[None, :]
        s2 = tl.load(sums + (task * 2 + 1) * filters + f, mask=real, other=0.0)[None, :]
        gw = tl.load(projected + at, mask=real[None, :], other=0.0)
        every = tl.arange(0, KP)
        rows = load_stem_filters(w_dot + task * w_step, every, f, filters, channels, PRECISION)
        matrix = tl.load(cov + (task * KP + k[:, None]) * KP + every[None, :])
        gw_dot = tl.sum(matrix[:, :, None] * rows[None, :, :], 1)
        r_dot = -r * r * tl.load(q + task * filters + f, mask=real, other=0.0)[None, :]
        value = g * r_dot * (a - s1 * m - s2 * r * gw)
        value += g * r * (a_dot - s1_dot * m - s2_dot * r * gw - s2 * (r_dot * gw + r * gw_dot))
    where = (f[None, :] * 9 + (k % 9)[:, None]) * channels + (k // 9)[:, None]
    valid = (k < 9 * channels)[:, None] & real[None, :]
    tl.store(product + task * out_step + where, value, mask=valid)
