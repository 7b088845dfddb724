"""Convolutions whose operands are rounded as a precision rounds them, differentiable to any order:
the three contractions of one trilinear form, each the derivative of the others.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight


def convolution(
    x: Tensor,  # [N, C, H, W]
    w: Tensor,  # [F, C, R, R], padded by R // 2
    stride: int,
    precision: str = "fp32",  # of kernels.PRECISIONS; others than fp32 want float32 tensors
) -> Tensor:  # [N, F, H', W']
    return _Forward.apply(x, w, stride, precision)


def parts(x: Tensor, precision: str) -> list[Tensor]:
    """The narrow numbers whose sum stands for an operand."""
    if precision == "fp32":
        return [x]
    narrow = _to_tf32 if precision.startswith("tf32") else _to_bf16
    first = narrow(x)
    return [first, narrow(x - first)] if precision.endswith("x3") else [first]


def _to_tf32(x: Tensor) -> Tensor:
    """A tensor core reads ten bits of the mantissa and leaves the others."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def _to_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def _product(of: Callable, a: Tensor, b: Tensor, precision: str) -> Tensor:
    """Of the parts, without the product of the two small ones."""
    a, b = parts(a.detach(), precision), parts(b.detach(), precision)
    small = [of(a[0], b[1]), of(a[1], b[0])] if len(a) > 1 else []
    return sum(small, of(a[0], b[0]))


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, stride, precision):
        ctx.save_for_backward(x, w)
        ctx.options = stride, precision
        padding = w.shape[-1] // 2
        return _product(lambda a, b: torch.conv2d(a, b, None, stride, padding), x, w, precision)

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        dx = _OfInput.apply(dz, w, x.shape, *ctx.options) if ctx.needs_input_grad[0] else None
        return dx, _OfWeight.apply(x, dz, w.shape, *ctx.options), None, None


class _OfInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dz, w, shape, stride, precision):
        ctx.save_for_backward(dz, w)
        ctx.options = stride, precision
        padding = w.shape[-1] // 2
        return _product(lambda a, b: conv2d_input(shape, b, a, stride, padding), dz, w, precision)

    @staticmethod
    def backward(ctx, dx_dot):
        dz, w = ctx.saved_tensors
        dw = _OfWeight.apply(dx_dot, dz, w.shape, *ctx.options)
        return _Forward.apply(dx_dot, w, *ctx.options), dw, None, None, None


class _OfWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dz, shape, stride, precision):
        ctx.save_for_backward(x, dz)
        ctx.options = stride, precision
        padding = shape[-1] // 2
        return _product(lambda a, b: conv2d_weight(a, shape, b, stride, padding), x, dz, precision)

    @staticmethod
    def backward(ctx, dw_dot):
        x, dz = ctx.saved_tensors
        dx = _OfInput.apply(dz, dw_dot, x.shape, *ctx.options) if ctx.needs_input_grad[0] else None
        return dx, _Forward.apply(x, dw_dot, *ctx.options), None, None, None
