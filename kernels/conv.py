"""Per-task convolution, differentiable to any order.

With T(x, w, z) = ⟨z, conv(x, w)⟩ the op and its two gradients are the three contractions of one
trilinear form, so each one's derivative is again one of the three.
"""

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from kernels import autocast, checks, dispatch, library
from kernels.batched import Batched, as_it_is, hold, padded
from kernels.plain.layout import total
from kernels.tensors import check_alike


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
    checks.tensors("task_conv2d", x=x, weight=weight)
    if autocast.anywhere():
        x, weight = autocast.lowered(x, weight)
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
    stride = _checked("stride", stride, 1)
    padding = _checked("padding", padding, 0)
    padded_sides = [side + 2 * padding for side in x.shape[3:]]
    if any(k > side for k, side in zip(weight.shape[3:], padded_sides, strict=True)):
        raise ValueError(
            f"task_conv2d: the kernel {list(weight.shape[3:])} is larger than the padded image "
            f"{padded_sides}"
        )
    check_alike("task_conv2d", x=x, weight=weight)
    if library.traced(x, weight):
        return library.op(_Call.name)(x, weight, stride, padding)
    return _Value.start(_call(x, weight, stride, padding), x, weight)[0]


def _checked(name: str, value: int, least: int) -> int:
    found = checks.integer(value)
    if found is None or found < least:
        raise ValueError(f"task_conv2d: {name} must be an int ≥ {least}, got {value!r}")
    return found


class _Call:
    """One convolution and its two gradients, by the functions of a backend."""

    name, shared, held = "task_conv2d", (), ()

    def __init__(self, impl, stride: int, padding: int) -> None:
        self.impl, self.options = impl, (stride, padding)

    def value(self, x, w):
        return self.impl.fwd(x, w, *self.options)

    def input_grad(self, dz, w, x):
        return self.impl.bwd(dz, x, w, *self.options, need=(True, False))[0]

    def weight_grad(self, dz, x, w):
        return self.impl.bwd(dz, x, w, *self.options, need=(False, True))[1]


class _Traced(_Call):
    """The same, each of them an op."""

    def __init__(self, stride: int, padding: int) -> None:
        super().__init__(None, stride, padding)

    def value(self, *operands):
        return library.below_autograd("task_conv2d", *operands, *self.options)[0]

    def input_grad(self, *operands):
        return library.below_autograd("task_conv2d_input_grad", *operands, *self.options)[0]

    def weight_grad(self, *operands):
        return library.below_autograd("task_conv2d_weight_grad", *operands, *self.options)[0]


class _Contraction(Batched):
    """A contraction of two tensors; a third one may lend its shape."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, *tensors = inputs
        hold(ctx, *tensors)

    @classmethod
    def jvp(cls, ctx, _, a_dot, b_dot, *_like):
        a, b, *like = ctx.saved_tensors
        first = None if a_dot is None else cls.apply(ctx.call, a_dot, b, *like)[0]
        second = None if b_dot is None else cls.apply(ctx.call, a, b_dot, *like)[0]
        with _set_fwd_grad_enabled(True):  # torch turns it off here, and an outer one takes the sum
            z_dot = total(first, second)
        if z_dot is None:  # of the shape that is lent alone
            z_dot = cls.apply(ctx.call, torch.zeros_like(a), b, *like)[0]
        return (z_dot,)


class _Value(_Contraction):
    @staticmethod
    @as_it_is
    def forward(call, x, w):
        return (call.value(x, w),)

    @staticmethod
    def backward(ctx, dz):
        if dz is None:
            return padded(ctx)
        (x, w), (_, need_x, need_w) = ctx.saved_tensors, ctx.needs_input_grad
        dx = _InputGrad.apply(ctx.call, dz, w, x)[0] if need_x else None
        dw = _WeightGrad.apply(ctx.call, dz, x, w)[0] if need_w else None
        return None, dx, dw


class _InputGrad(_Contraction):
    """∂T/∂x as a function of (z, w); `x` lends its shape."""

    suffix = "_input_grad"

    @staticmethod
    @as_it_is
    def forward(call, dz, w, x):
        return (call.input_grad(dz, w, x),)

    @staticmethod
    def backward(ctx, g):
        if g is None:
            return padded(ctx)
        (dz, w, _), (_, need_dz, need_w, _) = ctx.saved_tensors, ctx.needs_input_grad
        d_dz = _Value.apply(ctx.call, g, w)[0] if need_dz else None
        dw = _WeightGrad.apply(ctx.call, dz, g, w)[0] if need_w else None
        return None, d_dz, dw, None


class _WeightGrad(_Contraction):
    """∂T/∂w as a function of (z, x); `w` lends its shape."""

    suffix = "_weight_grad"

    @staticmethod
    @as_it_is
    def forward(call, dz, x, w):
        return (call.weight_grad(dz, x, w),)

    @staticmethod
    def backward(ctx, g):
        if g is None:
            return padded(ctx)
        (dz, x, _), (_, need_dz, need_x, _) = ctx.saved_tensors, ctx.needs_input_grad
        d_dz = _Value.apply(ctx.call, x, g)[0] if need_dz else None
        dx = _InputGrad.apply(ctx.call, dz, g, x)[0] if need_x else None
        return None, d_dz, dx, None


def _call(x: Tensor, w: Tensor, stride: int, padding: int) -> _Call:
    return _Call(dispatch.backend("conv", x, x.shape, w.shape, stride, padding), stride, padding)


def _shape(x: Tensor, w: Tensor, stride: int, padding: int) -> tuple[Tensor]:
    t, n, _, *sides = x.shape
    out = ((a + 2 * padding - k) // stride + 1 for a, k in zip(sides, w.shape[3:], strict=True))
    return (library.unwritten(x, (t, n, w.shape[1], *out)),)


library.define(
    "task_conv2d",
    "Tensor x, Tensor weight, int stride, int padding",
    1,
    lambda x, w, *geometry: (_call(x, w, *geometry).value(x, w),),
    _shape,
    _Value,
    _Traced,
)
library.define(
    "task_conv2d_input_grad",
    "Tensor dz, Tensor weight, Tensor x, int stride, int padding",
    1,
    lambda dz, w, x, *geometry: (_call(x, w, *geometry).input_grad(dz, w, x),),
    lambda dz, w, x, *geometry: (library.unwritten(x),),
    _InputGrad,
    _Traced,
)
library.define(
    "task_conv2d_weight_grad",
    "Tensor dz, Tensor x, Tensor weight, int stride, int padding",
    1,
    lambda dz, x, w, *geometry: (_call(x, w, *geometry).weight_grad(dz, x, w),),
    lambda dz, x, w, *geometry: (library.unwritten(w),),
    _WeightGrad,
    _Traced,
)
