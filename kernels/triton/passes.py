"""Whole passes of the backbone in a few launches each; signatures as in `kernels.native.passes`.

All tasks of a call run in every launch. Nothing waits for the device or is copied to it, and every
buffer comes from torch's allocator, so that a pass may be captured in a CUDA graph.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from kernels import checks
from kernels.net import Embedded, Net, Result
from kernels.plain.layout import channels_last, whole
from kernels.triton import features, launches, stem_launches
from kernels.triton.patches import Patches, patches
from kernels.triton.plan import (
    PRECISIONS,
    Call,
    Images,
    Kept,
    KeptFeatures,
    Plan,
    StageKept,
)
from kernels.triton.rows import aligned, new_rows
from kernels.triton.tensors import GRID, LARGEST, countable, expect

MOST_STAGES = 16
MOST_REPEATED = 2**21  # pixels; of Omniglot five steps' targets of 16 tasks are 1.3 million at most


def refusal(precision: str) -> str | None:
    """Why passes of a precision do not run, in one line; `None` if they do."""
    if precision in PRECISIONS:
        return None
    instead = "tf32x3" if precision == "bf16x3" else "tf32"
    return (
        f"triton takes products in {', '.join(PRECISIONS)}, not in {precision}; ask for {instead}"
    )


def stem_precision(precision: str) -> str:
    """Of the products of a first stage that pools; see `Plan.stem_precision`."""
    return "tf32" if precision in ("tf32", "bf16") else "fp32"


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
    countable("passes", *_shapes(plan))
    if (most := max(n, plan.last_pixels)) > GRID:
        raise ValueError(
            f"triton passes take up to {GRID} images a task and pixels of the last stage, got "
            f"{most}: use fewer at once, or more stages"
        )
    x = channels_last(x).permute(0, 1, 3, 4, 2)
    if not plan.stages[0].stem:
        return Images.of(plan, F.pad(x, (0, 0, 1, 1, 1, 1)), None)
    moments = patches(x, plan.stem_precision)
    return Images.of(plan, moments.images, moments)


def _shapes(plan: Plan) -> list[tuple[int, ...]]:
    """Of the largest tensors of a pass."""
    net, t, n = plan.net, plan.tasks, plan.images
    bordered = t, n, net.side + 2, net.side + 2, net.channels
    sides = (2 + (s.pooled if s.stem else s.dense) for s in plan.stages)  # a stem writes no z
    maps = ((t, n, side, side, net.filters) for side in sides)
    return [bordered, *maps, (t, n, net.ways), (t, checks.parameters(net))]


def repeated(images: Images, times: int) -> Images | None:
    """The same images as of so many times T tasks, all of them `times` in turn; `None` where a pass
    over those of T tasks fills a GPU.
    """
    plan, patches = images.plan, images.patches
    plan = plan._replace(tasks=times * plan.tasks)
    largest = max(map(math.prod, _shapes(plan)))
    # the parts of a sum over splits, one or more a task, are counted too
    many = plan.tasks > GRID or plan.tasks * plan.images * plan.net.side**2 > MOST_REPEATED
    if many or 4 * largest >= LARGEST:
        return None
    parts = [images.x] if patches is None else patches
    x, *moments = (part.repeat(times, *[1] * (part.dim() - 1)) for part in parts)
    patches = Patches(x, *moments) if moments else None
    return Images.of(plan, x, patches)


def run(
    images: Images,
    theta: Tensor,  # [T, P]
    row: Tensor,  # [G], or of each task its own [T, G]
    labels: Tensor | None = None,  # int64 [T, N]; None: forward only
    statistics: tuple[Tensor, Tensor] | None = None,  # mean, biased variance [S], or [T, S]
    keep: bool = False,
) -> Result:
    """Logits and batch moments; with labels also the mean cross-entropy of each task and its
    gradient; `keep` what `tangent` needs. A label outside 0…ways − 1 makes the loss NaN.
    """
    call = _call("run", images, theta, row, labels, statistics, keep)
    turned = None if labels is None else launches.Turned(call, call.theta)
    stages, projected, mean, var = _forward(call)
    labels = whole(labels)
    head = launches.head_fwd(call, stages[-1], labels)
    if labels is None:
        return Result(None, head.logits, None, None, mean, var, None)
    gradient, norm_gradient = _gradients(call)
    delta, part, loss = launches.head_bwd(call, stages[-1], labels, head, gradient)
    w = turned.filters()
    outer = _backward(call, stages, projected, delta, part, gradient, norm_gradient, w)
    kept = Kept.of(call, stages, projected, outer, w, head) if keep else None
    return Result(loss, head.logits, gradient, norm_gradient, mean, var, kept)


def embed(
    images: Images,
    theta: Tensor,  # [T, P], of which the classifier is not read
    row: Tensor,  # [G], or of each task its own [T, G]
    statistics: tuple[Tensor, Tensor] | None = None,  # mean, biased variance [S], or [T, S]
    keep: bool = False,
) -> Embedded:
    """The features that the classifier would see, and batch moments; `keep` what `pullback`
    needs.
    """
    call = _call("embed", images, theta, row, None, statistics, False)
    stages, projected, mean, var = _forward(call)
    kept = KeptFeatures.of(call, stages, projected) if keep else None
    return Embedded(features.fwd(call, stages[-1]), mean, var, kept)


def pullback(
    kept: KeptFeatures,
    d_features: Tensor,  # [T, N, D]
) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
    """The gradient of ⟨d_features, features⟩ in theta, of the classifier 0, and in row."""
    same = isinstance(kept, KeptFeatures) and kept.unbroken
    checks.handed_back("triton passes: pullback", kept, KeptFeatures, "embed", same)
    checks.tensors("triton passes", d_features=d_features)
    call, plan = kept.call, kept.call.plan
    shape = plan.tasks, plan.images, checks.features(plan.net)
    expect("passes", call.images.x, d_features=(d_features, shape))
    turned = launches.Turned(call, call.theta)
    gradient, norm_gradient = _gradients(call)
    gradient[:, plan.theta_head :] = 0
    delta, part = features.bwd(call, kept.stages[-1], d_features)
    stages, w = [*kept.stages], turned.filters()
    _backward(call, stages, kept.projected, delta, part, gradient, norm_gradient, w)
    return gradient, norm_gradient


def _call(name: str, images: Images, theta: Tensor, row: Tensor, labels, statistics, keep) -> Call:
    """What a pass reads, after it was found to fit."""
    same = isinstance(images, Images) and images.unbroken
    checks.handed_back(f"triton passes: {name}", images, Images, "prepare", same)
    plan, operands = images.plan, (theta, row, labels, statistics, keep)
    checks.pass_operands("triton passes", plan.net, images.x, plan.tasks, plan.images, *operands)
    given = None if statistics is None else tuple(whole(s) for s in statistics)
    return Call(images, aligned(theta), whole(row), given)


def _forward(call: Call) -> tuple[list[StageKept], Tensor | None, Tensor, Tensor]:
    """What the stages keep, the stem's projection, and batch moments."""
    plan = call.plan
    mean, var = (call.row.new_empty(plan.tasks, call.row.shape[-1] // 2) for _ in range(2))
    stages, projected = [], None
    for s, stage in enumerate(plan.stages):
        if stage.stem:
            kept, projected = stem_launches.stem_fwd(call, mean, var)
        else:
            kept = launches.stage_fwd(call, stages[-1] if s else None, s, mean, var)
        stages.append(kept)
    return stages, projected, mean, var


def _gradients(call: Call) -> tuple[Tensor, Tensor]:
    """Of theta and of row, to be written."""
    return new_rows(call.theta, *call.theta.shape), call.row.new_empty(
        call.plan.tasks, call.row.shape[-1]
    )


def _backward(
    call: Call,
    stages: list[StageKept],  # gets δ and its sums
    projected: Tensor | None,
    delta: Tensor,  # of the last stage
    part: Tensor,  # of its sums
    gradient: Tensor,
    norm_gradient: Tensor,
    w: Tensor | None,  # of `launches.Turned`
) -> Tensor | None:
    """Writes all but the classifier's gradient; the stem's Σ δ·patch."""
    outer = None
    wgrads = launches.Wgrads(call, stages, gradient)
    for s in reversed(range(call.plan.net.stages)):
        own = stages[s]._replace(delta=delta)
        if call.plan.stages[s].stem:
            outer, sums = stem_launches.stem_bwd(
                call, own, projected, part, gradient, norm_gradient
            )
            stages[s] = own._replace(sums=sums)
            continue
        dz, sums = launches.dz(call, own, s, part, norm_gradient)
        stages[s] = own._replace(dz=dz, sums=sums)
        wgrads.begin(s)
        if s:
            delta, part = launches.dgrad(call, stages, s, w)
    wgrads.finish()
    return outer


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
    turned = launches.Turned(call, direction)
    dots = []
    for s, stage in enumerate(plan.stages):
        if stage.stem:
            dots.append(stem_launches.stem_dot(kept, direction))
        else:
            dots.append(launches.stage_dot(kept, dots[-1] if s else None, s, direction))
    residual_dot = launches.head_dot(kept, direction, dots[-1])
    delta_dot, part, _ = launches.head_bwd(
        call, stages[-1], None, kept.head, product, direction, (dots[-1], residual_dot)
    )
    filters = kept.turned, turned.filters()
    wgrads = launches.Wgrads(call, stages, product, dots)
    for s in reversed(range(net.stages)):
        dots[s] = dots[s]._replace(delta=delta_dot)
        if plan.stages[s].stem:
            stem_launches.stem_bwd_dot(kept, direction, dots[s], part, product, norm_product)
            continue
        dz, _ = launches.dz(call, stages[s], s, part, norm_product, dots[s])
        dots[s] = dots[s]._replace(dz=dz)
        wgrads.begin(s)
        if s:
            delta_dot, part = launches.dgrad(call, stages, s, *filters, dots)
    wgrads.finish()
    return product, norm_product
