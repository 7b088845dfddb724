"""Every public op as ordinary differentiable torch: the definition of correct.

For tests, gates and the oracle only. No autograd Functions, no in-place writes, no device branches;
signatures are those of the public ops.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def task_conv2d(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 1) -> Tensor:
    return torch.stack(
        [F.conv2d(a, b, None, stride, padding) for a, b in zip(x, weight, strict=True)]
    )


def per_step_batch_norm(
    z: Tensor,
    gain: Tensor,
    bias: Tensor,
    step: int | Tensor = 0,
    *,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
    pool: bool = False,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    def wide(v: Tensor) -> Tensor:
        return v.expand(z.shape[0], -1)[:, None, :, None, None]

    mean, var = z.mean((1, 3, 4)), z.var((1, 3, 4), correction=0)
    centre, spread = (s.detach() for s in statistics) if statistics else (mean, var)
    x_hat = (z - wide(centre)) * (wide(spread) + eps).rsqrt()
    y = F.leaky_relu(x_hat * wide(gain[step]) + wide(bias[step]), negative_slope)
    if pool:
        y = F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, z.shape[:2])
    return y, mean.detach(), var.detach()


def linear_cross_entropy(
    features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    logits = features @ weight.mT + bias.unsqueeze(1)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return loss.view(labels.shape).mean(1), logits.detach()


def lslr_update(theta: Tensor, grad: Tensor, rates: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return theta - rates.repeat_interleave(torch.tensor(sizes, device=rates.device)) * grad


def elementwise_update(theta: Tensor, grad: Tensor, rates: Tensor) -> Tensor:
    return theta - rates * grad


def lstm(
    own: Tensor,  # [2046]
    losses: Sequence[Tensor],  # K of []
    gradients: Sequence[Tensor],  # K of [N]
    start: Tensor,  # [N]
) -> Tensor:  # [N]
    """What the meta-learner LSTM makes of a task's coordinates in K steps."""
    weight, bias, of_f, of_i = own.split([80 * 24, 80, 23, 23])
    weight, both = weight.view(80, 24), torch.stack([of_f, of_i])
    c, gates = start, start.new_zeros(len(start), 2)
    h = s = start.new_zeros(len(start), 20)
    for loss, gradient in zip(losses, gradients, strict=True):
        seen = torch.cat([_rho(loss).expand(len(c), -1), _rho(gradient), h], 1)
        i, f, o, g = (seen @ weight.mT + bias).split(20, 1)
        s = i.sigmoid() * g.tanh() + f.sigmoid() * s
        h = o.sigmoid() * s.tanh()
        of_c = c.unsqueeze(1) * both[:, 20]
        gates = h @ both[:, :20].mT + of_c + gates * both[:, 21] + both[:, 22]
        keep, take = gates.sigmoid().unbind(1)
        c = keep * c - take * gradient
    return c


def _rho(u: Tensor) -> Tensor:
    small = u.abs() < math.exp(-10)
    log = torch.where(small, -1.0, u.abs().log() / 10)
    return torch.stack([log, torch.where(small, math.exp(10) * u, u.sign())], -1)
