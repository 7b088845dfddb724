"""The launches of a first stage that pools, by the moments of its patches."""

import torch
import triton
from torch import Tensor

from kernels.triton import stem
from kernels.triton.launch import OWN_STEM_PROGRAMS, STEM_SUMS
from kernels.triton.operands import COEFFICIENTS
from kernels.triton.plan import Call, Dot, Kept, StageKept
from kernels.triton.tensors import countable


def stem_fwd(call: Call, mean: Tensor, var: Tensor) -> tuple[StageKept, Tensor]:
    """The stem, and its covariance times its filters."""
    plan, patches, theta = call.plan, call.images.patches, call.theta
    stage, (t, n, f, new) = plan.stages[0], call.sizes
    kp, blocks = patches.mean.shape[1], _blocks(call, "stem_fwd")
    coef, rstd, projected = new(t, COEFFICIENTS, f), new(t, f), new(t, kp, f)
    given_mean, given_var, step = call.statistics(0)
    moments = (
        patches.mean, patches.cov, patches.pivot, given_mean, given_var,
        projected, coef, rstd, mean, var,
    )  # fmt: skip
    sizes, options = (step, mean.shape[1], plan.net.eps), _options(call)
    programs = call.grid(call.out_side(0), blocks["BM"], blocks["BF"])
    if not (merge := programs[0] <= OWN_STEM_PROGRAMS):
        small = _blocks(call, "stem_small")
        stem.stem_moments_kernel[(t, triton.cdiv(f, small["BF"]))](
            theta, *moments, stage.channels, f, theta.stride(0), *sizes, **options, **small
        )
    shape = t, n, stage.pooled, stage.pooled, f
    x_hat, winners = new(shape), new(shape, dtype=torch.uint8)
    p = call.activation(0)
    stem.stem_fwd_kernel[programs](
        call.images.x, theta, *call.affine(0), *moments, x_hat, winners,
        x_hat if p is None else p,
        n, stage.side, stage.pooled, stage.channels, f, call.row_step, theta.stride(0),
        plan.net.negative_slope, *sizes, BORDER=p is not None, MERGE=merge, **options, **blocks,
    )  # fmt: skip
    return StageKept(None, x_hat, winners, coef, rstd, p), projected


def stem_bwd(
    call: Call,
    kept: StageKept,
    projected: Tensor,
    sums_part: Tensor,  # of Σδ, Σδx̂ [T, tiles, 2, F]
    gradient: Tensor,  # [T, P], of which the stem's filters' is written
    norm_gradient: Tensor,  # [T, G], of which the stem's gain's and bias's
) -> tuple[Tensor, Tensor]:
    """Σ δ·patch over the winners [T, KP, F]; Σδ, Σδx̂ [T, 2, F]."""
    plan, stage, (t, _, f, new) = call.plan, call.plan.stages[0], call.sizes
    patches, part = call.images.patches, _outer(call, kept.winners, kept.delta)
    kp, outer, sums = part.shape[2], new(t, *part.shape[2:]), new(t, 2, f)
    small = _blocks(call, "stem_small")
    stem.stem_wgrad_kernel[(t, triton.cdiv(f, small["BF"]), kp // STEM_SUMS["BK"])](
        part, outer, sums_part, sums, *plan.norm_gradient(norm_gradient, 0),
        patches.mean, patches.pivot, projected, call.affine(0)[0], kept.rstd, gradient,
        stage.channels, f, part.shape[1], sums_part.shape[1],
        call.row_step, gradient.stride(0), norm_gradient.stride(0),
        GIVEN=call.is_given, KP=kp, **STEM_SUMS, **small,
    )  # fmt: skip
    return outer, sums


def stem_dot(kept: Kept, direction: Tensor) -> Dot:
    call, own, patches = kept.call, kept.stages[0], kept.call.images.patches
    plan, stage, (t, n, f, new) = call.plan, call.plan.stages[0], call.sizes
    step, q, options = direction.stride(0), new(t, f), _options(call)
    moments = patches.mean, patches.pivot, kept.projected, own.rstd, own.coef, q
    x_hat_dot, p = torch.empty_like(own.x_hat), call.activation(0)
    blocks = _blocks(call, "stem_dot")
    stem.stem_dot_kernel[call.grid(call.out_side(0), blocks["BM"], blocks["BF"])](
        call.images.x, direction, own.x_hat, own.winners, *moments,
        *call.affine(0), x_hat_dot, x_hat_dot if p is None else p,
        n, stage.side, stage.pooled, stage.channels, f, call.row_step, step,
        plan.net.negative_slope, BORDER=p is not None, **options, **blocks,
    )  # fmt: skip
    return Dot(None, x_hat_dot, q, p)


def stem_bwd_dot(
    kept: Kept,
    direction: Tensor,
    dot: Dot,
    sums_part: Tensor,  # of the directions of Σδ, Σδx̂ [T, tiles, 2, F]
    product: Tensor,
    norm_product: Tensor,
) -> None:
    call, own, patches = kept.call, kept.stages[0], kept.call.images.patches
    plan, stage, (t, _, f, new) = call.plan, call.plan.stages[0], call.sizes
    part, small = _outer(call, own.winners, dot.delta), _blocks(call, "stem_small")
    kp = part.shape[2]
    stem.stem_tan_wgrad_kernel[(t, triton.cdiv(f, small["BF"]), kp // STEM_SUMS["BK"])](
        direction, kept.outer, part,
        sums_part, new(t, 2, f), *plan.norm_gradient(norm_product, 0),
        patches.mean, patches.cov, patches.pivot, kept.projected,
        call.affine(0)[0], own.rstd, dot.q, own.sums, product,
        stage.channels, f, part.shape[1], sums_part.shape[1],
        call.row_step, direction.stride(0), product.stride(0), norm_product.stride(0),
        GIVEN=call.is_given, PRECISION=plan.stem_precision, KP=kp,
        **STEM_SUMS, **small,
    )  # fmt: skip


def _outer(call: Call, winners: Tensor, values: Tensor) -> Tensor:
    """Parts of Σ values·patch over the winners [T, splits, KP, F]."""
    plan, stage, (t, n, f, new) = call.plan, call.plan.stages[0], call.sizes
    kp, blocks = call.images.patches.mean.shape[1], _blocks(call, "stem_outer")
    splits = triton.cdiv(n * stage.pooled**2, blocks["per_split"])
    countable("sums", (t, splits, kp, f))
    part = new(t, splits, kp, f)
    stem.stem_outer_kernel[(splits, t, triton.cdiv(f, blocks["BF"]))](
        call.images.x, values, winners, part,
        n, stage.side, stage.pooled, stage.channels, f,
        PRECISION=plan.stem_precision, KP=kp, **blocks,
    )  # fmt: skip
    return part


def _options(call: Call) -> dict:
    """Of all of these but the outer products."""
    plan, kp = call.plan, call.images.patches.mean.shape[1]
    return {"GIVEN": call.is_given, "PRECISION": plan.stem_precision, "KP": kp}


def _blocks(call: Call, kernel: str) -> dict[str, int]:
    plan, stage = call.plan, call.plan.stages[0]
    return call.blocks(kernel, stage, stage.pooled, precision=plan.stem_precision)
