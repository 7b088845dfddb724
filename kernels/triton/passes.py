"""Whole passes of the backbone in a few launches each; signatures as in `kernels.native.passes`.

All tasks of a call run in every launch. Nothing waits for the device, and every buffer comes from
torch's allocator, so that a pass may be captured in a CUDA graph.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from kernels.net import Net
from kernels.triton import conv, head, norm_act, stem
from kernels.triton.operands import COEFFICIENTS

PRECISIONS = {"fp32": "ieee", "tf32": "tf32", "tf32x3": "tf32x3", "bf16": "bf16"}


class Result(NamedTuple):
    loss: Tensor | None  # [T]
    logits: Tensor  # [T, N, ways]
    gradient: Tensor | None  # [T, P]
    norm_gradient: Tensor | None  # [T, G]
    mean: Tensor  # [T, S] of the batch
    var: Tensor  # [T, S] biased
    kept: "Kept | None"


class Stage(NamedTuple):
    """The geometry of one stage, and where its parameters begin."""

    channels: int
    side: int
    dense: int  # side of z
    pooled: int  # side behind the pooling
    theta: int
    stem: bool


class Plan(NamedTuple):
    net: Net
    tasks: int
    images: int
    stages: tuple[Stage, ...]
    theta_head: int

    @classmethod
    def of(cls, net: Net, tasks: int, images: int) -> "Plan":
        stages, side, channels, theta = [], net.side, net.channels, 0
        for s in range(net.stages):
            dense = side if net.pool else (side + 1) // 2
            pooled = dense // 2 if net.pool else dense
            stages.append(Stage(channels, side, dense, pooled, theta, s == 0 and net.pool))
            theta += net.filters * 9 * channels
            side, channels = pooled, net.filters
        return cls(net, tasks, images, tuple(stages), theta)

    @property
    def stride(self) -> int:
        return 1 if self.net.pool else 2

    @property
    def precision(self) -> str:
        return PRECISIONS[self.net.precision]

    @property
    def last_pixels(self) -> int:
        return self.stages[-1].pooled ** 2


class Images(NamedTuple):
    """A set of images a task, as the passes read them."""

    plan: Plan
    x: Tensor  # NHWC; for a stem with a border and less their mean
    patch_mean: Tensor | None  # [T, KP]
    cov: Tensor | None  # [T, KP, KP]
    pivot: Tensor | None  # [T, KP]


class StageKept(NamedTuple):
    z: Tensor | None  # [T, N, H, W, F]; the stem has none
    x_hat: Tensor  # [T, N, h, w, F]
    winners: Tensor  # uint8 [T, N, h, w, F]
    delta: Tensor | None
    coef: Tensor  # [T, 8, F]
    rstd: Tensor  # [T, F]
    sums: Tensor | None  # [T, 2, F]


class Kept(NamedTuple):
    images: Images
    theta: Tensor
    row: Tensor
    given: bool
    stages: list[StageKept]
    projected: Tensor | None
    outer: Tensor | None
    softmax: Tensor
    residual: Tensor


def prepare(net: Net, x: Tensor) -> Images:  # [T, N, C, H, W]
    t, n, c = x.shape[:3]
    plan = Plan.of(net, t, n)
    x = x.permute(0, 1, 3, 4, 2).contiguous()
    if not plan.stages[0].stem:
        return Images(plan, x, None, None, None)
    mean = x.double().mean((1, 2, 3))  # [T, C]
    x = F.pad(x, (0, 0, 1, 1, 1, 1)) - mean.view(t, 1, 1, 1, c).to(x)
    patches = x.double().unfold(2, 3, 1).unfold(3, 3, 1).reshape(t, -1, 9 * c)
    m = patches.mean(1)
    cov = patches.transpose(1, 2) @ patches / patches.shape[1] - m[:, :, None] * m[:, None, :]
    extra = _padded(9 * c) - 9 * c
    pivot = mean.repeat_interleave(9, 1)
    return Images(
        plan,
        x,
        F.pad(m, (0, extra)).to(x),
        F.pad(cov, (0, extra, 0, extra)).to(x).contiguous(),
        F.pad(pivot, (0, extra)).to(x),
    )


def run(
    images: Images,
    theta: Tensor,  # [T, P]
    row: Tensor,  # [G]
    labels: Tensor | None = None,  # int64 [T, N]
    statistics: tuple[Tensor, Tensor] | None = None,  # [S], or [T, S]
    keep: bool = False,
) -> Result:
    plan = images.plan
    t, n, net = plan.tasks, plan.images, plan.net
    row = row.contiguous()
    new = row.new_empty
    stats = net.stages * net.filters
    mean, var = new(t, stats), new(t, stats)
    given = None if statistics is None else [s.contiguous() for s in statistics]
    stages, projected = [], None
    for s, stage in enumerate(plan.stages):
        if stage.stem:
            kept, projected = _stem_fwd(images, theta, row, given, mean, var)
        else:
            kept = _stage_fwd(images, stages, s, theta, row, given, mean, var)
        stages.append(kept)
    logits, loss = new(t, n, net.ways), new(t)
    softmax, residual = torch.empty_like(logits), torch.empty_like(logits)
    last = stages[-1]
    gain, bias = _affine(plan, row, net.stages - 1)
    weights = theta[:, plan.theta_head :]
    blocks = _head_blocks(plan)
    head.head_kernel[(t,)](
        last.x_hat, last.x_hat, gain, bias,
        weights, weights, labels if labels is not None else logits,
        logits, softmax, residual, loss,
        n, plan.last_pixels, net.filters, net.ways,
        theta.stride(0), theta.stride(0), net.negative_slope,
        MEAN=not net.pool, LABELS=labels is not None, DUAL=False, **blocks,
    )  # fmt: skip
    if labels is None:
        return Result(None, logits, None, None, mean, var, None)
    gradient, norm_gradient = new(t, theta.shape[1]), new(t, 2 * stats)
    outer = _backward(
        images, stages, projected, theta, row, given is not None, residual, gradient, norm_gradient
    )
    result = Kept(
        images, theta, row, given is not None, stages, projected, outer, softmax, residual
    )
    return Result(loss, logits, gradient, norm_gradient, mean, var, result if keep else None)


def _stem_fwd(images: Images, theta, row, given, mean, var) -> tuple[StageKept, Tensor]:
    plan, stage = images.plan, images.plan.stages[0]
    t, n, f = plan.tasks, plan.images, plan.net.filters
    new, kp, bf = row.new_empty, images.patch_mean.shape[1], _padded(f)
    coef, rstd, projected = new(t, COEFFICIENTS, f), new(t, f), new(t, kp, f)
    given_mean, given_var, step = _given(given, 0, f, row)
    gain, _ = _affine(plan, row, 0)
    stem.stem_moments_kernel[(t, 1)](
        theta, images.patch_mean, images.cov, images.pivot, given_mean, given_var,
        projected, coef, rstd, mean, var,
        stage.channels, f, theta.stride(0), step, mean.shape[1], plan.net.eps,
        GIVEN=given is not None, KP=kp, BF=bf,
    )  # fmt: skip
    shape = t, n, stage.pooled, stage.pooled, f
    x_hat, winners = new(shape), new(shape, dtype=torch.uint8)
    bm = 64
    stem.stem_fwd_kernel[(triton.cdiv(n * stage.pooled**2, bm), t, 1)](
        images.x, theta, gain, coef, rstd, x_hat, winners,
        n, stage.side, stage.pooled, stage.channels, f, theta.stride(0),
        PRECISION=_stem_precision(plan), KP=kp, BM=bm, BF=bf,
    )  # fmt: skip
    return StageKept(None, x_hat, winners, None, coef, rstd, None), projected


def _stage_fwd(images, stages, s, theta, row, given, mean, var) -> StageKept:
    plan, stage = images.plan, images.plan.stages[s]
    t, n, f, net = plan.tasks, plan.images, plan.net.filters, plan.net
    new, bf = row.new_empty, _padded(f)
    x = stages[s - 1].x_hat if s else images.x
    gain, bias = _affine(plan, row, max(s - 1, 0))
    w = theta[:, stage.theta :]
    blocks = _conv_blocks(plan, stage.channels, f)
    pixels = n * stage.dense**2
    tiles = triton.cdiv(pixels, blocks["BM"])
    z, part = new(t, n, stage.dense, stage.dense, f), new(t, tiles, 2, f)
    conv.conv_fwd_kernel[(tiles, t, 1)](
        x, x, gain, bias, w, w, z, z, z, part,
        n, stage.side, stage.dense, stage.channels, f, theta.stride(0), 0, net.negative_slope,
        STRIDE=plan.stride, ACT=s > 0, DUAL=False, DOT_IN=False, PRECISION=plan.precision,
        **blocks,
    )  # fmt: skip
    coef, rstd = new(t, COEFFICIENTS, f), new(t, f)
    given_mean, given_var, step = _given(given, s, f, row)
    norm_act.moments_kernel[(t, 1)](
        part, given_mean, given_var, coef, rstd, mean[:, s * f :], var[:, s * f :],
        tiles, blocks["BM"], pixels, f, step, mean.shape[1], net.eps,
        GIVEN=given is not None, BT=32, BF=bf,
    )  # fmt: skip
    shape = t, n, stage.pooled, stage.pooled, f
    x_hat = new(shape)
    winners = new(shape if net.pool else (1,), dtype=torch.uint8)
    own_gain, _ = _affine(plan, row, s)
    norm_act.normalise_kernel[(triton.cdiv(n * stage.pooled**2, 32), t, 1)](
        z, own_gain, coef, rstd, x_hat, winners, n, stage.dense, stage.pooled, f,
        POOL=net.pool, BM=32, BF=bf,
    )  # fmt: skip
    return StageKept(z, x_hat, winners, None, coef, rstd, None)


def _backward(
    images, stages, projected, theta, row, given, residual, gradient, norm_gradient
) -> Tensor | None:
    """Fills δ and the sums of every stage, and the gradients; returns the stem's Σ δ·patch."""
    plan = images.plan
    t, n, f, net = plan.tasks, plan.images, plan.net.filters, plan.net
    new, bf = row.new_empty, _padded(f)
    stats = 2 * net.filters
    last = stages[-1]
    gain, bias = _affine(plan, row, net.stages - 1)
    weights = theta[:, plan.theta_head :]
    delta = torch.empty_like(last.x_hat)
    part = new(t, plan.last_pixels, 2, f)
    head.head_bwd_kernel[(t, plan.last_pixels if net.pool else 1, 1)](
        last.x_hat, last.x_hat, gain, bias, weights, weights, residual, residual,
        delta, delta, part, gradient[:, plan.theta_head :],
        n, plan.last_pixels, f, net.ways, theta.stride(0), 0, gradient.shape[1],
        net.negative_slope, MEAN=not net.pool, DUAL=False, **_head_blocks(plan),
    )  # fmt: skip
    for s in reversed(range(net.stages)):
        stage, kept = plan.stages[s], stages[s]
        sums, own_gain = new(t, 2, f), _affine(plan, row, s)[0]
        norm_act.bwd_sums_kernel[(t, 1)](
            part, kept.coef, kept.rstd, own_gain, sums, norm_gradient[:, s * stats :],
            part.shape[1], n * stage.dense**2, f, norm_gradient.shape[1],
            GIVEN=given, BT=32, BF=bf,
        )  # fmt: skip
        kept = stages[s] = kept._replace(delta=delta, sums=sums)
        if stage.stem:
            outer = _stem_outer(images, delta, kept.winners)
            stem.stem_wgrad_kernel[(t, 1)](
                outer, images.patch_mean, images.pivot, projected, own_gain, kept.rstd, sums,
                gradient, stage.channels, f, gradient.shape[1],
                GIVEN=given, KP=outer.shape[1], BF=bf,
            )  # fmt: skip
            return outer
        _wgrad(images, stages, s, row, gradient, None)
        if s:
            delta, part = _dgrad(images, stages, s, theta, row)
    return None


def _dgrad(images, stages, s, theta, row, w_dot=None, dots=None) -> tuple[Tensor, Tensor]:
    """δ of the stage below, or with `dots` its direction, and the partial sums of it."""
    plan, stage = images.plan, images.plan.stages[s]
    t, n, f, net = plan.tasks, plan.images, plan.net.filters, plan.net
    kept, below = stages[s], stages[s - 1]
    own, dot_below = (dots[s], dots[s - 1]) if dots else (None, None)
    gain, bias = _affine(plan, row, s - 1)
    w = theta[:, stage.theta :]
    blocks = _conv_blocks(plan, f, stage.channels)
    tiles = triton.cdiv(n * stage.side**2, blocks["BM"])
    out, part = torch.empty_like(below.x_hat), row.new_empty(t, tiles, 2, stage.channels)
    conv.conv_bwd_kernel[(tiles, t, 1)](
        kept.z, own.z if own else kept.z, kept.delta, own.delta if own else kept.delta,
        kept.winners, kept.coef, w, w if w_dot is None else w_dot[:, stage.theta :],
        below.x_hat, dot_below.x_hat if own else below.x_hat,
        below.delta if own else below.x_hat, gain, bias, out, part,
        n, stage.side, stage.dense, stage.pooled, stage.channels, f,
        theta.stride(0), 0 if w_dot is None else w_dot.stride(0), net.negative_slope,
        STRIDE=plan.stride, POOL=net.pool, DUAL=own is not None, PRECISION=plan.precision,
        **blocks,
    )  # fmt: skip
    return out, part


def _wgrad(images, stages, s, row, gradient, dots) -> None:
    plan, stage = images.plan, images.plan.stages[s]
    t, n, f, net = plan.tasks, plan.images, plan.net.filters, plan.net
    kept, c = stages[s], stage.channels
    x = stages[s - 1].x_hat if s else images.x
    own = dots[s] if dots else None
    gain, bias = _affine(plan, row, max(s - 1, 0))
    pixels, bp = n * stage.dense**2, 32
    splits = min(triton.cdiv(pixels, 4 * bp), 16)
    per_split = triton.cdiv(triton.cdiv(pixels, splits), bp) * bp
    part = row.new_empty(t, splits, f, 9, c)
    conv.conv_wgrad_kernel[(splits, 9, t)](
        x, dots[s - 1].x_hat if own and s else x, gain, bias,
        kept.z, own.z if own else kept.z, kept.delta, own.delta if own else kept.delta,
        kept.winners, kept.coef, part,
        n, stage.side, stage.dense, stage.pooled, c, f, net.negative_slope, per_split,
        STRIDE=plan.stride, POOL=net.pool, ACT=s > 0, DUAL=own is not None, DOT_IN=s > 0,
        PRECISION=plan.precision, BF=_padded(f), BC=_padded(c), BP=bp,
    )  # fmt: skip
    size = f * 9 * c
    conv.add_splits_kernel[(triton.cdiv(size, 1024), t)](
        part, gradient[:, stage.theta :], splits, size, gradient.shape[1], BLOCK=1024
    )


def _stem_outer(images: Images, values: Tensor, winners: Tensor) -> Tensor:
    plan, stage = images.plan, images.plan.stages[0]
    t, n, f = plan.tasks, plan.images, plan.net.filters
    kp, bm = images.patch_mean.shape[1], 32
    windows = n * stage.pooled**2
    splits = min(triton.cdiv(windows, 4 * bm), 32)
    per_split = triton.cdiv(triton.cdiv(windows, splits), bm) * bm
    part, outer = values.new_empty(t, splits, kp, f), values.new_empty(t, kp, f)
    stem.stem_outer_kernel[(splits, t, 1)](
        images.x, values, winners, part,
        n, stage.side, stage.pooled, stage.channels, f, per_split,
        PRECISION=_stem_precision(plan), KP=kp, BM=bm, BF=_padded(f),
    )  # fmt: skip
    conv.add_splits_kernel[(triton.cdiv(kp * f, 1024), t)](
        part, outer, splits, kp * f, kp * f, BLOCK=1024
    )
    return outer


class Dot(NamedTuple):
    """Directions of what a stage keeps."""

    z: Tensor | None
    x_hat: Tensor
    delta: Tensor | None
    q: Tensor


def tangent(kept: Kept, direction: Tensor) -> tuple[Tensor, Tensor]:  # [T, P] → [T, P], [T, G]
    """Derivative of (gradient, norm_gradient) of a pass along a direction of theta."""
    images, theta, row, plan = kept.images, kept.theta, kept.row, kept.images.plan
    t, n, f, net = plan.tasks, plan.images, plan.net.filters, plan.net
    direction = direction.contiguous()
    new, bf, step = row.new_empty, _padded(f), direction.stride(0)
    product, norm_product = new(direction.shape), new(t, 2 * net.stages * f)
    dots: list[Dot] = []
    for s, stage in enumerate(plan.stages):
        own, q = kept.stages[s], new(t, f)
        x_hat_dot = torch.empty_like(own.x_hat)
        if stage.stem:
            kp = images.patch_mean.shape[1]
            stem.stem_tan_moments_kernel[(t, 1)](
                direction, images.patch_mean, images.pivot, kept.projected, own.rstd, own.coef, q,
                stage.channels, f, step, GIVEN=kept.given, KP=kp, BF=bf,
            )  # fmt: skip
            stem.stem_dot_kernel[(triton.cdiv(n * stage.pooled**2, 64), t, 1)](
                images.x, direction, own.x_hat, own.winners, own.coef, own.rstd, q, x_hat_dot,
                n, stage.side, stage.pooled, stage.channels, f, step,
                PRECISION=_stem_precision(plan), KP=kp, BM=64, BF=bf,
            )  # fmt: skip
            dots.append(Dot(None, x_hat_dot, None, q))
            continue
        x = kept.stages[s - 1].x_hat if s else images.x
        gain, bias = _affine(plan, row, max(s - 1, 0))
        blocks = _conv_blocks(plan, stage.channels, f)
        tiles = triton.cdiv(n * stage.dense**2, blocks["BM"])
        z_dot, part = torch.empty_like(own.z), new(t, tiles, 2, f)
        conv.conv_fwd_kernel[(tiles, t, 1)](
            x, dots[s - 1].x_hat if s else x, gain, bias,
            theta[:, stage.theta :], direction[:, stage.theta :], z_dot, own.z, own.coef, part,
            n, stage.side, stage.dense, stage.channels, f, theta.stride(0), step,
            net.negative_slope,
            STRIDE=plan.stride, ACT=s > 0, DUAL=True, DOT_IN=s > 0, PRECISION=plan.precision,
            **blocks,
        )  # fmt: skip
        norm_act.tan_fwd_sums_kernel[(t, 1)](
            part, own.coef, own.rstd, q, tiles, n * stage.dense**2, f,
            GIVEN=kept.given, BT=32, BF=bf,
        )  # fmt: skip
        norm_act.normalise_dot_kernel[(triton.cdiv(n * stage.pooled**2, 32), t, 1)](
            z_dot, own.x_hat, own.winners, own.coef, own.rstd, q, x_hat_dot,
            n, stage.dense, stage.pooled, f, POOL=net.pool, BM=32, BF=bf,
        )  # fmt: skip
        dots.append(Dot(z_dot, x_hat_dot, None, q))
    _tangent_backward(kept, direction, dots, product, norm_product)
    return product, norm_product


def _tangent_backward(kept: Kept, direction, dots, product, norm_product) -> None:
    images, theta, row, plan = kept.images, kept.theta, kept.row, kept.images.plan
    t, n, f, net = plan.tasks, plan.images, plan.net.filters, plan.net
    new, bf, stats = row.new_empty, _padded(f), 2 * net.filters
    last, last_dot = kept.stages[-1], dots[-1]
    gain, bias = _affine(plan, row, net.stages - 1)
    weights, weights_dot = theta[:, plan.theta_head :], direction[:, plan.theta_head :]
    logits_dot, residual_dot = torch.empty_like(kept.softmax), torch.empty_like(kept.softmax)
    head.head_kernel[(t,)](
        last.x_hat, last_dot.x_hat, gain, bias, weights, weights_dot, logits_dot,
        logits_dot, kept.softmax, residual_dot, logits_dot,
        n, plan.last_pixels, f, net.ways, theta.stride(0), direction.stride(0),
        net.negative_slope, MEAN=not net.pool, LABELS=False, DUAL=True, **_head_blocks(plan),
    )  # fmt: skip
    delta_dot = torch.empty_like(last.x_hat)
    part = new(t, plan.last_pixels, 2, f)
    head.head_bwd_kernel[(t, plan.last_pixels if net.pool else 1, 1)](
        last.x_hat, last_dot.x_hat, gain, bias, weights, weights_dot,
        kept.residual, residual_dot, last.delta, delta_dot, part,
        product[:, plan.theta_head :],
        n, plan.last_pixels, f, net.ways, theta.stride(0), direction.stride(0),
        product.shape[1], net.negative_slope,
        MEAN=not net.pool, DUAL=True, **_head_blocks(plan),
    )  # fmt: skip
    for s in reversed(range(net.stages)):
        stage, own = plan.stages[s], kept.stages[s]
        sums_dot = new(t, 2, f)
        norm_act.tan_bwd_sums_kernel[(t, 1)](
            part, own.coef, own.rstd, dots[s].q, sums_dot, norm_product[:, s * stats :],
            part.shape[1], n * stage.dense**2, f, norm_product.shape[1],
            GIVEN=kept.given, BT=32, BF=bf,
        )  # fmt: skip
        dots[s] = dots[s]._replace(delta=delta_dot)
        if stage.stem:
            outer_dot = _stem_outer(images, delta_dot, own.winners)
            stem.stem_tan_wgrad_kernel[(t, 1)](
                direction, kept.outer, outer_dot, images.patch_mean, images.cov, images.pivot,
                kept.projected, _affine(plan, row, 0)[0], own.rstd, dots[s].q, own.sums, sums_dot,
                product, stage.channels, f, direction.stride(0), product.shape[1],
                GIVEN=kept.given, KP=outer_dot.shape[1], BF=bf,
            )  # fmt: skip
            return
        _wgrad(images, kept.stages, s, row, product, dots)
        if s:
            delta_dot, part = _dgrad(images, kept.stages, s, theta, row, direction, dots)


def _padded(size: int) -> int:
    """A power of two that a matrix product takes."""
    return max(16, triton.next_power_of_2(size))


def _conv_blocks(plan: Plan, depth: int, width: int) -> dict[str, int]:
    return {"BM": 64, "BN": _padded(width), "BK": 32 if depth % 32 == 0 else 16}


def _head_blocks(plan: Plan) -> dict[str, int]:
    net = plan.net
    return {"BN": _padded(plan.images), "BF": _padded(net.filters), "BW": _padded(net.ways)}


def _stem_precision(plan: Plan) -> str:
    """The few products of the stem stay close to float32: its statistics come from elsewhere."""
    return "ieee" if plan.precision == "ieee" else "tf32x3"


def _affine(plan: Plan, row: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Gain and bias of a stage, [F] each."""
    f = plan.net.filters
    return row[2 * s * f :], row[(2 * s + 1) * f :]


def _given(given, s: int, filters: int, like: Tensor) -> tuple[Tensor, Tensor, int]:
    """Statistics of a stage as pointers, and from one task's to the next."""
    if given is None:
        return like, like, 0
    mean, var = (g[..., s * filters :] for g in given)
    return mean, var, given[0].stride(0) if given[0].dim() == 2 else 0
