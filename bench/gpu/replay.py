"""The oracle of everything that pools: the passes in ordinary differentiable torch, with the
winners of the poolings and the bends of the activations taken over from the pass that is checked.

Rounding makes another cell win where two are nearly equal, and from there two right results differ
by as much as their inputs do. With the same choices both are the same smooth function, and their
difference is rounding alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.backbone import Backbone
from engine.models.interface import Moments
from engine.models.passes import ComposedKept, FusedKept
from kernels import dispatch
from kernels.check.oracle import Choices, stage
from kernels.check.products import convolution

Tape = list[list[Choices] | None]  # by pass, by stage; None for a pass that does not tell


class Bends(NamedTuple):
    """How many of a pass are so near that their side hangs on how a sum is rounded. One taken
    otherwise in a first stage changes a meta-gradient by 1e-4 of it.
    """

    rounded: int  # whose side a product rounded before it is added would change
    apart: int  # whose activation was written on the other side than that of the exact sum


class Recording:
    """A backbone for `engine.unroll` that writes on its tape what its passes choose."""

    def __init__(self, model: Backbone):
        self.model, self.tape, self.bends = model, [], Bends(0, 0)
        self.sizes, self.bessel = model.sizes, model.bessel

    def prepare(self, x: Tensor, passes: int) -> "_Recorded":
        return _Recorded(self, self.model.prepare(x, passes))


class _Recorded(NamedTuple):
    recording: Recording
    images: object

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        result = self.images.loss_and_gradient(theta, row, labels, statistics, True)
        recording, told = self.recording, (self.recording.model, row, result.kept)
        recording.tape.append(choices(*told))
        both = zip(recording.bends, bends(*told), strict=True)
        recording.bends = Bends(*map(sum, both))
        return result if keep else result._replace(kept=None)


def choices(model: Backbone, row: Tensor, kept) -> list[Choices] | None:
    """Of a pass that keeps its stages where Python can read them."""
    if isinstance(kept, ComposedKept):
        return [_composed(model, stage.saved) for stage in kept.stages]
    fused = _stages(model, row, kept)
    return fused and [_fused(model, *each) for each in fused]


def bends(model: Backbone, row: Tensor, kept) -> Bends:
    """Of a pass whose stages are built again from x̂; none of others, which keep the activation."""
    rounded = apart = 0
    for gain, bias, own in _stages(model, row, kept) or ():
        exact = _unbent(gain, bias, own) > 0
        rounded += ((own.x_hat * gain + bias > 0) != exact).sum().item()
        if own.p is not None:
            apart += ((own.p[:, :, 1:-1, 1:-1] > 0) != exact).sum().item()
    return Bends(rounded, apart)


def _stages(model: Backbone, row: Tensor, kept) -> list[tuple] | None:
    """Gain, bias and what is kept of each stage, where a backend of whole passes shows it."""
    if not isinstance(kept, FusedKept) or not hasattr(kept.kept, "stages"):
        return None
    affine = row.view(model.stages, 2, model.filters)
    return [(*rows, stage) for rows, stage in zip(affine, kept.kept.stages, strict=True)]


def _composed(model: Backbone, saved) -> Choices:
    if saved.index is None:
        return Choices(None, saved.y > 0)
    width = saved.dense[-1] if hasattr(saved, "dense") else saved.centred.shape[-1]
    winners = saved.index // width % 2 * 2 + saved.index % width % 2
    return Choices(winners.unflatten(0, saved.y.shape[:2]), saved.y > 0)


def _fused(model: Backbone, gain: Tensor, bias: Tensor, stage) -> Choices:
    positive = _unbent(gain, bias, stage) > 0  # [T, N, h, w, F]
    winners = stage.winners.long().permute(0, 1, 4, 2, 3) if model.pool else None
    return Choices(winners, positive.permute(0, 1, 4, 2, 3))


def _unbent(gain: Tensor, bias: Tensor, stage) -> Tensor:
    """What the activation got, of the sign of the exact sum: the kernels add without rounding the
    product.
    """
    return stage.x_hat.double() * gain.double() + bias.double()


def stem_of(backend: str, precision: str) -> str:
    """How a backend takes the products of a first stage that pools, in passes of a precision."""
    space = dispatch.space(backend)
    return space.passes.stem_precision(precision) if "passes" in space.OPS else "fp32"


class Replay:
    """A backbone for `engine.unroll.autograd` that makes a tape's choices, or its own without one,
    and takes the products of its convolutions in a precision.

    Float32 with a precision other than fp32 is an emulation: operands are rounded, sums are not.
    `stem` is that of a first stage that pools.
    """

    def __init__(
        self,
        model: Backbone,
        tape: Tape | None = None,
        precision: str = "fp32",
        stem: str = "fp32",
    ):
        self.model, self.precision, self.stem = model, precision, stem
        self.sizes, self.bessel = model.sizes, model.bessel
        self.tape = None if tape is None else iter(tape)

    def loss(self, theta, row, x, labels, statistics=None, ops=None):
        """As `Backbone.loss`; the ops are its own."""
        model, means, variances = self.model, [], []
        weights = model.weights(theta)
        chosen = (next(self.tape) if self.tape else None) or [None] * model.stages
        given = model.given(statistics, len(x))
        for s, (gain, bias) in enumerate(row.view(model.stages, 2, model.filters)):
            precision = self.stem if s == 0 and model.pool else self.precision
            z = torch.stack(
                [
                    convolution(a, b, model.stride, precision)
                    for a, b in zip(x, weights[s], strict=True)
                ]
            )
            options = model.norm_eps, model.negative_slope, model.pool, given[s]
            x, mean, var = stage(z, gain, bias, *options, chosen[s])
            means.append(mean)
            variances.append(var)
        logits = model.features(x) @ weights[-2].mT + weights[-1].unsqueeze(1)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        moments = Moments(torch.cat(means, 1).detach(), torch.cat(variances, 1).detach())
        return each.view(labels.shape).mean(1), logits.detach(), moments
