"""Per-step batch norm with optional fused leaky ReLU and 2×2 max pool, differentiable twice."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import dispatch


def per_step_batch_norm(
    z: Tensor,  # [T, N, C, H, W]
    gain: Tensor,  # [K, C]
    bias: Tensor,  # [K, C]
    step: int | Tensor = 0,  # the row of gain and bias, or one row a task, int64 [T]
    *,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
    pool: bool = False,
    statistics: tuple[Tensor, Tensor] | None = None,  # mean and biased variance, [C] or [T, C]
) -> tuple[Tensor, Tensor, Tensor]:  # y [T, N, C, h, w], batch mean [T, C], batch variance [T, C]
    """Normalise each task and channel, scale with the step's own gain and bias (BNWB, paper §4),
    then leaky ReLU (`negative_slope` 1 is none) and 2×2 max pooling (`pool`, rows and columns left
    over by an odd size are dropped after they have counted in the statistics).

    With μ, σ² the mean and biased variance over the N·H·W values of a task's channel, or
    `statistics` if given (constants then): y = maxpool(leaky_relu(gain·(z − μ)/√(σ² + eps) +
    bias)). In plain torch, for one task: `F.max_pool2d(F.leaky_relu(F.batch_norm(z, None, None,
    gain[step], bias[step], True), slope), 2)`. A gain of 0 pools the first of each window, as a
    maximum over equal values does.

    Returns y and the batch's own mean and biased variance, which carry no gradient: they are what a
    running statistic (BNRS, paper §4) accumulates. y is differentiable twice in z, gain and bias; a
    third derivative raises.

    Raises ValueError for shapes that do not fit or a step outside the rows.
    """
    _check(z, gain, bias, step, pool)
    tasks = z.shape[0]
    if isinstance(step, Tensor):
        gain, bias = gain.index_select(0, step), bias.index_select(0, step)
    else:
        gain, bias = (row[step].expand(tasks, -1) for row in (gain, bias))
    if statistics is not None:
        statistics = tuple(s.detach().expand(tasks, -1) for s in statistics)
    impl = dispatch.backend("norm_act", z)
    return _NormAct.apply(z, gain, bias, impl, (eps, negative_slope, pool, statistics))


def _check(z: Tensor, gain: Tensor, bias: Tensor, step: int | Tensor, pool: bool) -> None:
    if z.dim() != 5 or 0 in z.shape:
        raise ValueError(
            f"per_step_batch_norm: z must be a non-empty [T, N, C, H, W], got {list(z.shape)}"
        )
    if gain.dim() != 2 or gain.shape != bias.shape or gain.shape[1] != z.shape[2]:
        raise ValueError(
            f"per_step_batch_norm: gain and bias must both be [K, {z.shape[2]}] for z "
            f"{list(z.shape)}, got {list(gain.shape)} and {list(bias.shape)}"
        )
    if isinstance(step, Tensor):
        if step.shape != z.shape[:1] or step.dtype != torch.int64:
            raise ValueError(
                f"per_step_batch_norm: step must be an int or int64 [{z.shape[0]}], one row a "
                f"task, got {step.dtype} {list(step.shape)}"
            )
    elif not 0 <= step < gain.shape[0]:
        raise ValueError(
            f"per_step_batch_norm: step {step} is outside 0…{gain.shape[0] - 1}, the rows of gain"
        )
    if pool and min(z.shape[3:]) < 2:
        raise ValueError(
            f"per_step_batch_norm: pool needs images of at least 2×2, got "
            f"{z.shape[3]}×{z.shape[4]}; use fewer stages or larger images"
        )


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, gain, bias, impl, options):
        y, saved = impl.fwd(z, gain, bias, *options)
        ctx.save_for_backward(z, gain, bias)
        ctx.cache = impl, saved
        ctx.mark_non_differentiable(saved.mean, saved.var)
        return y, saved.mean, saved.var

    @staticmethod
    def backward(ctx, dy, _mean, _var):
        return *_NormActGrad.apply(dy, *ctx.saved_tensors, *ctx.cache), None, None


class _NormActGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, z, gain, bias, impl, saved):
        ctx.save_for_backward(dy, z, gain, bias)
        ctx.cache = impl, saved
        ctx.set_materialize_grads(False)
        return impl.bwd(saved, gain, dy)

    @staticmethod
    @once_differentiable
    def backward(ctx, z_dot, gain_dot, bias_dot):
        """The Hessian of ⟨dy, f⟩ is symmetric: its product with the cotangents is the tangent along
        them.
        """
        dy, _, gain, _ = ctx.saved_tensors
        impl, saved = ctx.cache
        y_dot, tangent = impl.tan_fwd(saved, gain, z_dot, gain_dot, bias_dot)
        dz, d_gain, d_bias = impl.tan_bwd(saved, tangent, gain, dy, None, gain_dot)
        return y_dot, dz, d_gain, d_bias, None, None
