"""The 3×3 convolutions of a pass: implicit matrix products over taps and channels with a task axis.

Their operands are built as they are loaded (`operands`), and what comes next is begun on the result
while it is in registers: partial moments of z, products of its direction with z, or the slope of
the activation below with the sums behind its gain and bias. Partial sums are one a tile, merged in
order.
"""

import triton
import triton.language as tl

from kernels.triton.operands import (
    dot,
    load_activation,
    load_activation_dot,
    load_dz,
    load_dz_dot,
    pixels_of,
    slope_at,
)


@triton.jit
def load_filters(w, f, tap, c, filters, channels, F_FIRST: tl.constexpr):
    """Of [F, 9, C] one tap: [channels, filters], or with `F_FIRST` [filters, channels]."""
    if F_FIRST:
        where = (f[:, None] * 9 + tap) * channels + c[None, :]
        valid = (f < filters)[:, None] & (c < channels)[None, :]
    else:
        where = (f[None, :] * 9 + tap) * channels + c[:, None]
        valid = (f < filters)[None, :] & (c < channels)[:, None]
    return tl.load(w + where, mask=valid, other=0.0)


@triton.jit
def store_part(part, first, second, task, tile, tiles, f, filters):
    """Two sums of a tile → part [T, tiles, 2, F]."""
    at = part + (task * tiles + tile) * 2 * filters + f
    tl.store(at, first, mask=f < filters)
    tl.store(at + filters, second, mask=f < filters)


@triton.jit
def conv_fwd_kernel(
    x_hat, x_hat_dot, gain, bias,  # of the stage below [T, N, H, W, C], [C]; or images
    w, w_dot,  # [F, 9, C] of a task, the next `w_step`, `w_dot_step` further on
    out,  # z, or with DUAL its direction [T, N, OH, OW, F]
    z, coef,  # with DUAL
    part,  # [T, tiles, 2, F] mean and M2 of z; with DUAL Σ z_dot, Σ z_dot(z − μ)
    images, side, out_side, channels, filters, w_step, w_dot_step, slope,
    STRIDE: tl.constexpr, ACT: tl.constexpr, DUAL: tl.constexpr, DOT_IN: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """z = conv(p, w). DUAL: z_dot = conv(p, w_dot) + conv(p_dot, w), the latter with DOT_IN."""
    tile, task, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    pixels = images * out_side * out_side
    m = tile * BM + tl.arange(0, BM)
    f = tl.program_id(2) * BN + tl.arange(0, BN)
    n, y, x = pixels_of(m, out_side, out_side)
    n += task * images
    w += task * w_step
    w_dot += task * w_dot_step
    acc = tl.zeros((BM, BN), tl.float32)
    for tap in tl.static_range(9):
        yy, xx = y * STRIDE + tap // 3 - 1, x * STRIDE + tap % 3 - 1
        inside = (m < pixels) & (yy >= 0) & (yy < side) & (xx >= 0) & (xx < side)
        at = (n * side + yy) * side + xx
        for start in range(0, channels, BK):
            c = start + tl.arange(0, BK)
            p = load_activation(x_hat, gain, bias, slope, at, c, inside, channels, ACT)
            if DUAL:
                rows = load_filters(w_dot, f, tap, c, filters, channels, False)
                acc = dot(p, rows, acc, PRECISION)
                if DOT_IN:
                    p = load_activation_dot(
                        x_hat, x_hat_dot, gain, bias, slope, at, c, inside, channels
                    )
            if not DUAL or DOT_IN:
                rows = load_filters(w, f, tap, c, filters, channels, False)
                acc = dot(p, rows, acc, PRECISION)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    where = (task * pixels + m)[:, None] * filters + f[None, :]
    tl.store(out + where, acc, mask=valid)
    acc = tl.where(valid, acc, 0.0)
    total = tl.sum(acc, 0)
    if DUAL:
        mean = tl.load(coef + (task * 8 + 3) * filters + f, mask=f < filters, other=0.0)
        centred = tl.load(z + where, mask=valid, other=0.0) - mean[None, :]
        store_part(part, total, tl.sum(acc * centred, 0), task, tile, tiles, f, filters)
    else:
        mean = total / tl.minimum(pixels - tile * BM, BM)
        centred = tl.where(valid, acc - mean[None, :], 0.0)
        store_part(part, mean, tl.sum(centred * centred, 0), task, tile, tiles, f, filters)


@triton.jit
def conv_bwd_kernel(
    z, z_dot, delta, delta_dot, winners, coef,  # of the stage
    w, w_dot,  # [F, 9, C] of a task
    x_hat, x_hat_dot, delta_below, gain, bias,  # of the stage below
    out,  # its δ, or with DUAL the direction of it [T, N, H, W, C]
    part,  # [T, tiles, 2, C] Σδ and Σδx̂, or their directions
    images, side, dense, pooled, channels, filters, w_step, w_dot_step, slope,
    STRIDE: tl.constexpr, POOL: tl.constexpr, DUAL: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """δ below = slope·dgrad(dz, w). DUAL: slope·(dgrad(dz_dot, w) + dgrad(dz, w_dot))."""
    tile, task, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    pixels = images * side * side
    m = tile * BM + tl.arange(0, BM)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    n, y, x = pixels_of(m, side, side)
    n += task * images
    coef += task * 8 * filters
    w += task * w_step
    w_dot += task * w_dot_step
    acc = tl.zeros((BM, BN), tl.float32)
    for tap in tl.static_range(9):
        yy, xx = y + 1 - tap // 3, x + 1 - tap % 3
        inside = (m < pixels) & (yy >= 0) & (xx >= 0)
        if STRIDE == 2:
            inside = inside & (yy % 2 == 0) & (xx % 2 == 0)
            yy, xx = yy // 2, xx // 2
        inside = inside & (yy < dense) & (xx < dense)
        for start in range(0, filters, BK):
            f = start + tl.arange(0, BK)
            dz = load_dz(
                z, delta, winners, coef, n, yy, xx, f, inside, filters, dense, pooled, POOL
            )
            if DUAL:
                rows = load_filters(w_dot, f, tap, c, filters, channels, True)
                acc = dot(dz, rows, acc, PRECISION)
                dz = load_dz_dot(
                    z, z_dot, delta, delta_dot, winners, coef,
                    n, yy, xx, f, inside, filters, dense, pooled, POOL,
                )  # fmt: skip
            rows = load_filters(w, f, tap, c, filters, channels, True)
            acc = dot(dz, rows, acc, PRECISION)
    valid = (m < pixels)[:, None] & (c < channels)[None, :]
    where = (task * pixels + m)[:, None] * channels + c[None, :]
    below = tl.load(x_hat + where, mask=valid, other=0.0)
    g = tl.load(gain + c, mask=c < channels, other=0.0)[None, :]
    b = tl.load(bias + c, mask=c < channels, other=0.0)[None, :]
    acc = tl.where(valid, acc * slope_at(below, g, b, slope), 0.0)
    tl.store(out + where, acc, mask=valid)
    products = acc * below
    if DUAL:
        products += tl.load(delta_below + where, mask=valid, other=0.0) * tl.load(
            x_hat_dot + where, mask=valid, other=0.0
        )
    store_part(part, tl.sum(acc, 0), tl.sum(products, 0), task, tile, tiles, c, channels)


@triton.jit
def conv_wgrad_kernel(
    x_hat, x_hat_dot, gain, bias,  # of the stage below; or images
    z, z_dot, delta, delta_dot, winners, coef,  # of the stage
    part,  # [T, splits, F, 9, C]
    images, side, dense, pooled, channels, filters, slope, per_split,
    STRIDE: tl.constexpr, POOL: tl.constexpr, ACT: tl.constexpr, DUAL: tl.constexpr,
    DOT_IN: tl.constexpr,
    PRECISION: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """One tap of wgrad(p, dz) over a split of the pixels. DUAL: wgrad(p, dz_dot) +
    wgrad(p_dot, dz).
    """
    split, tap, task = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pixels = images * dense * dense
    f, c = tl.arange(0, BF), tl.arange(0, BC)
    coef += task * 8 * filters
    acc = tl.zeros((BF, BC), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, pixels), BP):
        m = start + tl.arange(0, BP)
        n, y, x = pixels_of(m, dense, dense)
        n += task * images
        yy, xx = y * STRIDE + tap // 3 - 1, x * STRIDE + tap % 3 - 1
        real = m < pixels
        inside = real & (yy >= 0) & (yy < side) & (xx >= 0) & (xx < side)
        at = (n * side + yy) * side + xx
        p = load_activation(x_hat, gain, bias, slope, at, c, inside, channels, ACT)
        dz = load_dz(z, delta, winners, coef, n, y, x, f, real, filters, dense, pooled, POOL)
        if DUAL:
            if DOT_IN:
                p_dot = load_activation_dot(
                    x_hat, x_hat_dot, gain, bias, slope, at, c, inside, channels
                )
                acc = dot(tl.trans(dz), p_dot, acc, PRECISION)
            dz = load_dz_dot(
                z, z_dot, delta, delta_dot, winners, coef,
                n, y, x, f, real, filters, dense, pooled, POOL,
            )  # fmt: skip
        acc = dot(tl.trans(dz), p, acc, PRECISION)
    where = ((task * tl.num_programs(0) + split) * filters + f[:, None]) * 9 + tap
    valid = (f < filters)[:, None] & (c < channels)[None, :]
    tl.store(part + where * channels + c[None, :], acc, mask=valid)


@triton.jit
def add_splits_kernel(part, out, splits, size, out_step, BLOCK: tl.constexpr):
    """Σ over the splits, in order: part [T, splits, size] → rows of `out`, `out_step` apart."""
    task = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(part + (task * splits + split) * size + i, mask=i < size, other=0.0)
    tl.store(out + task * out_step + i, total, mask=i < size)
