"""z = conv(x, w), its gradients and tangents; signatures as in `kernels.plain.conv`.

Square images, filters of an odd size with half of it as padding, stride 1 or 2: `refusal` says so
of any other geometry, and dispatch then chooses another backend. 3×3 filters are the fast ones, by
Winograd where it pays; others are a matrix product a tap, which is as good for 1×1. The two
products of a tangent are one sum.
"""

from functools import cache

from torch import Tensor

from kernels import checks
from kernels.native import module
from kernels.native.tensors import expect, ops
from kernels.plain.layout import empty_images, images
from kernels.tensors import matrix
from kernels.threads import threads

SCOPE = checks.ODD_CONV_SCOPE


def refusal(x_shape, w_shape, stride: int, padding: int) -> str | None:
    """Why this geometry is not for here, in one line; `None` if it is."""
    return checks.conv_refusal("native", x_shape, w_shape, stride, padding, SCOPE)


def fwd(
    x: Tensor,  # [T, N, C, H, W]
    w: Tensor,  # [T, F, C, R, R]
    stride: int,
    padding: int,
) -> Tensor:  # [T, N, F, H', W']
    return _value(((x, w),), x, w, stride, padding)


def bwd(
    dz: Tensor,  # [T, N, F, H', W']
    x: Tensor,  # [T, N, C, H, W]
    w: Tensor,  # [T, F, C, R, R]
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
    products = tuple(p for p in ((x, w, dz_dot), (x_dot, w_dot, dz)) if p[2] is not None)
    need = tuple(
        wanted and any(p[operand] is not None for p in products)
        for wanted, operand in zip(need, (1, 0), strict=True)
    )
    return _gradients(products, x, w, stride, padding, need) if any(need) else (None, None)


def _value(products: tuple, x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """Σ over products (x, w) of their convolutions."""
    t, shape, z_shape = _sizes(x, w, stride, padding)
    for a, b in products:
        expect("conv", x, x=(a, x.shape), w=(b, w.shape))
    z = empty_images(x, t, *z_shape[1:4])
    held = [(images(a), images(b)) for a, b in products]
    ops(x.dtype).conv_fwd(shape, t, threads(), *_pair(held), matrix(z))
    return z


def _gradients(
    products: tuple, x: Tensor, w: Tensor, stride: int, padding: int, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Σ over products (x, w, dz) of dgrad(dz, w), and of wgrad(x, dz); `x` and `w` lend their
    shapes.
    """
    t, shape, z_shape = _sizes(x, w, stride, padding)
    held = []
    for a, b, dz in products:
        a, b = a if need[1] else None, b if need[0] else None
        expect("conv", x, ("x", "w"), x=(a, x.shape), w=(b, w.shape), dz=(dz, z_shape))
        held.append(tuple(map(images, (a, b, dz))))
    dx = empty_images(x, t, *x.shape[1:4]) if need[0] else None
    dw = empty_images(x, t, *w.shape[1:4]) if need[1] else None
    ops(x.dtype).conv_bwd(shape, t, threads(), *_pair(held), matrix(dx), matrix(dw))
    return dx, dw


def _pair(products: list[tuple]) -> list[list[tuple[int, int]]]:
    """Two products of three operands each, missing ones as nothing."""
    operands = [[*map(matrix, p)] for p in products]
    return [(p + [matrix(None)] * 3)[:3] for p in (operands + [[]])[:2]]


def _sizes(x: Tensor, w: Tensor, stride: int, padding: int):
    """Tasks, the module's sizes, and the shape of z."""
    z_shape = checks.conv_shape("native", x, w, stride, padding, SCOPE)
    t, n, f, _, _ = z_shape
    return t, _shape(n, *x.shape[2:4], f, stride, w.shape[3]), z_shape


@cache
def _shape(*sizes: int):
    return module.ConvShape(*sizes)
