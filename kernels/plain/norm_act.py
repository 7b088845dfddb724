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
from kernels.plain.window import at_winners, bend, channel_sum, pool, scatter, wide

# Values in a block of the sum of squares, so that its product stays in the cache: 4 MiB of float32.
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
    pooled: bool,
    statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, C]; None: the batch's own
) -> tuple[Tensor, Saved]:
    z = channels_last(z)
    count = z.numel() // (z.shape[0] * z.shape[2])
    mean = channel_sum(z) / count
    centred = z - wide(mean)
    var = _sum_of_squares(centred) / count
    spread = var
    if statistics is not None:
        centre, spread = statistics
        centred, count = z - wide(centre), 0
    rstd = (spread + eps).rsqrt()
    winners, index = pool(centred, gain) if pooled else (centred, None)
    x_hat = winners * wide(rstd)
    y = torch.addcmul(wide(bias), x_hat, wide(gain))
    if negative_slope != 1.0:
        F.leaky_relu_(y, negative_slope)
    return y, Saved(centred, mean, var, rstd, x_hat, index, y, negative_slope, count)


def bwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, w]
    spent: bool = False,  # dz may take the memory of dy
) -> tuple[Tensor, Tensor, Tensor]:  # dz, dgain [T, C], dbias [T, C]
    delta = bend(dy, saved.y, saved.negative_slope)
    s1, s2 = channel_sum(delta), channel_sum(delta * saved.x_hat)
    scale = gain * saved.rstd
    dz = scatter(delta * wide(scale), saved.index, saved.centred.shape)
    if saved.count:
        per_value = scale / -saved.count
        dz.addcmul_(saved.centred, wide(per_value * saved.rstd * s2))
        dz.add_(wide(per_value * s1))
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
        x_hat_dot = at_winners(z_dot, saved.index)
        if saved.count:
            mean_dot = channel_sum(z_dot) / saved.count
            q = channel_sum(saved.centred * z_dot) * saved.rstd / saved.count
            x_hat_dot = x_hat_dot - wide(mean_dot) - saved.x_hat * wide(q)
        x_hat_dot = x_hat_dot * wide(saved.rstd)
    y_dot = total(
        None if x_hat_dot is None else x_hat_dot * wide(gain),
        None if gain_dot is None else saved.x_hat * wide(gain_dot),
        None if bias_dot is None else wide(bias_dot).expand_as(saved.x_hat),
    )
    if y_dot is not None:
        y_dot = bend(y_dot, saved.y, saved.negative_slope)
    return y_dot, Tangent(z_dot, mean_dot, q, x_hat_dot)


def tan_bwd(
    saved: Saved,
    tangent: Tangent,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, w]
    dy_dot: Tensor | None,  # [T, N, C, h, w]
    gain_dot: Tensor | None = None,  # [T, C]
) -> tuple[Tensor, Tensor, Tensor]:  # directions of dz, dgain, dbias
    delta = bend(dy, saved.y, saved.negative_slope)
    delta_dot = (
        torch.zeros_like(delta) if dy_dot is None else bend(dy_dot, saved.y, saved.negative_slope)
    )
    s1_dot, s2_dot = channel_sum(delta_dot), channel_sum(delta_dot * saved.x_hat)
    if tangent.x_hat_dot is not None:
        s2_dot = s2_dot + channel_sum(delta * tangent.x_hat_dot)
    r, n, scale = saved.rstd, saved.count, gain * saved.rstd
    scale_dot = torch.zeros_like(scale) if gain_dot is None else gain_dot * r
    if tangent.q is not None:
        scale_dot = scale_dot - scale * r * tangent.q
    pooled = torch.addcmul(delta * wide(scale_dot), delta_dot, wide(scale))
    dz_dot = scatter(pooled, saved.index, saved.centred.shape)
    if n:
        # Coefficients of x̂, of ż and of 1.
        s1, s2 = channel_sum(delta), channel_sum(delta * saved.x_hat)
        on_x_hat = -(scale_dot * s2 + scale * s2_dot) / n
        constant = -(scale_dot * s1 + scale * s1_dot) / n
        if tangent.z_dot is not None:
            on_z_dot = -scale * r * s2 / n
            dz_dot.addcmul_(tangent.z_dot, wide(on_z_dot))
            on_x_hat = on_x_hat - on_z_dot * tangent.q
            constant = constant - on_z_dot * tangent.mean_dot
        dz_dot.addcmul_(saved.centred, wide(on_x_hat * r))
        dz_dot.add_(wide(constant))
    return dz_dot, s2_dot, s1_dot


def _sum_of_squares(x: Tensor) -> Tensor:
    """[T, N, C, H, W] → [T, C]"""
    images = max(1, _SQUARES_BLOCK // x[:, 0].numel())
    blocks = [channel_sum(block * block) for block in x.split(images, 1)]
    return blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)
