"""Whole passes of the backbone in a few launches each; signatures as in `kernels.native.passes`.

All tasks of a call run in every launch. Nothing waits for the device or is copied to it, and every
buffer comes from torch's allocator, so that a pass may be captured in a CUDA graph.
"""

from torch import Tensor

from kernels import checks
from kernels.net import Net, Result
from kernels.plain.layout import channels_last, whole
from kernels.triton import launches, stem_launches
from kernels.triton.patches import patches
from kernels.triton.plan import PRECISIONS, Call, Images, Kept, Plan
from kernels.triton.rows import aligned, new_rows
from kernels.triton.tensors import countable, expect

MOST_STAGES = 16


def refusal(precision: str) -> str | None:
    """Why passes of a precision do not run, in one line; `None` if they do."""
    if precision in PRECISIONS:
        return None
    instead = "tf32x3" if precision == "bf16x3" else "tf32"
    return (
        f"triton takes products in {', '.join(PRECISIONS)}, not in {precision}; ask for {instead}"
    )


def fastest_precision() -> str:
    """What torch's own convolutions take on a GPU."""
    return "tf32"


def prepare(net: Net, x: Tensor) -> Images:  # [T, N, C, H, W]
    """The images with what all passes over them share, such as the moments of their patches."""
    checks.net_sizes("triton", net, MOST_STAGES)
    if reason := refusal(net.precision):
        raise ValueError(reason)
    checks.net_images(net, x)
    expect("passes", x)
    t, n = x.shape[:2]
    plan = Plan.of(net, t, n)
    bordered = t, n, net.side + 2, net.side + 2, net.channels
    sides = (s.pooled if s.stem else s.dense for s in plan.stages)  # a stem writes no z
    maps = ((t, n, side, side, net.filters) for side in sides)
    countable("passes", bordered, *maps, (t, n, net.ways), (t, checks.parameters(net)))
    x = channels_last(x).permute(0, 1, 3, 4, 2)
    if not plan.stages[0].stem:
        return Images.of(plan, x, None)
    moments = patches(x)
    return Images.of(plan, moments.images, moments)


def run(
    images: Images,
    theta: Tensor,  # [T, P]
    row: Tensor,  # [G]
    labels: Tensor | None = None,  # int64 [T, N]; None: forward only
    statistics: tuple[Tensor, Tensor] | None = None,  # mean, biased variance [S], or [T, S]
    keep: bool = False,
) -> Result:
    """Logits and batch moments; with labels also the mean cross-entropy of each task and its
    gradient; `keep` what `tangent` needs. A label outside 0…ways − 1 makes the loss NaN.
    """
    same = isinstance(images, Images) and images.unbroken
    checks.handed_back("triton passes: run", images, Images, "prepare", same)
    plan, net = images.plan, images.plan.net
    t, stats = plan.tasks, net.stages * net.filters
    operands = theta, row, labels, statistics, keep
    checks.pass_operands("triton passes", net, images.x, t, plan.images, *operands)
    given = None if statistics is None else tuple(whole(s) for s in statistics)
    call = Call(images, aligned(theta), whole(row), given)
    mean, var = (row.new_empty(t, stats) for _ in range(2))
    stages, projected = [], None
    for s, stage in enumerate(plan.stages):
        if stage.stem:
            kept, projected = stem_launches.stem_fwd(call, mean, var)
        else:
            kept = launches.stage_fwd(call, stages[-1] if s else None, s, mean, var)
        stages.append(kept)
    labels = whole(labels)
    logits, softmax, residual, losses = launches.head_fwd(call, stages[-1], labels)
    if labels is None:
        return Result(None, logits, None, None, mean, var, None)
    gradient, norm_gradient = new_rows(theta, *theta.shape), row.new_empty(t, 2 * stats)
    delta, part, loss = launches.head_bwd(call, stages[-1], residual, losses, gradient)
    outer = None
    for s in reversed(range(net.stages)):
        sums = launches.norm_bwd(call, stages[s], s, part, norm_gradient)
        stages[s] = stages[s]._replace(delta=delta, sums=sums)
        if plan.stages[s].stem:
            outer = stem_launches.stem_bwd(call, stages[s], projected, gradient)
        elif s:
            delta, part = launches.dgrad(call, stages, s)
    launches.wgrads(call, stages, gradient)
    kept = Kept.of(call, stages, projected, outer, softmax, residual) if keep else None
    return Result(loss, logits, gradient, norm_gradient, mean, var, kept)


def tangent(
    kept: Kept,
    direction: Tensor,  # [T, P]
) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
    """Derivative of (gradient, norm_gradient) of a pass along a direction of theta."""
    same = isinstance(kept, Kept) and kept.unbroken
    checks.handed_back("triton passes: tangent", kept, Kept, "run", same)
    checks.tensors("triton passes", direction=direction)
    call, stages = kept.call, kept.stages
    plan, net = call.plan, call.plan.net
    expect("passes", call.images.x, direction=(direction, call.theta.shape))
    direction = aligned(direction)
    product = new_rows(direction, *direction.shape)
    norm_product = direction.new_empty(plan.tasks, 2 * net.stages * net.filters)
    dots = []
    for s, stage in enumerate(plan.stages):
        if stage.stem:
            dots.append(stem_launches.stem_dot(kept, direction))
        else:
            dots.append(launches.stage_dot(kept, dots[-1] if s else None, s, direction))
    residual_dot = launches.head_dot(kept, direction, dots[-1])
    delta_dot, part, _ = launches.head_bwd(
        call, stages[-1], kept.residual, kept.softmax, product, direction, (dots[-1], residual_dot)
    )
    for s in reversed(range(net.stages)):
        sums_dot = launches.norm_bwd_dot(call, stages[s], dots[s], s, part, norm_product)
        dots[s] = dots[s]._replace(delta=delta_dot)
        if plan.stages[s].stem:
            stem_launches.stem_bwd_dot(kept, direction, dots[s], sums_dot, product)
        elif s:
            delta_dot, part = launches.dgrad(call, stages, s, direction, dots)
    launches.wgrads(call, stages, product, dots)
    return product, norm_product
