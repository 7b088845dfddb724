"""Tiles of dz and its direction, built from what a pass keeps.

Images are NHWC; a stage's x̂ and δ are at the winners of its windows. `coef` [T, 8, F] holds what dz
and its direction follow from (the formulas are those of kernels/plain/norm_act.py):

    dz     = a0·S(δ) + a1·(z − μ) + a2
    dz_dot = a0·S(δ_dot) + b1·S(δ) + b2·(z − μ) + a1·(z_dot − μ_dot) + b4
"""

import triton
import triton.language as tl

COEFFICIENTS = 8  # rows a0, a1, a2, μ, b1, b2, b4, μ_dot


@triton.jit
def dot(a, b, sum, PRECISION: tl.constexpr):
    """sum + a·b; `PRECISION` is bf16 or what `tl.dot` calls its input precision."""
    if PRECISION == "bf16":
        sum = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sum)
    else:
        sum = tl.dot(a, b, sum, input_precision=PRECISION)
    return sum


@triton.jit
def rounded_to(x, PRECISION: tl.constexpr):
    """What a product in TF32 makes of x, to the nearest, so that it takes what is stored as it is;
    x itself in another precision.
    """
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000  # 10 bits of mantissa are left
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN could become 0
    return x


@triton.jit
def unbent(x_hat, gain, bias):
    """gain·x̂ + bias, which the activation gets. Rounded once, whatever a compiler makes of a
    product and a sum: it is on the same side of the bend in every kernel, that of the exact sum.
    """
    x_hat, gain = tl.broadcast(x_hat, gain)
    x_hat, bias = tl.broadcast(x_hat, bias)
    return tl.fma(x_hat, gain, bias)


@triton.jit
def slope_at(x_hat, gain, bias, slope):
    """Slope of the activation where x̂ is what it is made of."""
    return tl.where(unbent(x_hat, gain, bias) > 0, 1.0, slope)


@triton.jit
def pixels_of(m, height, width):
    """Image, row and column of pixel m."""
    rest = m % (height * width)
    return m // (height * width), rest // width, rest % width


@triton.jit
def load_pixels(values, n, y, x, f, inside, filters, side):
    """[pixels, filters] of NHWC images, 0 outside. `n` counts images of all tasks."""
    valid = inside[:, None] & (f < filters)[None, :]
    where = (((n * side + y) * side + x) * filters)[:, None] + f[None, :]
    return tl.load(values + where, mask=valid, other=0.0)


@triton.jit
def load_scattered(values, winners, n, y, x, f, inside, filters, dense, pooled, POOL: tl.constexpr):
    """[pixels, filters] of S(values): at a window's winner its value, elsewhere 0."""
    if not POOL:
        return load_pixels(values, n, y, x, f, inside, filters, dense)
    py, px = y // 2, x // 2
    inside = inside & (py < pooled) & (px < pooled)
    valid = inside[:, None] & (f < filters)[None, :]
    where = (((n * pooled + py) * pooled + px) * filters)[:, None] + f[None, :]
    winner = tl.load(winners + where, mask=valid, other=0)
    # Not in the mask of the load, which would then wait for the winners and be scalar.
    value = tl.load(values + where, mask=valid, other=0.0)
    return tl.where(winner == (y % 2 * 2 + x % 2)[:, None], value, 0.0)


@triton.jit
def row_of(coef, row: tl.constexpr, task, f, filters):
    return coef + (task * 8 + row) * filters + f


@triton.jit
def coefficient(coef, row: tl.constexpr, task, f, filters):
    """[F] of a block of filters."""
    return tl.load(row_of(coef, row, task, f, filters), mask=f < filters, other=0.0)


@triton.jit
def load_dz(
    z, delta, winners, mean, a0, a1, a2,  # the last four [F]
    n, y, x, f, inside, filters, dense, pooled, POOL: tl.constexpr,
):  # fmt: skip
    """[pixels, filters] of dz, 0 outside."""
    spike = load_scattered(delta, winners, n, y, x, f, inside, filters, dense, pooled, POOL)
    centred = load_pixels(z, n, y, x, f, inside, filters, dense) - mean[None, :]
    value = a0[None, :] * spike
    value += a1[None, :] * centred + a2[None, :]
    return tl.where(inside[:, None], value, 0.0)


@triton.jit
def load_dz_dot(
    z, z_dot, delta, delta_dot, winners, mean, mean_dot, a0, a1, b1, b2, b4,  # the last seven [F]
    n, y, x, f, inside, filters, dense, pooled, POOL: tl.constexpr,
):  # fmt: skip
    """The same of its direction."""
    spike = load_scattered(delta, winners, n, y, x, f, inside, filters, dense, pooled, POOL)
    spike_dot = load_scattered(delta_dot, winners, n, y, x, f, inside, filters, dense, pooled, POOL)
    centred = load_pixels(z, n, y, x, f, inside, filters, dense) - mean[None, :]
    centred_dot = load_pixels(z_dot, n, y, x, f, inside, filters, dense) - mean_dot[None, :]
    value = a0[None, :] * spike_dot + b1[None, :] * spike
    value += b2[None, :] * centred + b4[None, :]
    value += a1[None, :] * centred_dot
    return tl.where(inside[:, None], value, 0.0)
