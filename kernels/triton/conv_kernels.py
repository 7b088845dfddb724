"""3×3 convolutions: implicit matrix products over taps and channels with a task axis.

In a pass their operands are built as they are loaded (`operands`), and what comes next is begun on
the result while it is in registers (`sums`): partial moments of z, products of its direction with
z, or the slope of the activation below with the sums behind its gain and bias. Single convolutions
are the same kernels with all that off.
"""

import triton
import triton.language as tl

from kernels.triton.launch import COUNTS
from kernels.triton.operands import (
    dot,
    load_activation,
    load_activation_dot,
    load_dz,
    load_dz_dot,
    pixels_of,
)
from kernels.triton.sums import store_delta, store_moments


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


@triton.jit(do_not_specialize=COUNTS)
def conv_fwd_kernel(
    x_hat, x_hat_dot, gain, bias,  # of the stage below [T, N, H, W, C], [C]; or images
    w, w_dot,  # [F, 9, C] of a task, the next `w_step`, `w_dot_step` further on
    out,  # z, or with DUAL its direction [T, N, OH, OW, F]
    z, coef, part,  # with SUMS: part [T, tiles, 2, F], the first two with DUAL
    images, side, out_side, channels: tl.constexpr, filters: tl.constexpr,
    w_step, w_dot_step, slope,
    STRIDE: tl.constexpr, ACT: tl.constexpr, DUAL: tl.constexpr, DOT_IN: tl.constexpr,
    SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
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
    chunks: tl.constexpr = (channels + BK - 1) // BK
    # One loop over taps and channels: short ones inside an unrolled one would fill and drain the
    # pipeline of loads at every tap, and compile nine times as long.
    for step in range(9 * chunks):
        tap, c = step // chunks, step % chunks * BK + tl.arange(0, BK)
        yy, xx = y * STRIDE + tap // 3 - 1, x * STRIDE + tap % 3 - 1
        inside = (m < pixels) & (yy >= 0) & (yy < side) & (xx >= 0) & (xx < side)
        at = (n * side + yy) * side + xx
        p = load_activation(x_hat, gain, bias, slope, at, c, inside, channels, ACT)
        if DUAL:
            rows = load_filters(w_dot, f, tap, c, filters, channels, False)
            acc = dot(p, rows, acc, PRECISION)
            if DOT_IN:
                p = load_activation_dot(
                    x_hat, x_hat_dot, gain, bias, slope, at, c, inside, channels, ACT
                )
        if not DUAL or DOT_IN:
            rows = load_filters(w, f, tap, c, filters, channels, False)
            acc = dot(p, rows, acc, PRECISION)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    where = (task * pixels + m)[:, None] * filters + f[None, :]
    tl.store(out + where, acc, mask=valid)
    if SUMS:
        store_moments(
            acc, where, valid, z, coef, part, task, tile, tiles, pixels, f, filters, DUAL, BM
        )


@triton.jit(do_not_specialize=COUNTS)
def conv_bwd_kernel(
    z, z_dot, delta, delta_dot, winners, coef,  # of the stage; without BUILD dz, dz_dot
    w, w_dot,  # [F, 9, C] of a task
    x_hat, x_hat_dot, delta_below, gain, bias,  # of the stage below, with BELOW
    out,  # its δ, or with DUAL the direction of it [T, N, H, W, C]
    part,  # [T, tiles, 2, C], with BELOW
    images, side, dense, pooled, channels: tl.constexpr, filters: tl.constexpr,
    w_step, w_dot_step, slope,
    STRIDE: tl.constexpr, POOL: tl.constexpr, BUILD: tl.constexpr, BELOW: tl.constexpr,
    DUAL: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """δ below = slope·dgrad(dz, w). DUAL: slope·(dgrad(dz_dot, w) + dgrad(dz, w_dot)). Without
    BELOW there is no slope.
    """
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
    chunks: tl.constexpr = (filters + BK - 1) // BK
    for step in range(9 * chunks):
        tap, f = step // chunks, step % chunks * BK + tl.arange(0, BK)
        yy, xx = y + 1 - tap // 3, x + 1 - tap % 3
        inside = (m < pixels) & (yy >= 0) & (xx >= 0)
        if STRIDE == 2:
            inside = inside & (yy % 2 == 0) & (xx % 2 == 0)
            yy, xx = yy // 2, xx // 2
        inside = inside & (yy < dense) & (xx < dense)
        dz = load_dz(
            z, delta, winners, coef, n, yy, xx, f, inside, filters, dense, pooled, POOL, BUILD
        )
        if DUAL:
            rows = load_filters(w_dot, f, tap, c, filters, channels, True)
            acc = dot(dz, rows, acc, PRECISION)
            dz = load_dz_dot(
                z, z_dot, delta, delta_dot, winners, coef,
                n, yy, xx, f, inside, filters, dense, pooled, POOL, BUILD,
            )  # fmt: skip
        rows = load_filters(w, f, tap, c, filters, channels, True)
        acc = dot(dz, rows, acc, PRECISION)
    valid = (m < pixels)[:, None] & (c < channels)[None, :]
    where = (task * pixels + m)[:, None] * channels + c[None, :]
    if BELOW:
        store_delta(
            acc, where, valid, x_hat, x_hat_dot, delta_below, gain, bias, slope,
            out, part, task, tile, tiles, c, channels, DUAL,
        )  # fmt: skip
    else:
        tl.store(out + where, acc, mask=valid)


@triton.jit
def add_tap(
    acc, x_hat, x_hat_dot, gain, bias, slope, dz, dz_dot,
    n, yy, xx, c, real, side, channels,
    ACT: tl.constexpr, DUAL: tl.constexpr, DOT_IN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + dz·p at the pixels (yy, xx), or with DUAL the direction of that product; dz is
    [filters, pixels].
    """
    inside = real & (yy >= 0) & (yy < side) & (xx >= 0) & (xx < side)
    at = (n * side + yy) * side + xx
    p = load_activation(x_hat, gain, bias, slope, at, c, inside, channels, ACT)
    if DUAL:
        acc = dot(dz_dot, p, acc, PRECISION)
        if DOT_IN:
            p = load_activation_dot(
                x_hat, x_hat_dot, gain, bias, slope, at, c, inside, channels, ACT
            )
    if not DUAL or DOT_IN:
        acc = dot(dz, p, acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=COUNTS)
def conv_wgrad_kernel(
    x_hat, x_hat_dot, gain, bias,  # of the stage below; or images
    z, z_dot, delta, delta_dot, winners, coef,  # of the stage; without BUILD dz, dz_dot
    part,  # [T, splits, F, 9, C]
    images, side, dense, pooled, channels: tl.constexpr, filters: tl.constexpr,
    slope, per_split,
    STRIDE: tl.constexpr, POOL: tl.constexpr, BUILD: tl.constexpr, ACT: tl.constexpr,
    DUAL: tl.constexpr, DOT_IN: tl.constexpr,
    PRECISION: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A row of taps and a block of wgrad(p, dz) over a split of the pixels, so that dz is built
    once for three taps. DUAL: wgrad(p, dz_dot) + wgrad(p_dot, dz), the latter with DOT_IN.
    """
    split, row, task = tl.program_id(0), tl.program_id(1) % 3, tl.program_id(2)
    block, blocks = tl.program_id(1) // 3, tl.cdiv(channels, BC)
    pixels = images * dense * dense
    f, c = block // blocks * BF + tl.arange(0, BF), block % blocks * BC + tl.arange(0, BC)
    coef += task * 8 * filters
    left = tl.zeros((BF, BC), tl.float32)
    middle = tl.zeros((BF, BC), tl.float32)
    right = tl.zeros((BF, BC), tl.float32)
    end = tl.minimum((split + 1) * per_split, pixels)
    for start in range(split * per_split, end, BP):
        m = start + tl.arange(0, BP)
        n, y, x = pixels_of(m, dense, dense)
        n += task * images
        real = m < end
        dz = tl.trans(
            load_dz(z, delta, winners, coef, n, y, x, f, real, filters, dense, pooled, POOL, BUILD)
        )
        dz_dot = dz
        if DUAL:
            dz_dot = tl.trans(
                load_dz_dot(
                    z, z_dot, delta, delta_dot, winners, coef,
                    n, y, x, f, real, filters, dense, pooled, POOL, BUILD,
                )
            )  # fmt: skip
        yy, xx = y * STRIDE + row - 1, x * STRIDE
        left = add_tap(
            left, x_hat, x_hat_dot, gain, bias, slope, dz, dz_dot,
            n, yy, xx - 1, c, real, side, channels, ACT, DUAL, DOT_IN, PRECISION,
        )  # fmt: skip
        middle = add_tap(
            middle, x_hat, x_hat_dot, gain, bias, slope, dz, dz_dot,
            n, yy, xx, c, real, side, channels, ACT, DUAL, DOT_IN, PRECISION,
        )  # fmt: skip
        right = add_tap(
            right, x_hat, x_hat_dot, gain, bias, slope, dz, dz_dot,
            n, yy, xx + 1, c, real, side, channels, ACT, DUAL, DOT_IN, PRECISION,
        )  # fmt: skip
    where = ((task * tl.num_programs(0) + split) * filters + f[:, None]) * 9 + row * 3
    at = part + where * channels + c[None, :]
    valid = (f < filters)[:, None] & (c < channels)[None, :]
    tl.store(at, left, mask=valid)
    tl.store(at + channels, middle, mask=valid)
    tl.store(at + 2 * channels, right, mask=valid)
