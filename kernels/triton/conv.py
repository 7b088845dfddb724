"""z = conv(x, w), its gradients and tangents; signatures as in `kernels.plain.conv`.

Square images, 3×3 filters, padding 1, stride 1 or 2: `refusal` says so of any other geometry, and
dispatch then chooses another backend. The two products of a tangent are one sum.
"""

import torch
import triton
from torch import Tensor

from kernels import checks, tf32
from kernels.plain.layout import channels_last, empty_images, images
from kernels.triton.conv_kernels import (
    conv_bwd_kernel,
    conv_fwd_kernel,
    conv_wgrad_kernel,
    turn_kernel,
)
from kernels.triton.launch import Geometry, block, config
from kernels.triton.splits import Parts, Segment
from kernels.triton.tensors import countable, expect, near

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


def turn(w: Tensor, out: Tensor, step: int) -> None:
    """Filters [T, stages, F, 9, C], tasks `step` apart, → [T, stages, C, 9, F]."""
    t, stages, c, _, f = out.shape
    bf, bc = block(f), block(c)
    grid = 9 * stages, t, triton.cdiv(f, bf) * triton.cdiv(c, bc)
    turn_kernel[grid](w, out, c, f, step, BF=bf, BC=bc, num_warps=4)


def wgrad_grid(
    g: Geometry, tasks: int, device: torch.device
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Programs for the splits of the pixels, for the filters' blocks and rows of taps, and for the
    tasks; and the configuration.
    """
    blocks = config(g, device)
    tiles = triton.cdiv(g.filters, blocks["BF"]) * triton.cdiv(g.channels, blocks["BC"])
    return (triton.cdiv(g.pixels, blocks["per_split"]), 3 * tiles, tasks), blocks


def _value(products: tuple, x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """Σ over one or two products (x, w) of their convolutions."""
    shape = _checked(x, w, stride, padding)
    for a, b in products:
        expect("conv", x, x=(a, x.shape), w=(b, w.shape))
    (t, n, c, side, _), (_, _, f, out_side, _) = x.shape, shape
    (x, w_dot), (x_dot, w) = products[0], products[-1]
    x, x_dot, w, w_dot = channels_last(x), channels_last(x_dot), _filters(w), _filters(w_dot)
    z = empty_images(x, *shape[:4])
    dual = len(products) == 2
    blocks = config(Geometry("conv_fwd", n, out_side, c, f, _precision(), dual), z.device)
    grid = triton.cdiv(n * out_side**2, blocks["BM"]), t, triton.cdiv(f, blocks["BN"])
    conv_fwd_kernel[grid](
        x, x_dot, w, w_dot, z, z, z, z,
        n, side, out_side, c, f, w.stride(0), w_dot.stride(0),
        STRIDE=stride, BORDER=False, DUAL=dual, DOT_IN=dual, SUMS=False,
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
        expect("conv", x, ("x", "w"), x=(a, x.shape), w=(b, w.shape), dz=(dz, shape))
    sizes = *x.shape[:4], *shape[2:4]
    products = [(a, b, channels_last(dz)) for a, b, dz in products]
    into_x = [(_filters(b), dz) for _, b, dz in products if need[0] and b is not None]
    into_w = [(channels_last(a), dz) for a, _, dz in products if need[1] and a is not None]
    return (
        _dgrad(into_x, sizes, stride) if into_x else None,
        _wgrad(into_w, sizes, stride) if into_w else None,
    )


def _dgrad(products: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...], stride: int) -> Tensor:
    t, n, c, side, f, dense = sizes
    (w_dot, dz), (w, dz_dot) = products[0], products[-1]
    dx = empty_images(dz, t, n, c, side)
    geometry = Geometry("conv_bwd", n, side, c, f, _precision(), len(products) == 2)
    blocks = config(geometry, dx.device)
    w, w_dot = _turned(w), _turned(w_dot)
    conv_bwd_kernel[(triton.cdiv(n * side**2, blocks["BM"]), t, triton.cdiv(c, blocks["BN"]))](
        dz, dz_dot, w, w_dot, dz, dz, dz, dz, dz, dx, dz,
        n, side, dense, c, f, w.stride(0), w_dot.stride(0), 0, 1.0,
        STRIDE=stride, BORDER=False, BELOW=False, DUAL=len(products) == 2,
        PRECISION=_precision(), **blocks,
    )  # fmt: skip
    return dx


def _wgrad(products: list[tuple[Tensor, Tensor]], sizes: tuple[int, ...], stride: int) -> Tensor:
    t, n, c, side, f, dense = sizes
    (x_dot, dz), (x, dz_dot) = products[0], products[-1]
    dw = empty_images(x, t, f, c, 3)
    dual = len(products) == 2
    grid, blocks = wgrad_grid(
        Geometry("conv_wgrad", n, dense, c, f, _precision(), dual), t, dw.device
    )
    parts = Parts.of(dw, t, Segment(grid[0], f * 9 * c))
    conv_wgrad_kernel[grid](
        x, x_dot, dz, dz_dot, parts.segment(0),
        n, side, dense, c, f,
        STRIDE=stride, BORDER=False, DUAL=dual, DOT_IN=dual, PRECISION=_precision(), **blocks,
    )  # fmt: skip
    parts.add(dw, f * 9 * c)
    return dw


def _filters(w: Tensor) -> Tensor:
    """[T, F, C, 3, 3] as the kernels read them"""
    return near(images(w))


def _turned(w: Tensor) -> Tensor:  # [T, F, C, 3, 3], laid out as images → [T, 1, C, 9, F]
    t, f, c = w.shape[:3]
    out = w.new_empty(t, 1, c, 9, f)
    turn(w, out, w.stride(0))
    return out


def _checked(x: Tensor, w: Tensor, stride: int, padding: int) -> tuple[int, ...]:
    """The shape of z."""
    shape = checks.conv_shape("triton", x, w, stride, padding)
    expect("conv", x)
    countable("conv", x.shape, w.shape, shape)
    return shape


def _precision() -> str:
    """As torch's own convolutions take float32 on a GPU: rounded to TF32 unless that is off."""
    return "tf32" if tf32.of_convolutions() else "ieee"
