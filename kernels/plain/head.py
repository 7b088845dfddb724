"""Linear classifier and mean cross-entropy, one task a row."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.plain.layout import total


class Saved(NamedTuple):
    residual: Tensor  # [T, N, ways] (softmax − one-hot) / N
    softmax: Tensor  # [T, N, ways]


def fwd(
    h: Tensor,  # [T, N, D]
    w: Tensor,  # [T, ways, D]
    c: Tensor,  # [T, ways]
    labels: Tensor,  # [T, N]
) -> tuple[Tensor, Tensor, Saved]:  # loss [T], logits [T, N, ways]
    logits = torch.baddbmm(c.unsqueeze(1), h, w.mT)
    log_softmax = logits.log_softmax(2)
    softmax = log_softmax.exp()
    picked = log_softmax.gather(2, labels.unsqueeze(2)).squeeze(2)
    ones = torch.ones_like(picked).unsqueeze(2)
    residual = softmax.scatter_add(2, labels.unsqueeze(2), -ones) / h.shape[1]
    return -picked.mean(1), logits, Saved(residual, softmax)


def bwd(
    saved: Saved,
    h: Tensor,  # [T, N, D]
    w: Tensor,  # [T, ways, D]
    d_loss: Tensor,  # [T]
) -> tuple[Tensor, Tensor, Tensor]:
    d_logits = saved.residual * d_loss[:, None, None]
    return d_logits @ w, d_logits.mT @ h, d_logits.sum(1)


def tan_fwd(saved, h, w, h_dot, w_dot, c_dot) -> tuple[Tensor, Tensor]:
    """Directions of the loss [T] and of the logits [T, N, ways]."""
    logits_dot = total(
        None if h_dot is None else h_dot @ w.mT,
        None if w_dot is None else h @ w_dot.mT,
        None if c_dot is None else c_dot.unsqueeze(1).expand_as(saved.softmax),
    )
    if logits_dot is None:
        logits_dot = torch.zeros_like(saved.softmax)
    return (saved.residual * logits_dot).sum((1, 2)), logits_dot


def tan_bwd(saved, logits_dot, h, w, h_dot, w_dot, d_loss) -> tuple[Tensor, Tensor, Tensor]:
    centred = logits_dot - (saved.softmax * logits_dot).sum(2, keepdim=True)
    scale = d_loss[:, None, None]
    d_logits = saved.residual * scale
    d_logits_dot = saved.softmax * centred * (scale / h.shape[1])
    dh_dot = total(d_logits_dot @ w, None if w_dot is None else d_logits @ w_dot)
    dw_dot = total(d_logits_dot.mT @ h, None if h_dot is None else d_logits.mT @ h_dot)
    return dh_dot, dw_dot, d_logits_dot.sum(1)
