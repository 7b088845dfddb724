"""Every public op as ordinary differentiable torch: the definition of correct.

For tests, gates and the oracle only. No autograd Functions, no in-place writes, no device branches;
signatures are those of the public ops.
"""

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
    centre, spread = statistics or (mean, var)
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
