"""The first stage, conv → batch norm → leaky ReLU → 2×2 max pool, from the moments of its patches.

An episode's images do not change from step to step. With m and G the mean and covariance of their
patches, the statistics of z = w·patch are μ = w·m and σ² = wᵀGw, so that the convolution writes x̂
at once, no pass over z is needed, and with A = Σδ·patch over the pooling winners

    dw = gain·r·(A − s₁m − s₂r·Gw)

and likewise for the tangents (symbols as in `norm_act`). There is no gradient of the images.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.plain.layout import channels_last, stack
from kernels.plain.window import at_winners, bend, channel_sum, pool, scatter, wide

_IMAGES_BLOCK = 8  # images whose patches are unfolded at once


class Patches(NamedTuple):
    """Moments of the D = 9·C values under a 3×3 filter, over all positions and images of a task."""

    mean: Tensor  # float64 [T, D]
    cov: Tensor  # float64 [T, D, D]


class Saved(NamedTuple):
    x: Tensor  # [T, N, C, H, W]
    patches: Patches
    w: Tensor  # [T, F, C, 3, 3]
    projected: Tensor  # [T, F, D] Gw
    mean: Tensor  # [T, F] of the batch
    var: Tensor  # [T, F] of the batch, biased
    rstd: Tensor  # [T, F]
    x_hat: Tensor  # [T, N, F, h, w] at the winners
    index: Tensor  # int64 [T·N, F, h, w]
    dense: torch.Size  # T, N, F, H', W'
    y: Tensor  # [T, N, F, h, w]
    negative_slope: float
    given: bool  # the statistics were given and are constants


class Tangent(NamedTuple):
    w_dot: Tensor  # [T, F, C, 3, 3]
    q: Tensor | None  # [T, F] mean of x̂·ż
    x_hat_dot: Tensor  # [T, N, F, h, w]


def patches(x: Tensor) -> Patches:
    """Moments of the 3×3 patches of [T, N, C, H, W] with padding 1, merged over blocks of images as
    Chan et al. (1979) do.
    """
    means, covs, weights = [], [], []
    for block in x.split(_IMAGES_BLOCK, 1):
        unfolded = F.unfold(block.flatten(0, 1).double(), 3, padding=1)
        rows = unfolded.unflatten(0, block.shape[:2]).transpose(1, 2).flatten(2)  # [T, D, n·L]
        means.append(rows.mean(2))
        centred = rows - means[-1].unsqueeze(2)
        covs.append(centred @ centred.mT / rows.shape[2])
        weights.append(block.shape[1] / x.shape[1])
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    offsets = [m - mean for m in means]
    return Patches(
        mean,
        sum(
            w * (c + o.unsqueeze(2) * o.unsqueeze(1))
            for w, c, o in zip(weights, covs, offsets, strict=True)
        ),
    )


def fwd(
    x: Tensor,  # [T, N, C, H, W]
    patches: Patches,
    w: Tensor,  # [T, F, C, 3, 3]
    gain: Tensor,  # [T, F]
    bias: Tensor,  # [T, F]
    eps: float,
    negative_slope: float,
    statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, F]
) -> tuple[Tensor, Saved]:
    x, rows = channels_last(x), w.flatten(2).double()
    projected = rows @ patches.cov
    mean = (rows @ patches.mean.unsqueeze(2)).squeeze(2).to(x.dtype)
    var = (projected * rows).sum(2).to(x.dtype)
    centre, spread = statistics or (mean, var)
    rstd = (spread + eps).rsqrt()
    x_hat = _conv(x, w, rstd, -centre * rstd)
    dense = x_hat.shape
    x_hat, index = pool(x_hat, gain)
    y = torch.addcmul(wide(bias), x_hat, wide(gain))
    if negative_slope != 1.0:
        F.leaky_relu_(y, negative_slope)
    return y, Saved(
        x,
        patches,
        w,
        projected.to(x.dtype),
        mean,
        var,
        rstd,
        x_hat,
        index,
        dense,
        y,
        negative_slope,
        statistics is not None,
    )


def bwd(
    saved: Saved,
    gain: Tensor,  # [T, F]
    dy: Tensor,  # [T, N, F, h, w]
) -> tuple[Tensor, Tensor, Tensor]:  # dw [T, F, C, 3, 3], dgain [T, F], dbias [T, F]
    delta = bend(dy, saved.y, saved.negative_slope)
    s1, s2 = channel_sum(delta), channel_sum(delta * saved.x_hat)
    scale = gain * saved.rstd
    dw = _wgrad(saved, delta * wide(scale))
    if not saved.given:
        dw = dw - _outer(scale * s1, saved.patches.mean, dw)
        dw = dw - _each(scale * s2 * saved.rstd, saved.projected, dw)
    return dw, s2, s1


def tan_fwd(
    saved: Saved,
    gain: Tensor,  # [T, F]
    w_dot: Tensor,  # [T, F, C, 3, 3]
) -> tuple[Tensor, Tangent]:
    q, shift = None, None
    if not saved.given:
        rows = w_dot.flatten(2)
        shift = -(rows @ saved.patches.mean.to(rows.dtype).unsqueeze(2)).squeeze(2) * saved.rstd
        q = (saved.projected * rows).sum(2) * saved.rstd
    dense = _conv(saved.x, w_dot, saved.rstd, shift)
    x_hat_dot = at_winners(dense, saved.index)
    if q is not None:
        x_hat_dot = torch.addcmul(x_hat_dot, saved.x_hat, wide(q * saved.rstd), value=-1)
    y_dot = bend(x_hat_dot * wide(gain), saved.y, saved.negative_slope)
    return y_dot, Tangent(w_dot, q, x_hat_dot)


def tan_bwd(
    saved: Saved,
    tangent: Tangent,
    gain: Tensor,  # [T, F]
    dy: Tensor,  # [T, N, F, h, w]
    dy_dot: Tensor,  # [T, N, F, h, w]
) -> tuple[Tensor, Tensor, Tensor]:  # directions of dw, dgain, dbias
    r, slope = saved.rstd, saved.negative_slope
    delta, delta_dot = bend(dy, saved.y, slope), bend(dy_dot, saved.y, slope)
    s1_dot = channel_sum(delta_dot)
    s2_dot = channel_sum(delta_dot * saved.x_hat) + channel_sum(delta * tangent.x_hat_dot)
    scale = gain * r
    if saved.given:
        return _wgrad(saved, delta_dot * wide(scale)), s2_dot, s1_dot
    scale_dot = -scale * r * tangent.q
    pooled = torch.addcmul(delta * wide(scale_dot), delta_dot, wide(scale))
    dw_dot = _wgrad(saved, pooled)
    s1, s2 = channel_sum(delta), channel_sum(delta * saved.x_hat)
    dw_dot = dw_dot - _outer(scale_dot * s1 + scale * s1_dot, saved.patches.mean, dw_dot)
    # d(scale·s₂·r)·Gw + scale·s₂·r·Gẇ, with ṙ = −r²q
    on_projected = (scale_dot * s2 + scale * s2_dot) * r - scale * s2 * r * r * tangent.q
    dw_dot = dw_dot - _each(on_projected, saved.projected, dw_dot)
    projected_dot = tangent.w_dot.flatten(2) @ saved.patches.cov.to(dw_dot.dtype)
    return dw_dot - _each(scale * s2 * r, projected_dot, dw_dot), s2_dot, s1_dot


def _conv(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """scale·conv(x, w) + shift, folded into the filters; scale and shift [T, F]."""
    w = w * scale[:, :, None, None, None]
    images = [
        torch.conv2d(x[t], w[t], None if shift is None else shift[t], 1, 1) for t in range(len(x))
    ]
    return stack([image.permute(0, 2, 3, 1) for image in images]).permute(0, 1, 4, 2, 3)


def _wgrad(saved: Saved, pooled: Tensor) -> Tensor:
    dz = scatter(pooled, saved.index, saved.dense)
    gradients = [
        torch.ops.aten.convolution_backward(
            dz[t],
            saved.x[t],
            saved.w[t],
            None,
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [False, True, False],
        )[1]
        for t in range(len(dz))
    ]
    return stack(gradients)


def _outer(per_filter: Tensor, per_tap: Tensor, like: Tensor) -> Tensor:
    """[T, F] × [T, D] → [T, F, C, 3, 3]"""
    return (per_filter.unsqueeze(2) * per_tap.to(like.dtype).unsqueeze(1)).view(like.shape)


def _each(per_filter: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """[T, F] · [T, F, D] → [T, F, C, 3, 3]"""
    return (per_filter.unsqueeze(2) * rows).view(like.shape)
