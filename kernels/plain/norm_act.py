"""Batch norm + affine + leaky ReLU + 2×2 max pool, statistics per task and channel.

With r = 1/√(σ² + ε), x̂ = (z − μ)r, m the slope of the activation at the winner of each window, S
the scatter of pooled values to their winners, n the elements behind a statistic, and δ = m·dy:

    dbias = s₁ = Σδ;  dgain = s₂ = Σδx̂;  dz = gain·r·(S(δ) − s₁/n − x̂s₂/n)

so the sums of the gradient run over pooled values only. Along ż, with μ̇ = mean ż and q = mean(x̂ż):
ṙ = −r²q, x̂' = r(ż − μ̇ − x̂q), and the tangents are the product rule on the above.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.plain.layout import channels_last, total

# Values in a block of the sum of squares, so that its product stays in the cache (4 MiB of float32).
_SQUARES_BLOCK = 2**20


class Saved(NamedTuple):
    """What `norm_act` keeps: everything the tangents need, the dense input once."""

    centred: Tensor  # [T, N, C, H, W] z − μ
    mean: Tensor  # [T, C] of the batch
    var: Tensor  # [T, C] of the batch, biased
    rstd: Tensor  # [T, C]
    x_hat: Tensor  # [T, N, C, h, w] normalised input at the pooling winners
    index: Tensor | None  # [T·N, C, h, w] winner inside its image, None without pooling
    y: Tensor  # [T, N, C, h, w] the output, whose sign says where the activation bends
    negative_slope: float
    count: int  # elements behind each statistic; 0: the statistics were given and are constants


class Tangent(NamedTuple):
    z_dot: Tensor | None  # [T, N, C, H, W]
    mean_dot: Tensor | None  # [T, C]
    q: Tensor | None  # [T, C] mean of x̂·ż, so that ṙ = −r²q
    x_hat_dot: Tensor | None  # [T, N, C, h, w]


def fwd(
    z: Tensor,  # [T, N, C, H, W]
    gain: Tensor,  # [T, C]
    bias: Tensor,  # [T, C]
    eps: float,
    negative_slope: float,
    pool: bool,
    statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, C]; None: the batch's own
) -> tuple[Tensor, Saved]:
    z = channels_last(z)
    count = z.numel() // (z.shape[0] * z.shape[2])
    mean = _channel_sum(z) / count
    centred = z - _wide(mean)
    var = _sum_of_squares(centred) / count
    spread = var
    if statistics is not None:
        centre, spread = statistics
        centred, count = z - _wide(centre), 0
    rstd = (spread + eps).rsqrt()
    winners, index = (centred, None) if not pool else _pool(centred, gain)
    x_hat = winners * _wide(rstd)
    y = torch.addcmul(_wide(bias), x_hat, _wide(gain))
    if negative_slope != 1.0:
        F.leaky_relu_(y, negative_slope)
    return y, Saved(centred, mean, var, rstd, x_hat, index, y, negative_slope, count)


def bwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, w]
) -> tuple[Tensor, Tensor, Tensor]:  # dz, dgain [T, C], dbias [T, C]
    delta = _masked(dy, saved)
    s1, s2 = _channel_sum(delta), _channel_sum(delta * saved.x_hat)
    scale = gain * saved.rstd
    dz = _scatter(delta * _wide(scale), saved)
    if saved.count:
        per_value = scale / -saved.count
        dz.addcmul_(saved.centred, _wide(per_value * saved.rstd * s2))
        dz.add_(_wide(per_value * s1))
    return dz, s2, s1


def tan_fwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    z_dot: Tensor | None,  # [T, N, C, H, W]
    gain_dot: Tensor | None = None,  # [T, C]
    bias_dot: Tensor | None = None,  # [T, C]
) -> tuple[Tensor | None, Tangent]:
    mean_dot = q = x_hat_dot = None
    if z_dot is not None:
        z_dot = channels_last(z_dot)
        x_hat_dot = _at_winners(z_dot, saved)
        if saved.count:
            mean_dot = _channel_sum(z_dot) / saved.count
            q = _channel_sum(saved.centred * z_dot) * saved.rstd / saved.count
            x_hat_dot = x_hat_dot - _wide(mean_dot) - saved.x_hat * _wide(q)
        x_hat_dot = x_hat_dot * _wide(saved.rstd)
    y_dot = total(
        None if x_hat_dot is None else x_hat_dot * _wide(gain),
        None if gain_dot is None else saved.x_hat * _wide(gain_dot),
        None if bias_dot is None else _wide(bias_dot).expand_as(saved.x_hat),
    )
    return _masked(y_dot, saved), Tangent(z_dot, mean_dot, q, x_hat_dot)


def tan_bwd(
    saved: Saved,
    tangent: Tangent,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, w]
    dy_dot: Tensor | None,  # [T, N, C, h, w]
    gain_dot: Tensor | None = None,  # [T, C]
) -> tuple[Tensor, Tensor, Tensor]:  # directions of dz, dgain, dbias
    delta = _masked(dy, saved)
    delta_dot = torch.zeros_like(delta) if dy_dot is None else _masked(dy_dot, saved)
    s1_dot, s2_dot = _channel_sum(delta_dot), _channel_sum(delta_dot * saved.x_hat)
    if tangent.x_hat_dot is not None:
        s2_dot = s2_dot + _channel_sum(delta * tangent.x_hat_dot)
    r, n, scale = saved.rstd, saved.count, gain * saved.rstd
    scale_dot = torch.zeros_like(scale) if gain_dot is None else gain_dot * r
    if tangent.q is not None:
        scale_dot = scale_dot - scale * r * tangent.q
    pooled = torch.addcmul(delta * _wide(scale_dot), delta_dot, _wide(scale))
    dz_dot = _scatter(pooled, saved)
    if n:
        # Coefficients of x̂, of ż and of 1.
        s1, s2 = _channel_sum(delta), _channel_sum(delta * saved.x_hat)
        on_x_hat = -(scale_dot * s2 + scale * s2_dot) / n
        constant = -(scale_dot * s1 + scale * s1_dot) / n
        if tangent.z_dot is not None:
            on_z_dot = -scale * r * s2 / n
            dz_dot.addcmul_(tangent.z_dot, _wide(on_z_dot))
            on_x_hat = on_x_hat - on_z_dot * tangent.q
            constant = constant - on_z_dot * tangent.mean_dot
        dz_dot.addcmul_(saved.centred, _wide(on_x_hat * r))
        dz_dot.add_(_wide(constant))
    return dz_dot, s2_dot, s1_dot


def _pool(centred: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices of the winners. Affine and activation are monotone, so they commute with
    the maximum up to the sign of the gain; a gain of 0 makes all equal, and the first one wins.
    """
    flat = centred.flatten(0, 1)
    if bool((gain > 0).all()):
        winners, index = F.max_pool2d(flat, 2, return_indices=True)
    else:
        signed = (centred * _wide(gain.sign())).flatten(0, 1)
        _, index = F.max_pool2d(signed, 2, return_indices=True)
        winners = _gather(flat, index)
    return winners.unflatten(0, centred.shape[:2]), index


def _gather(dense: Tensor, index: Tensor) -> Tensor:
    """[n, C, H, W] at indices [n, C, h, w]"""
    values = _rows(dense).gather(1, _rows(index))
    return values.unflatten(1, index.shape[2:]).permute(0, 3, 1, 2)


def _sum_of_squares(x: Tensor) -> Tensor:
    """[T, N, C, H, W] → [T, C]"""
    images = max(1, _SQUARES_BLOCK // x[:, 0].numel())
    blocks = [_channel_sum(block * block) for block in x.split(images, 1)]
    return blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)


def _wide(v: Tensor) -> Tensor:
    """[T, C] → [T, 1, C, 1, 1]"""
    return v.view(v.shape[0], 1, v.shape[1], 1, 1)


def _channel_sum(x: Tensor) -> Tensor:
    """[T, N, C, h, w] → [T, C]"""
    return x.permute(0, 1, 3, 4, 2).flatten(1, 3).sum(1)


def _rows(x: Tensor) -> Tensor:
    """[n, C, h, w] → [n, h·w, C], a view for NHWC memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _at_winners(dense: Tensor, saved: Saved) -> Tensor:
    if saved.index is None:
        return dense
    return _gather(dense.flatten(0, 1), saved.index).unflatten(0, dense.shape[:2])


def _scatter(pooled: Tensor, saved: Saved) -> Tensor:
    """Pooled values at their winners, zero elsewhere; a new tensor that the caller may write."""
    if saved.index is None:
        return pooled.clone()
    dense = torch.ops.aten.max_pool2d_with_indices_backward(
        pooled.flatten(0, 1),
        saved.centred.flatten(0, 1),
        [2, 2],
        [2, 2],
        [0, 0],
        [1, 1],
        False,
        saved.index,
    )
    return dense.view_as(saved.centred)


def _masked(values: Tensor | None, saved: Saved) -> Tensor | None:
    """Values times the slope of the activation where they stand."""
    if values is None or saved.negative_slope == 1.0:
        return values
    return torch.ops.aten.leaky_relu_backward(values, saved.y, saved.negative_slope, True)
