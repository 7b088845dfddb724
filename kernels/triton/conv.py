"""z = conv(x, w), its gradients and tangents; signatures as in `kernels.plain.conv`.

Square images, 3×3 filters, padding 1, stride 1 or 2: `refusal` says so of any other geometry, and
dispatch then chooses another backend. The two products of a tangent are one sum.
"""

import torch
import triton
from torch import Tensor

from kernels import checks
from kernels.plain.layout import channels_last, empty_images, images
from kernels.triton.conv_kernels import (
    add_splits_kernel,
    conv_bwd_kernel,
    conv_fwd_kernel,
    conv_wgrad_kernel,
)
from kernels.triton.tensors import block, countable, expect

SCOPE = checks.CONV_SCOPE


def refusal(x_shape, w_shape, stride: int, padding: int) -> str | None:
    """Why this geometry is not for here, in one line; `None` if it is."""
    return checks.conv_refusal("triton", x_shape, w_shape, stride, padding)


def fwd(
    x: Tensor,  # [T, N, C, H, W]
    w: Tensor,  # [T, F, C, 3, 3]
    stride: int,
    padding: int,
) -> Tensor:  # [T, N, F, H', W']
    return _value(((x, w),), x, w, stride, padding)


def bwd(
    dz: Tensor,  # [T, N, F, H', W']
    x: Tensor,  # [T, N, C, H, W]
    w: Tensor,  # [T, F, C, 3, 3]
    stride: int,
    padding: int,
    need: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    return _gradients(((x, w, dz),), x, w, stride, padding, need)


def tan_fwd(x, w, x_dot, w_dot, stride, padding) -> Tensor | None:
    products = tuple(p for p in ((x, w_dot), (x_dot, w)) if p[0] is not None and p[1] is not None)
    return _value(products, x, w, stride, padding) if products else None


def tan_bwd(
    dz, dz_dot, x, w, x_dot, w_dot, stride, padding, need=(True, True)
) -> tuple[Tensor | None, Tensor | None]:
    products = tuple(p for p in ((x_dot, w_dot, dz), (x, w, dz_dot)) if p[2] is not None)
    return _gradients(products, x, w, stride, padding, need)


def conv_blocks(depth: int, width: int) -> dict[str, int]:
    """Pixels, channels of the result, and channels summed over at once, of a program."""
    return {"BM": 64, "BN": block(width), "BK": 32 if depth % 32 == 0 else 16}


def wgrad_blocks(pixels: int, filters: int, channels: int) -> tuple[tuple[int, int], int, dict]:
    """Programs for the parts of the pixels and for the filters' taps, the pixels of a part, and
    the blocks of a program.
    """
    bp, bf, bc = 32, block(filters), block(channels)
    per_split = triton.cdiv(triton.cdiv(pixels, min(triton.cdiv(pixels, 4 * bp), 16)), bp) * bp
    tiles = triton.cdiv(filters, bf) * triton.cdiv(channels, bc)
    return (triton.cdiv(pixels, per_split), 9 * tiles), per_split, {"BF": bf, "BC": bc, "BP": bp}


def _value(products: tuple, x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """Σ over one or two products (x, w) of their convolutions."""
    shape = _checked(x, w, stride, padding)
    for a, b in products:
        expect("conv", x, x=(a, x.shape), w=(b, w.shape))
    (t, n, c, side, _), (_, _, f, out_side, _) = x.shape, shape
    (x, w_dot), (x_dot, w) = products[0], products[-1]
    x, x_dot, w, w_dot = channels_last(x), channels_last(x_dot), images(w), images(w_dot)
    z = empty_images(x, *shape[:4])
    blocks = conv_blocks(c, f)
    grid = triton.cdiv(n * out_side**2, blocks["BM"]), t, triton.cdiv(f, blocks["BN"])
    conv_fwd_kernel[grid](
        x, x_dot, x, x, w, w_dot, z, z, z, z,
        n, side, out_side, c, f, w.stride(0), w_dot.stride(0), 1.0,
        STRIDE=stride, ACT=False, DUAL=len(products) == 2, DOT_IN=len(products) == 2, SUMS=False,
        PRECISION=_precision(), **blocks,
    )  # fmt: skip
    return z


def _gradients(
    products: tuple, x: Tensor, w: Tensor, stride: int, padding: int, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Σ over one or two products (x, w, dz) of dgrad(dz, w), and of wgrad(x, dz); `x` and `w` lend
    their shapes.
    """
    shape = _checked(x, w, stride, padding)
    for a, b, dz in products:
        expect("conv", x, x=(a, x.shape), w=(b, w.shape), dz=(dz, shape))
    sizes = *x.shape[:4], *shape[2:4]
    products = [(a, b, channels_last(dz)) for a, b, dz in products]
    into_x = [(images(b), dz) for _, b, dz in products if need[0] and b is not None]
    into_w = [(channels_last(a), dz) for a, _, dz in products if need[1] and a is not None]
    return (
        _dgrad(into_x, sizes, stride) if into_x else None,
        _wgrad(into_w, sizes, stride) if into_w else None,
    )


def _dgrad(products: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...], stride: int) -> Tensor:
    t, n, c, side, f, dense = sizes
    (w_dot, dz), (w, dz_dot) = products[0], products[-1]
    dx = empty_images(dz, t, n, c, side)
    blocks = conv_blocks(f, c)
    conv_bwd_kernel[(triton.cdiv(n * side**2, blocks["BM"]), t, triton.cdiv(c, blocks["BN"]))](
        dz, dz_dot, dz, dz, dz, dz, w, w_dot, dz, dz, dz, dz, dz, dx, dz,
        n, side, dense, dense, c, f, w.stride(0), w_dot.stride(0), 1.0,
        STRIDE=stride, POOL=False, BUILD=False, BELOW=False, DUAL=len(products) == 2,
        PRECISION=_precision(), **blocks,
    )  # fmt: skip
    return dx


def _wgrad(products: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...], stride: int) -> Tensor:
    t, n, c, side, f, dense = sizes
    (x_dot, dz), (x, dz_dot) = products[0], products[-1]
    dw = empty_images(x, t, f, c, 3)
    (splits, taps), per_split, blocks = wgrad_blocks(n * dense**2, f, c)
    part = torch.empty((t, splits, f * 9 * c), dtype=x.dtype, device=x.device)
    conv_wgrad_kernel[(splits, taps, t)](
        x, x_dot, x, x, dz, dz_dot, dz, dz, dz, dz, part,
        n, side, dense, dense, c, f, 1.0, per_split,
        STRIDE=stride, POOL=False, BUILD=False, ACT=False, DUAL=len(products) == 2,
        DOT_IN=len(products) == 2, PRECISION=_precision(), **blocks,
    )  # fmt: skip
    size = f * 9 * c
    add_splits_kernel[(triton.cdiv(size, 1024), t)](part, dw, splits, size, size, BLOCK=1024)
    return dw


def _checked(x: Tensor, w: Tensor, stride: int, padding: int) -> tuple[int, ...]:
    """The shape of z."""
    shape = checks.conv_shape("triton", x, w, stride, padding)
    expect("conv", x)
    countable("conv", x.shape, w.shape, shape)
    return shape


def _precision() -> str:
    """As torch's own convolutions take float32 on a GPU: rounded to TF32 unless that is off."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
