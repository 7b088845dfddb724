"""3×3 convolutions: implicit matrix products over taps and channels with a task axis.

A pass hands them images with a border of zeros (`BORDER`), so that every tap is the first one's
address and a shift: nothing is masked, and loads run ahead of the products. What comes next is
begun on the result while it is in registers (`sums`): partial moments of z, products of its
direction with z, or the slope of the activation below with the sums behind its gain and bias.
Single convolutions are the same kernels with all that off.
"""

import triton
import triton.language as tl

from kernels.triton.launch import COUNTS_AND_SIDES
from kernels.triton.operands import dot, pixels_of
from kernels.triton.sums import store_delta, store_moments


@triton.jit
def load_columns(at, c, size: tl.constexpr, BLOCK: tl.constexpr):
    """[rows, BLOCK] of which column c counts below `size`, 0 beyond: no mask where all do."""
    if size % BLOCK == 0:
        return tl.load(at)
    return tl.load(at, mask=(c < size)[None, :], other=0.0)


@triton.jit
def load_rows(at, c, size: tl.constexpr, BLOCK: tl.constexpr):
    """The same of the rows of [BLOCK, columns]."""
    if size % BLOCK == 0:
        return tl.load(at)
    return tl.load(at, mask=(c < size)[:, None], other=0.0)


@triton.jit
def pixel_at(n, y, x, side, BORDER: tl.constexpr):
    """Pixel (y, x) of image n among all; with `BORDER` row and column −1 and `side` are there."""
    if BORDER:
        return (n * (side + 2) + y + 1) * (side + 2) + x + 1
    return (n * side + y) * side + x


@triton.jit
def load_tap(images, n, y, x, c, real, side, size: tl.constexpr, BORDER: tl.constexpr):
    """[pixels, BK] at (y, x) where `real`, 0 outside the image."""
    inside = real & (y >= 0) & (y < side) & (x >= 0) & (x < side)
    at = images + pixel_at(n, y, x, side, BORDER)[:, None] * size + c[None, :]
    return tl.load(at, mask=inside[:, None] & (c < size)[None, :], other=0.0)


@triton.jit
def turn_kernel(
    w,  # [stages, F, 9, C] of a task, the next `w_step` further on
    out,  # [T, stages, C, 9, F]
    channels: tl.constexpr, filters: tl.constexpr, w_step,
    BF: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Filters as the input gradient reads them, whose depth is the filters."""
    matrix, task, blocks = tl.program_id(0), tl.program_id(1), tl.cdiv(channels, BC)
    tap, stage = matrix % 9, matrix // 9
    f = tl.program_id(2) // blocks * BF + tl.arange(0, BF)
    c = tl.program_id(2) % blocks * BC + tl.arange(0, BC)
    real = (f < filters)[:, None] & (c < channels)[None, :]
    at = w + task * w_step + ((stage * filters + f[:, None]) * 9 + tap) * channels + c[None, :]
    value = tl.trans(tl.load(at, mask=real, other=0.0))
    row = (task * (tl.num_programs(0) // 9) + stage) * channels + c
    to = out + (row[:, None] * 9 + tap) * filters + f[None, :]
    tl.store(to, value, mask=(c < channels)[:, None] & (f < filters)[None, :])


@triton.jit(do_not_specialize=COUNTS_AND_SIDES)
def conv_fwd_kernel(
    x, x_dot,  # [T, N, H, W, C]
    w, w_dot,  # [F, 9, C] of a task, the next `w_step`, `w_dot_step` further on
    out,  # z, or with DUAL its direction [T, N, OH, OW, F]
    z, coef, part,  # with SUMS: part [T, tiles, 2, F], the first two with DUAL
    images, side, out_side, channels: tl.constexpr, filters: tl.constexpr, w_step, w_dot_step,
    STRIDE: tl.constexpr, BORDER: tl.constexpr, DUAL: tl.constexpr, DOT_IN: tl.constexpr,
    SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """z = conv(x, w). DUAL: z_dot = conv(x, w_dot) + conv(x_dot, w), the latter with DOT_IN."""
    tile, task, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    pixels = images * out_side * out_side
    m, k = tile * BM + tl.arange(0, BM), tl.arange(0, BK)
    f = tl.program_id(2) * BN + tl.arange(0, BN)
    n, y, column = pixels_of(tl.minimum(m, pixels - 1), out_side, out_side)
    n += task * images
    y, column = y * STRIDE - 1, column * STRIDE - 1  # of the first tap
    first = pixel_at(n, y, column, side, BORDER)[:, None] * channels + k[None, :]
    rows = tl.minimum(f, filters - 1)[None, :] * (9 * channels) + k[:, None]
    w += task * w_step
    w_dot += task * w_dot_step
    acc = tl.zeros((BM, BN), tl.float32)
    chunks: tl.constexpr = (channels + BK - 1) // BK
    # One loop over taps and channels: short ones inside an unrolled one would fill and drain the
    # pipeline of loads at every tap, and compile nine times as long.
    for step in range(9 * chunks):
        tap, begin = step // chunks, step % chunks * BK
        c, weight = begin + k, tap * channels + begin
        row, col = tap // 3, tap % 3
        shift = (row * (side + 2) + col) * channels + begin
        if BORDER:
            p = load_columns(x + first + shift, c, channels, BK)
        else:
            p = load_tap(x, n, y + row, column + col, c, m < pixels, side, channels, False)
        if DUAL:
            acc = dot(p, load_rows(w_dot + rows + weight, c, channels, BK), acc, PRECISION)
            if DOT_IN:
                if BORDER:
                    p = load_columns(x_dot + first + shift, c, channels, BK)
                else:
                    p = load_tap(
                        x_dot, n, y + row, column + col, c, m < pixels, side, channels, False
                    )
        if not DUAL or DOT_IN:
            acc = dot(p, load_rows(w + rows + weight, c, channels, BK), acc, PRECISION)
    valid = (m < pixels)[:, None] & (f < filters)[None, :]
    where = (task * pixels + m)[:, None] * filters + f[None, :]
    tl.store(out + where, acc, mask=valid)
    if SUMS:
        store_moments(
            acc, where, valid, z, coef, part, task, tile, tiles, pixels, f, filters, DUAL, BM
        )


@triton.jit(do_not_specialize=COUNTS_AND_SIDES)
def conv_bwd_kernel(
    dz, dz_dot,  # [T, N, OH, OW, F]
    w, w_dot,  # turned, [C, 9, F] of a task, the next `w_step`, `w_dot_step` further on
    x_hat, x_hat_dot, delta_below,  # of the stage below, with BELOW
    gain, bias,  # [F] of a task, the next `row_step` further on
    out,  # its δ, or with DUAL the direction of it [T, N, H, W, C]
    part,  # [T, tiles, 2, C], with BELOW
    images, side, dense, channels: tl.constexpr, filters: tl.constexpr, w_step, w_dot_step,
    row_step, slope,
    STRIDE: tl.constexpr, BORDER: tl.constexpr, BELOW: tl.constexpr, DUAL: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """δ below = slope·dgrad(dz, w). DUAL: slope·(dgrad(dz_dot, w) + dgrad(dz, w_dot)). Without
    BELOW there is no slope.
    """
    tile, task, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    pixels = images * side * side
    m, k = tile * BM + tl.arange(0, BM), tl.arange(0, BK)
    c = tl.program_id(2) * BN + tl.arange(0, BN)
    n, y, x = pixels_of(tl.minimum(m, pixels - 1), side, side)
    n += task * images
    first = pixel_at(n, y, x, dense, BORDER)[:, None] * filters + k[None, :]
    rows = tl.minimum(c, channels - 1)[None, :] * (9 * filters) + k[:, None]
    w += task * w_step
    w_dot += task * w_dot_step
    acc = tl.zeros((BM, BN), tl.float32)
    chunks: tl.constexpr = (filters + BK - 1) // BK
    for step in range(9 * chunks):
        tap, begin = step // chunks, step % chunks * BK
        f, weight = begin + k, tap * filters + begin
        row, col = 1 - tap // 3, 1 - tap % 3
        shift = (row * (dense + 2) + col) * filters + begin
        yy, xx, real = y + row, x + col, m < pixels
        if STRIDE == 2:
            real = real & (yy % 2 == 0) & (xx % 2 == 0)
            # rounded down below 0 as well, which a division is not
            yy, xx = yy >> 1, xx >> 1
        if BORDER and STRIDE == 1:
            d = load_columns(dz + first + shift, f, filters, BK)
        else:
            d = load_tap(dz, n, yy, xx, f, real, dense, filters, BORDER)
        if DUAL:
            acc = dot(d, load_rows(w_dot + rows + weight, f, filters, BK), acc, PRECISION)
            if BORDER and STRIDE == 1:
                d = load_columns(dz_dot + first + shift, f, filters, BK)
            else:
                d = load_tap(dz_dot, n, yy, xx, f, real, dense, filters, BORDER)
        acc = dot(d, load_rows(w + rows + weight, f, filters, BK), acc, PRECISION)
    valid = (m < pixels)[:, None] & (c < channels)[None, :]
    where = (task * pixels + m)[:, None] * channels + c[None, :]
    if BELOW:
        store_delta(
            acc, where, valid, x_hat, x_hat_dot, delta_below,
            gain + task * row_step, bias + task * row_step, slope,
            out, part, task, tile, tiles, c, channels, DUAL,
        )  # fmt: skip
    else:
        tl.store(out + where, acc, mask=valid)


@triton.jit
def load_dz_at(dz, q, f, real, filters: tl.constexpr, LINEAR: tl.constexpr, BF: tl.constexpr):
    """[pixels, filters] at pixels q, 0 where they are not real; of a line those are 0 anyway, and
    beyond the filters are values of the border's next pixels, of which nothing is kept.
    """
    at = dz + q[:, None] * filters + f[None, :]
    if LINEAR:
        if filters >= 16:  # the border behind the last pixel of all is four pixels at least
            return tl.load(at)
        return load_columns(at, f, filters, BF)
    return tl.load(at, mask=real[:, None] & (f < filters)[None, :], other=0.0)


@triton.jit
def add_tap(
    acc, x, x_dot, dz, dz_dot, q, n, yy, xx, shift, c, real, side, channels: tl.constexpr,
    BORDER: tl.constexpr, LINEAR: tl.constexpr, DUAL: tl.constexpr, DOT_IN: tl.constexpr,
    PRECISION: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """acc + dz·p at a tap, or with DUAL the direction of that product; dz is [filters, pixels]."""
    at = q[:, None] * channels + c[None, :] + shift * channels
    if LINEAR:
        p = load_columns(x + at, c, channels, BC)
    else:
        p = load_tap(x, n, yy, xx, c, real, side, channels, BORDER)
    if DUAL:
        acc = dot(dz_dot, p, acc, PRECISION)
        if DOT_IN:
            if LINEAR:
                p = load_columns(x_dot + at, c, channels, BC)
            else:
                p = load_tap(x_dot, n, yy, xx, c, real, side, channels, BORDER)
    if not DUAL or DOT_IN:
        acc = dot(dz, p, acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=COUNTS_AND_SIDES)
def conv_wgrad_kernel(
    x, x_dot,  # [T, N, H, W, C]
    dz, dz_dot,  # [T, N, OH, OW, F]
    part,  # [T, splits, F, 9, C]
    images, side, dense, channels: tl.constexpr, filters: tl.constexpr, per_split,
    STRIDE: tl.constexpr, BORDER: tl.constexpr, DUAL: tl.constexpr, DOT_IN: tl.constexpr,
    PRECISION: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A row of taps and a block of wgrad(x, dz) over a split of the pixels. DUAL: wgrad(x, dz_dot)
    + wgrad(x_dot, dz), the latter with DOT_IN.

    Images of one size with borders are one line of pixels: those of the border have a dz of 0, and
    what lies a tap away from them counts nothing.
    """
    LINEAR: tl.constexpr = BORDER and STRIDE == 1
    split, row, task = tl.program_id(0), tl.program_id(1) % 3, tl.program_id(2)
    block, blocks = tl.program_id(1) // 3, tl.cdiv(channels, BC)
    f, c = block // blocks * BF + tl.arange(0, BF), block % blocks * BC + tl.arange(0, BC)
    left = tl.zeros((BF, BC), tl.float32)
    middle = tl.zeros((BF, BC), tl.float32)
    right = tl.zeros((BF, BC), tl.float32)
    pitch = dense + 2
    # Of a line all but the ends, whose neighbours would be another task's.
    pixels = images * pitch * pitch - 2 * pitch - 2 if LINEAR else images * dense * dense
    begin = task * images * pitch * pitch + pitch + 1
    up = (row - 1) * pitch
    end = tl.minimum((split + 1) * per_split, pixels)
    for start in range(split * per_split, end, BP):
        m = start + tl.arange(0, BP)
        n, y, col = pixels_of(m, dense, dense)
        n += task * images
        real = m < end
        if LINEAR:
            q = begin + tl.where(real, m, pitch - 2)  # or a pixel of the border
        else:
            q = pixel_at(n, y, col, dense, BORDER)
        d = tl.trans(load_dz_at(dz, q, f, real, filters, LINEAR, BF))
        d_dot = d
        if DUAL:
            d_dot = tl.trans(load_dz_at(dz_dot, q, f, real, filters, LINEAR, BF))
        yy, xx = y * STRIDE + row - 1, col * STRIDE
        left = add_tap(
            left, x, x_dot, d, d_dot, q, n, yy, xx - 1, up - 1, c, real, side, channels,
            BORDER, LINEAR, DUAL, DOT_IN, PRECISION, BC,
        )  # fmt: skip
        middle = add_tap(
            middle, x, x_dot, d, d_dot, q, n, yy, xx, up, c, real, side, channels,
            BORDER, LINEAR, DUAL, DOT_IN, PRECISION, BC,
        )  # fmt: skip
        right = add_tap(
            right, x, x_dot, d, d_dot, q, n, yy, xx + 1, up + 1, c, real, side, channels,
            BORDER, LINEAR, DUAL, DOT_IN, PRECISION, BC,
        )  # fmt: skip
    where = ((task * tl.num_programs(0) + split) * filters + f[:, None]) * 9 + row * 3
    at = part + where * channels + c[None, :]
    valid = (f < filters)[:, None] & (c < channels)[None, :]
    tl.store(at, left, mask=valid)
    tl.store(at + channels, middle, mask=valid)
    tl.store(at + 2 * channels, right, mask=valid)
