"""Per-step batch norm with optional fused leaky ReLU and 2×2 max pool, differentiable twice."""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.autograd import check_alike, keep, kept, last_derivative


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

    Raises ValueError for shapes, dtypes or devices that do not fit or a step outside the rows.
    """
    _check(z, gain, bias, step, pool, negative_slope, eps)
    tasks, dtype = z.shape[0], z.dtype
    if isinstance(step, Tensor):
        gain, bias = gain.index_select(0, step), bias.index_select(0, step)
    else:
        gain, bias = (row[step].expand(tasks, -1) for row in (gain, bias))
    if statistics is not None:
        statistics = _checked_statistics(statistics, tasks, z.shape[2])
    if dtype in (torch.float16, torch.bfloat16):
        # Sums over N·H·W values overflow or drown in half precision.
        z, gain, bias = z.float(), gain.float(), bias.float()
    if statistics is not None:
        statistics = tuple(s.to(z) for s in statistics)
    impl = dispatch.backend("norm_act", z, z.shape)
    y, mean, var = _NormAct.apply(z, gain, bias, impl, (eps, negative_slope, pool, statistics))
    return y.to(dtype), mean, var


def _checked_statistics(statistics: tuple, tasks: int, channels: int) -> tuple[Tensor, Tensor]:
    shapes = [list(s.shape) for s in statistics]
    if len(shapes) != 2 or any(s not in ([channels], [tasks, channels]) for s in shapes):
        raise ValueError(
            f"per_step_batch_norm: statistics must be a mean and a variance, [{channels}] or "
            f"[{tasks}, {channels}] each, got {shapes}"
        )
    return tuple(s.detach().expand(tasks, -1) for s in statistics)


def _check(
    z: Tensor,
    gain: Tensor,
    bias: Tensor,
    step: int | Tensor,
    pool: bool,
    negative_slope: float,
    eps: float,
) -> None:
    if z.dim() != 5 or 0 in z.shape:
        raise ValueError(
            f"per_step_batch_norm: z must be a non-empty [T, N, C, H, W], got {list(z.shape)}"
        )
    if gain.dim() != 2 or gain.shape != bias.shape or gain.shape[1] != z.shape[2]:
        raise ValueError(
            f"per_step_batch_norm: gain and bias must both be [K, {z.shape[2]}] for z "
            f"{list(z.shape)}, got {list(gain.shape)} and {list(bias.shape)}"
        )
    _check_step(step, len(z), len(gain))
    if not negative_slope >= 0:
        raise ValueError(
            f"per_step_batch_norm: negative_slope {negative_slope} is below 0, where the activation"
            " does not commute with pooling; give 0 or more, 1 for no activation"
        )
    if not eps >= 0:
        raise ValueError(f"per_step_batch_norm: eps must be 0 or more, got {eps}")
    check_alike("per_step_batch_norm", z=z, gain=gain, bias=bias)
    if pool and min(z.shape[3:]) < 2:
        raise ValueError(
            f"per_step_batch_norm: pool needs images of at least 2×2, got "
            f"{z.shape[3]}×{z.shape[4]}; use fewer stages or larger images"
        )


def _check_step(step: int | Tensor, tasks: int, rows: int) -> None:
    if isinstance(step, Tensor):
        if step.shape != (tasks,) or step.dtype != torch.int64:
            raise ValueError(
                f"per_step_batch_norm: step must be an int or int64 [{tasks}], one row a "
                f"task, got {step.dtype} {list(step.shape)}"
            )
        # On a GPU the look would stall the stream; there the indexing itself stops the kernel.
        if step.device.type == "cpu" and not 0 <= int(step.min()) <= int(step.max()) < rows:
            raise ValueError(
                f"per_step_batch_norm: steps {step.tolist()} reach outside 0…{rows - 1}, the "
                f"rows of gain"
            )
    elif not 0 <= step < rows:
        raise ValueError(
            f"per_step_batch_norm: step {step} is outside 0…{rows - 1}, the rows of gain"
        )


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, gain, bias, impl, options):
        y, saved = impl.fwd(z, gain, bias, *options)
        keep(ctx, (z, gain, bias), saved)
        ctx.impl = impl
        ctx.mark_non_differentiable(saved.mean, saved.var)
        return y, saved.mean, saved.var

    @staticmethod
    def backward(ctx, dy, _mean, _var):
        inputs, saved = kept(ctx)
        return *_NormActGrad.apply(dy, *inputs, ctx.impl, saved), None, None


class _NormActGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, z, gain, bias, impl, saved):
        keep(ctx, (dy, z, gain, bias), saved)
        ctx.impl = impl
        ctx.set_materialize_grads(False)
        return impl.bwd(saved, gain, dy)

    @staticmethod
    def backward(ctx, z_dot, gain_dot, bias_dot):
        """The Hessian of ⟨dy, y⟩ is symmetric: its product with the cotangents is the tangent
        along them.
        """
        (dy, z, gain, bias), saved = kept(ctx)
        with torch.no_grad():
            y_dot, tangent = ctx.impl.tan_fwd(saved, gain, z_dot, gain_dot, bias_dot)
            tangents = ctx.impl.tan_bwd(saved, tangent, gain, dy, None, gain_dot)
        sources = dy, z, gain, bias, z_dot, gain_dot, bias_dot
        return *last_derivative("per_step_batch_norm", (y_dot, *tangents), sources), None, None
