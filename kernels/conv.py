"""Per-task convolution, differentiable to any order.

With T(x, w, z) = ⟨z, conv(x, w)⟩ the op and its two gradients are the three contractions of one
trilinear form, so each one's derivative is again one of the three.
"""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.autograd import check_alike


def task_conv2d(
    x: Tensor,  # [T, N, C, H, W]
    weight: Tensor,  # [T, F, C, R, S]
    *,
    stride: int = 1,
    padding: int = 1,
) -> Tensor:  # [T, N, F, H', W']
    """Convolve the images of task t with the filters of task t.

    The same as `torch.stack([F.conv2d(x[t], weight[t], None, stride, padding) for t in range(T)])`.
    Floating-point dtypes; differentiable to any order in both arguments. The result is NHWC in
    memory. Batch norm follows in MAML++'s backbone (Antoniou et al. 2018, §4), so there is no bias.

    Raises ValueError for shapes, dtypes or devices that do not fit, BackendError where no backend
    runs.
    """
    if x.dim() != 5 or weight.dim() != 5:
        raise ValueError(
            f"task_conv2d: x and weight must be [T, N, C, H, W] and [T, F, C, R, S], "
            f"got {list(x.shape)} and {list(weight.shape)}; add the missing axes with unsqueeze"
        )
    if x.shape[0] != weight.shape[0] or x.shape[2] != weight.shape[2]:
        raise ValueError(
            f"task_conv2d: x {list(x.shape)} and weight {list(weight.shape)} must agree in "
            f"tasks (axis 0) and channels (axis 2)"
        )
    for name, tensor in (("x", x), ("weight", weight)):
        if 0 in tensor.shape:
            raise ValueError(
                f"task_conv2d: {name} is empty, {list(tensor.shape)}; every axis needs at least "
                f"one entry"
            )
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"task_conv2d: {name} must be an int ≥ {least}, got {value!r}")
    smallest = min(x.shape[3:]) + 2 * padding
    if max(weight.shape[3:]) > smallest:
        raise ValueError(
            f"task_conv2d: the kernel {list(weight.shape[3:])} is larger than the padded image, "
            f"{smallest} at its shorter side"
        )
    check_alike("task_conv2d", x=x, weight=weight)
    impl = dispatch.backend("conv", x, x.shape, weight.shape, stride, padding)
    return _Conv.apply(x, weight, impl, stride, padding)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, impl, stride, padding):
        ctx.save_for_backward(x, w)
        ctx.geometry = impl, stride, padding
        return impl.fwd(x, w, stride, padding)

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        dx = _InputGrad.apply(dz, w, x, *ctx.geometry) if ctx.needs_input_grad[0] else None
        dw = _WeightGrad.apply(dz, x, w, *ctx.geometry) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None


class _InputGrad(torch.autograd.Function):
    """∂T/∂x as a function of (z, w); `x` lends its shape."""

    @staticmethod
    def forward(ctx, dz, w, x, impl, stride, padding):
        ctx.save_for_backward(dz, w)
        ctx.geometry = impl, stride, padding
        return impl.bwd(dz, x, w, stride, padding, need=(True, False))[0]

    @staticmethod
    def backward(ctx, g):
        dz, w = ctx.saved_tensors
        d_dz = _Conv.apply(g, w, *ctx.geometry) if ctx.needs_input_grad[0] else None
        dw = _WeightGrad.apply(dz, g, w, *ctx.geometry) if ctx.needs_input_grad[1] else None
        return d_dz, dw, None, None, None, None


class _WeightGrad(torch.autograd.Function):
    """∂T/∂w as a function of (z, x); `w` lends its shape."""

    @staticmethod
    def forward(ctx, dz, x, w, impl, stride, padding):
        ctx.save_for_backward(dz, x)
        ctx.geometry = impl, stride, padding
        return impl.bwd(dz, x, w, stride, padding, need=(False, True))[1]

    @staticmethod
    def backward(ctx, g):
        dz, x = ctx.saved_tensors
        d_dz = _Conv.apply(x, g, *ctx.geometry) if ctx.needs_input_grad[0] else None
        dx = _InputGrad.apply(dz, g, x, *ctx.geometry) if ctx.needs_input_grad[1] else None
        return d_dz, dx, None, None, None, None
