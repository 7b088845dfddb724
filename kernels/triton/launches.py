"""The launches of a pass between the first stage's, if that is a stem, and its end; those of its
tangent are the same with the directions of what was kept.
"""

import torch
import triton
from torch import Tensor

from kernels.branch import Branch, Mark
from kernels.triton import conv_kernels, head, norm_act_kernels, sums
from kernels.triton.conv import turn, wgrad_grid
from kernels.triton.launch import Geometry, within
from kernels.triton.operands import COEFFICIENTS
from kernels.triton.plan import Call, Dot, Head, Kept, StageKept
from kernels.triton.splits import Parts, Segment


def stage_fwd(call: Call, below: StageKept | None, s: int, mean: Tensor, var: Tensor) -> StageKept:
    plan, theta = call.plan, call.theta
    stage, (t, n, f, new), net = plan.stages[s], call.sizes, plan.net
    x = below.p if below else call.images.x
    w = theta[:, stage.theta :]
    blocks = call.blocks("conv_fwd", stage, stage.dense)
    grid = call.grid(stage.dense, blocks["BM"], blocks["BN"])
    z, part = new(t, n, stage.dense, stage.dense, f), new(t, grid[0], 2, f)
    conv_kernels.conv_fwd_kernel[grid](
        x, x, w, w, z, z, z, part,
        n, stage.side, stage.dense, stage.channels, f, theta.stride(0), 0,
        STRIDE=plan.stride, BORDER=True, DUAL=False, DOT_IN=False, SUMS=True,
        PRECISION=plan.precision, **blocks,
    )  # fmt: skip
    coef, rstd, per_tile = new(t, COEFFICIENTS, f), new(t, f), blocks["BM"]
    given_mean, given_var, step = call.statistics(s)
    maps, p = call.map_blocks(stage.pooled), call.activation(s)
    programs = call.grid(call.out_side(s), maps["BM"], maps["BF"])
    of_batch, merged = (mean[:, s * f :], var[:, s * f :]), within(grid[0], programs[0])
    if not merged["MERGE"]:
        merging, merge = call.merge(grid[0])
        sums.moments_kernel[merging](
            part, given_mean, given_var, coef, rstd, *of_batch,
            grid[0], per_tile, n * stage.dense**2, f, step, mean.shape[1], net.eps,
            GIVEN=call.is_given, **merge,
        )  # fmt: skip
    shape = t, n, stage.pooled, stage.pooled, f
    x_hat = new(shape)
    winners = new(shape if net.pool else (1,), dtype=torch.uint8)
    norm_act_kernels.normalise_kernel[programs](
        z, *call.affine(s), coef, rstd, part, given_mean, given_var, *of_batch,
        x_hat, winners, x_hat if p is None else p,
        n, stage.dense, stage.pooled, f, call.row_step, net.negative_slope,
        grid[0], per_tile, step, mean.shape[1], net.eps,
        POOL=net.pool, ACT=p is not None, BORDER=p is not None, GIVEN=call.is_given,
        **merged, **maps,
    )  # fmt: skip
    return StageKept(z, x_hat, winners, coef, rstd, p)


def head_fwd(call: Call, last: StageKept, labels: Tensor | None) -> Head:
    """Without labels the logits alone."""
    plan, theta = call.plan, call.theta
    (t, n, f, new), net = call.sizes, plan.net
    logits, losses = new(t, n, net.ways), new(t, n)
    softmax, residual = torch.empty_like(logits), torch.empty_like(logits)
    found = Head(logits, softmax, residual, losses)
    w, affine = theta[:, plan.theta_head :], call.affine(net.stages - 1)
    if plan.last_pixels == 1:
        blocks = call.head_blocks("head_bwd")
        if labels is None:
            head.logits_kernel[(t, triton.cdiv(n, blocks["BN"]))](
                last.x_hat, *affine, w, logits,
                n, f, net.ways, call.row_step, theta.stride(0), net.negative_slope, **blocks,
            )  # fmt: skip
        return found
    blocks = call.head_blocks("head")
    head.head_kernel[(t, n)](
        last.x_hat, last.x_hat, *affine, w, w,
        logits if labels is None else labels, logits, softmax, residual, losses,
        n, plan.last_pixels, f, net.ways, call.row_step, theta.stride(0), 0, net.negative_slope,
        MEAN=not net.pool, LABELS=labels is not None, DUAL=False, **blocks,
    )  # fmt: skip
    return found


def head_dot(kept: Kept, direction: Tensor, last_dot: Dot) -> Tensor:
    """The direction of (softmax − one-hot) / N; of features of one pixel not written."""
    call, plan = kept.call, kept.call.plan
    (t, n, f, _), net, theta = call.sizes, plan.net, call.theta
    residual_dot = torch.empty_like(kept.head.softmax)
    if plan.last_pixels == 1:
        return residual_dot
    blocks = call.head_blocks("head")
    head.head_kernel[(t, n)](
        kept.stages[-1].x_hat, last_dot.x_hat, *call.affine(net.stages - 1),
        theta[:, plan.theta_head :], direction[:, plan.theta_head :],
        kept.head.softmax, kept.head.softmax, kept.head.softmax, residual_dot, kept.head.softmax,
        n, plan.last_pixels, f, net.ways, call.row_step, theta.stride(0), direction.stride(0),
        net.negative_slope,
        MEAN=not net.pool, LABELS=False, DUAL=True, **blocks,
    )  # fmt: skip
    return residual_dot


def head_bwd(
    call: Call,
    last: StageKept,
    labels: Tensor | None,  # [T, N]; with `dots` not read
    found: Head,
    gradient: Tensor,  # [T, P], of which the classifier's is written
    direction: Tensor | None = None,
    dots: tuple[Dot, Tensor] | None = None,  # of the last stage and of the residual
) -> tuple[Tensor, Tensor, Tensor]:
    """δ of the last stage, and the parts of its sums; the loss [T], with `dots` not written."""
    plan, theta = call.plan, call.theta
    (t, n, f, new), net = call.sizes, plan.net
    last_dot, residual_dot = dots or (last, found.residual)
    w = theta[:, plan.theta_head :]
    w_dot = w if direction is None else direction[:, plan.theta_head :]
    delta, part, loss = torch.empty_like(last.x_hat), new(t, plan.last_pixels, 2, f), new(t)
    blocks = call.head_blocks("head_bwd", dots is not None)
    grid = t, plan.last_pixels if net.pool else 1, triton.cdiv(f, blocks["BF"])
    head.head_bwd_kernel[grid](
        last.x_hat, last_dot.x_hat, *call.affine(net.stages - 1), w, w_dot,
        found.residual if labels is None else labels, found.logits, found.softmax,
        found.residual, residual_dot, found.losses, loss,
        last.delta if dots else delta, delta, part, gradient[:, plan.theta_head :],
        n, plan.last_pixels, f, net.ways, call.row_step,
        theta.stride(0), w_dot.stride(0), gradient.stride(0),
        net.negative_slope, MEAN=not net.pool, DUAL=dots is not None, OWN=plan.last_pixels == 1,
        **blocks,
    )  # fmt: skip
    return delta, part, loss


class Turned:
    """The filters of all stages but the first as `dgrad` reads them, made beside what comes before
    it; there are none of a single stage.
    """

    def __init__(self, call: Call, theta: Tensor):
        plan, (t, _, f, new) = call.plan, call.sizes
        self._filters, self._mark, stages = None, Mark(), plan.net.stages - 1
        if stages:
            self._filters = new(t, stages, f, 9, f, dtype=plan.storage)
            with Branch(theta.device).on() as self._mark:
                turn(theta[:, plan.stages[1].theta :], self._filters, theta.stride(0))

    def filters(self) -> Tensor | None:  # [T, stages − 1, F, 9, F]
        self._mark.wait()
        return self._filters


def dz(
    call: Call,
    kept: StageKept,
    s: int,
    part: Tensor,  # of Σδ, Σδx̂, or with `dot` of their directions [T, tiles, 2, F]
    norm_gradient: Tensor,  # [T, G], of which the stage's gain's and bias's is written
    dot: Dot | None = None,
) -> tuple[Tensor, Tensor]:
    """Of a stage that is no stem, or with `dot` its direction, between zeros; and Σδ, Σδx̂."""
    plan, stage, (t, n, f, new) = call.plan, call.plan.stages[s], call.sizes
    own, gain, result = dot or kept, call.affine(s)[0], new(t, 2, f)
    rows, step = plan.norm_gradient(norm_gradient, s), norm_gradient.stride(0)
    out, tiles = call.bordered(stage.dense), part.shape[1]
    blocks = call.map_blocks(stage.dense, dot is not None)
    grid = call.grid(stage.dense + 2, blocks["BM"], blocks["BF"])
    merged = within(tiles, grid[0])
    if not merged["MERGE"]:
        (merging, merge), pixels = call.merge(tiles), n * stage.dense**2
        if dot:
            sums.tan_bwd_sums_kernel[merging](
                part, kept.coef, kept.rstd, dot.q, kept.sums, kept.rstd, result, *rows,
                tiles, pixels, f, step, GIVEN=call.is_given, GAIN_DOT=False, **merge,
            )  # fmt: skip
        else:
            sums.bwd_sums_kernel[merging](
                part, kept.coef, kept.rstd, gain, result, *rows,
                tiles, pixels, f, call.row_step, step, GIVEN=call.is_given, **merge,
            )  # fmt: skip
    norm_act_kernels.dz_kernel[grid](
        kept.z, own.z, kept.delta, own.delta, kept.winners, kept.coef,
        part, kept.rstd, gain, dot.q if dot else gain, kept.sums if dot else result, result, *rows,
        out, n, stage.dense, stage.pooled, f, tiles, call.row_step, step,
        POOL=plan.net.pool, DUAL=dot is not None, BORDER=True, GIVEN=call.is_given,
        **merged, **blocks,
    )  # fmt: skip
    return out, result


def dgrad(
    call: Call,
    stages: list[StageKept],
    s: int,
    w: Tensor,  # of `Turned`
    w_dot: Tensor | None = None,  # with `dots`
    dots: list[Dot] | None = None,
) -> tuple[Tensor, Tensor]:
    """δ of the stage below stage s, and the parts of its sums."""
    plan, stage, (t, n, f, new) = call.plan, call.plan.stages[s], call.sizes
    kept, below = stages[s], stages[s - 1]
    own, dot_below = (dots[s], dots[s - 1]) if dots else (kept, below)
    w_dot = w if w_dot is None else w_dot
    blocks = call.blocks("conv_bwd", stage, stage.side, dual=dots is not None)
    grid = call.grid(stage.side, blocks["BM"], blocks["BN"])
    out, part = torch.empty_like(below.x_hat), new(t, grid[0], 2, f)
    conv_kernels.conv_bwd_kernel[grid](
        kept.dz, own.dz, w[:, s - 1], w_dot[:, s - 1],
        below.x_hat, dot_below.x_hat, below.delta if dots else out, *call.affine(s - 1), out, part,
        n, stage.side, stage.dense, stage.channels, f, w.stride(0), w_dot.stride(0),
        call.row_step, plan.net.negative_slope,
        STRIDE=plan.stride, BORDER=True, BELOW=True, DUAL=dots is not None,
        PRECISION=plan.precision, **blocks,
    )  # fmt: skip
    return out, part


class Wgrads:
    """The filters' gradients of a pass, but for a stem's: each begins when its dz is there and runs
    beside what comes then, and behind the last one their sums.
    """

    def __init__(
        self, call: Call, stages: list[StageKept], gradient: Tensor, dots: list[Dot] | None = None
    ):
        # gradient: [T, P], of which the filters' is written
        self.call, self.stages, self.gradient, self.dots = call, stages, gradient, dots
        plan, (t, n, f, _) = call.plan, call.sizes
        self.grids, segments = {}, []
        for s, stage in reversed([*enumerate(plan.stages)]):  # in the order of their launches
            if not stage.stem:
                line = plan.stride == 1
                sizes = n, stage.dense + 2 * line, stage.channels, f
                geometry = Geometry("conv_wgrad", *sizes, plan.precision, dots is not None, line)
                self.grids[s] = len(segments), *wgrad_grid(geometry, t, gradient.device)
                segments.append(Segment(self.grids[s][1][0], f * 9 * stage.channels, stage.theta))
        self.parts = Parts.of(gradient, t, *segments) if segments else None
        self.last = len(segments) - 1
        self.branch, self.marks = Branch(gradient.device), []

    def begin(self, s: int) -> None:
        """Of a stage whose dz, and with `dots` its direction, are there."""
        plan, stage, (_, n, f, _) = self.call.plan, self.call.plan.stages[s], self.call.sizes
        index, grid, blocks = self.grids[s]
        kept, dual = self.stages[s], self.dots is not None
        x = self.stages[s - 1].p if s else self.call.images.x
        x_dot, own = (self.dots[s - 1].p if s else x, self.dots[s]) if dual else (x, kept)
        with self.branch.on() as mark:
            conv_kernels.conv_wgrad_kernel[grid](
                x, x_dot, kept.dz, own.dz, self.parts.segment(index),
                n, stage.side, stage.dense, stage.channels, f,
                STRIDE=plan.stride, BORDER=True, DUAL=dual, DOT_IN=s > 0,
                PRECISION=plan.precision, **blocks,
            )  # fmt: skip
            if index == self.last:
                self.parts.add(self.gradient, self.gradient.stride(0))
        self.marks.append(mark)

    def finish(self) -> None:
        for mark in self.marks:
            mark.wait()


def stage_dot(kept: Kept, below: Dot | None, s: int, direction: Tensor) -> Dot:
    call, own, plan = kept.call, kept.stages[s], kept.call.plan
    stage, (t, n, f, new), net = plan.stages[s], call.sizes, plan.net
    x = kept.stages[s - 1].p if s else call.images.x
    blocks = call.blocks("conv_fwd", stage, stage.dense, dual=True)
    grid = call.grid(stage.dense, blocks["BM"], blocks["BN"])
    z_dot, part, q = torch.empty_like(own.z), new(t, grid[0], 2, f), new(t, f)
    conv_kernels.conv_fwd_kernel[grid](
        x, below.p if below else x,
        call.theta[:, stage.theta :], direction[:, stage.theta :], z_dot, own.z, own.coef, part,
        n, stage.side, stage.dense, stage.channels, f, call.theta.stride(0), direction.stride(0),
        STRIDE=plan.stride, BORDER=True, DUAL=True, DOT_IN=s > 0, SUMS=True,
        PRECISION=plan.precision, **blocks,
    )  # fmt: skip
    maps, p = call.map_blocks(stage.pooled, True), call.activation(s)
    programs = call.grid(call.out_side(s), maps["BM"], maps["BF"])
    merged = within(grid[0], programs[0])
    if not merged["MERGE"]:
        merging, merge = call.merge(grid[0])
        sums.tan_fwd_sums_kernel[merging](
            part, own.coef, own.rstd, q, grid[0], n * stage.dense**2, f,
            GIVEN=call.is_given, **merge,
        )  # fmt: skip
    x_hat_dot = torch.empty_like(own.x_hat)
    norm_act_kernels.normalise_dot_kernel[programs](
        z_dot, own.x_hat, own.winners, own.coef, own.rstd, q, part, *call.affine(s),
        x_hat_dot, x_hat_dot if p is None else p,
        n, stage.dense, stage.pooled, f, call.row_step, net.negative_slope, grid[0],
        POOL=net.pool, BORDER=p is not None, GIVEN=call.is_given, **merged, **maps,
    )  # fmt: skip
    return Dot(z_dot, x_hat_dot, q, p)
