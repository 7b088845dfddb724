"""The oracle of everything that pools: the passes in ordinary differentiable torch, with the
winners of the poolings and the bends of the activations taken over from the pass that is checked.

Rounding makes another cell win where two are nearly equal, and from there two right results differ
by as much as their inputs do. With the same choices both are the same smooth function, and their
difference is rounding alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.products import convolution
from engine.model import Backbone
from engine.passes import ComposedKept, FusedKept, Moments


class Choices(NamedTuple):
    """What a stage chose in a pass."""

    winners: Tensor | None  # int64 [T, N, F, h, w], 0 to 3 row by row; None: nothing is pooled
    positive: Tensor  # bool [T, N, F, h, w]: the activation did not bend


Tape = list[list[Choices] | None]  # by pass, by stage; None for a pass that does not tell


class Recording:
    """A backbone for `engine.unroll` that writes on its tape what its passes choose."""

    def __init__(self, model: Backbone):
        self.model, self.tape = model, []
        self.sizes, self.bessel = model.sizes, model.bessel

    def prepare(self, x: Tensor, passes: int) -> "_Recorded":
        return _Recorded(self, self.model.prepare(x, passes))


class _Recorded(NamedTuple):
    recording: Recording
    images: object

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        result = self.images.loss_and_gradient(theta, row, labels, statistics, True)
        self.recording.tape.append(choices(self.recording.model, row, result.kept))
        return result if keep else result._replace(kept=None)


def choices(model: Backbone, row: Tensor, kept) -> list[Choices] | None:
    """Of a pass that keeps its stages where Python can read them."""
    if isinstance(kept, ComposedKept):
        return [_composed(model, stage.saved) for stage in kept.stages]
    if isinstance(kept, FusedKept) and hasattr(kept.kept, "stages"):
        affine = row.view(model.stages, 2, model.filters)
        return [_fused(model, *rows, s) for rows, s in zip(affine, kept.kept.stages, strict=True)]
    return None


def _composed(model: Backbone, saved) -> Choices:
    if saved.index is None:
        return Choices(None, saved.y > 0)
    width = saved.dense[-1] if hasattr(saved, "dense") else saved.centred.shape[-1]
    winners = saved.index // width % 2 * 2 + saved.index % width % 2
    return Choices(winners.unflatten(0, saved.y.shape[:2]), saved.y > 0)


def _fused(model: Backbone, gain: Tensor, bias: Tensor, stage) -> Choices:
    positive = stage.x_hat * gain + bias > 0  # [T, N, h, w, F]
    winners = stage.winners.long().permute(0, 1, 4, 2, 3) if model.pool else None
    return Choices(winners, positive.permute(0, 1, 4, 2, 3))


class Replay:
    """A backbone for `engine.unroll.autograd` that makes a tape's choices, or its own without one,
    and takes the products of its convolutions in a precision.

    Float32 with a precision other than fp32 is an emulation: operands are rounded, sums are not.
    """

    def __init__(self, model: Backbone, tape: Tape | None = None, precision: str = "fp32"):
        self.model, self.precision = model, precision
        self.sizes, self.bessel = model.sizes, model.bessel
        self.tape = None if tape is None else iter(tape)

    def loss(self, theta, row, x, labels, statistics=None, ops=None):
        """As `Backbone.loss`; the ops are its own."""
        model, means, variances = self.model, [], []
        weights = model.weights(theta)
        chosen = (next(self.tape) if self.tape else None) or [None] * model.stages
        given = model.given(statistics, len(x))
        for s, (gain, bias) in enumerate(row.view(model.stages, 2, model.filters)):
            # The stem, a first stage that pools, is close to float32 in every precision.
            precision = "fp32" if s == 0 and model.pool else self.precision
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


def stage(
    z: Tensor,  # [T, N, F, H, W]
    gain: Tensor,  # [F]
    bias: Tensor,  # [F]
    eps: float,
    slope: float,
    pool: bool,
    given: tuple[Tensor, Tensor] | None,  # [T, F] each
    chosen: Choices | None,
) -> tuple[Tensor, Tensor, Tensor]:  # y [T, N, F, h, w], mean and biased variance [T, F]
    """Batch norm, pooling and activation; affine and activation grow, so that pooling before the
    bend is pooling behind it.
    """
    mean, var = z.mean((1, 3, 4)), z.var((1, 3, 4), correction=0)
    centre, spread = given or (mean, var)
    x_hat = (z - _wide(centre)) * (_wide(spread) + eps).rsqrt()
    y = x_hat * gain.view(1, 1, -1, 1, 1) + bias.view(1, 1, -1, 1, 1)
    if pool and chosen is not None and chosen.winners is not None:
        h, w = (side // 2 * 2 for side in y.shape[3:])
        windows = y[..., :h, :w].unfold(3, 2, 2).unfold(4, 2, 2).flatten(5)
        y = windows.gather(5, chosen.winners.clone().unsqueeze(5)).squeeze(5)
    elif pool:
        y = F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, z.shape[:2])
    if chosen is None:
        return F.leaky_relu(y, slope), mean, var
    return torch.where(chosen.positive.clone(), y, slope * y), mean, var


def _wide(v: Tensor) -> Tensor:
    return v[:, None, :, None, None]


@contextmanager
def exact_products() -> Iterator[None]:
    """Torch's own float32 products on a GPU are float32 inside the block."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
