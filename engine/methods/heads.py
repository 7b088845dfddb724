"""Classifiers in closed form over features, with their derivatives. Logits are a class's; the loss
is the mean cross-entropy over a task's targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.config import Config

_LEAST = 1e-8  # length of a feature vector that is divided by, as torch's cosine_similarity has it


class Prototypes(NamedTuple):
    """Minus the squared distance of a feature to the mean c_w of a class's support features, less
    what all classes have in common: 2 f·c_w − ‖c_w‖² (Snell et al. 2017, eq. 1, 2).
    """

    def fwd(
        self,
        h_s: Tensor,  # [T, n, D]
        labels: Tensor,  # [T, n]
        h_q: Tensor,  # [T, m, D]
        ways: int,
    ) -> tuple[Tensor, tuple]:  # logits [T, m, W], what `bwd` takes
        shares = shares_of(labels, ways, h_s)
        w, b, c = linear(h_s, shares)
        return torch.baddbmm(b.unsqueeze(1), h_q, w.mT), (h_q, shares, c)

    def bwd(self, saved: tuple, d_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of the support and the target features."""
        h_q, shares, c = saved
        return linear_bwd(d_logits.mT @ h_q, d_logits.sum(1), shares, c), 2 * d_logits @ c


def shares_of(labels: Tensor, ways: int, like: Tensor) -> Tensor:  # [T, n, W]
    """Of each image in the mean of its class."""
    found = one_hot(labels, ways, like)
    return found / found.sum(1, keepdim=True).clamp(min=1)


def one_hot(labels: Tensor, ways: int, like: Tensor) -> Tensor:  # [T, n, W]
    return (labels.unsqueeze(2) == torch.arange(ways, device=labels.device)).to(like.dtype)


def linear(h: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes as a linear classifier: weights 2c [T, W, D], biases −‖c‖² [T, W], and c."""
    c = shares.mT @ h
    return 2 * c, -c.square().sum(2), c


def linear_bwd(d_w: Tensor, d_b: Tensor, shares: Tensor, c: Tensor) -> Tensor:  # [T, n, D]
    """From the gradient of that classifier to the support features'."""
    return shares @ (2 * d_w - 2 * d_b.unsqueeze(2) * c)


class Matching(NamedTuple):
    """Attention over the support images, by cosines: p(w|x) is the share of class w in
    softmax_i τ cos(f(x), f(x_i)), its logit log Σ_{i in w} exp τ cos (Vinyals et al. 2016, eq. 1).

    Or, `summed`, the logit is Σ_{i in w} τ cos, as in the code of Ravi & Larochelle 2017.
    """

    temperature: float = 1.0  # τ
    summed: bool = False

    @classmethod
    def of(cls, cfg: Config) -> Matching:
        return cls(cfg.temperature, cfg.class_scores == "sum")

    def fwd(self, h_s: Tensor, labels: Tensor, h_q: Tensor, ways: int) -> tuple[Tensor, tuple]:
        (u_s, len_s), (u_q, len_q) = _unit(h_s), _unit(h_q)
        scores = self.temperature * u_q @ u_s.mT  # [T, m, n]
        own = one_hot(labels, ways, h_s)  # [T, n, W]
        if self.summed:
            return scores @ own, (u_s, len_s, u_q, len_q, own.mT.unsqueeze(1))
        other = own.mT.unsqueeze(1) == 0  # [T, 1, W, n]
        of_class = scores.unsqueeze(2).masked_fill(other, -torch.inf)  # [T, m, W, n]
        logits = of_class.logsumexp(3)
        within = (of_class - logits.unsqueeze(3)).exp()  # the softmax within each class
        return logits, (u_s, len_s, u_q, len_q, within)

    def bwd(self, saved: tuple, d_logits: Tensor) -> tuple[Tensor, Tensor]:
        u_s, len_s, u_q, len_q, within = saved
        d_scores = self.temperature * (d_logits.unsqueeze(3) * within).sum(2)
        d_s = _unit_bwd(d_scores.mT @ u_q, u_s, len_s)
        return d_s, _unit_bwd(d_scores @ u_s, u_q, len_q)


def cosines(h_q: Tensor, h_s: Tensor) -> Tensor:  # [T, m, n]
    return _unit(h_q)[0] @ _unit(h_s)[0].mT


def _unit(h: Tensor) -> tuple[Tensor, Tensor]:
    """Of length 1, and the length [T, N, 1]."""
    length = torch.linalg.vector_norm(h, dim=2, keepdim=True).clamp(min=_LEAST)
    return h / length, length


def _unit_bwd(du: Tensor, u: Tensor, length: Tensor) -> Tensor:
    return (du - u * (u * du).sum(2, keepdim=True)) / length


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over a task's targets [T], and its gradient in the logits."""
    log_p = logits.log_softmax(2)
    picked = log_p.gather(2, labels.unsqueeze(2)).squeeze(2)
    d_logits = (log_p.exp() - one_hot(labels, logits.shape[2], logits)) / labels.shape[1]
    return -picked.mean(1), d_logits


def pair_scores(h_s: Tensor, h_q: Tensor, w: Tensor, b: Tensor) -> Tensor:  # [T, m, n]
    """Log-odds that a target and a support image are of one class, Σ_j w_j |h_q − h_s|_j + b
    (Koch et al. 2015, §3.1), by w [T, D] and b [T, 1].
    """
    apart = (h_q.unsqueeze(2) - h_s.unsqueeze(1)).abs()
    return (apart @ w[:, None, :, None]).squeeze(3) + b.unsqueeze(2)


def pair_loss(z: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean binary cross-entropy [T] of all pairs, of which those of one class count as much as
    all others, and its gradient in their log-odds.
    """
    same = (targets.unsqueeze(2) == labels.unsqueeze(1)).to(z)
    share = sum(kind / (2 * kind.sum((1, 2), keepdim=True)) for kind in (same, 1 - same))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, same, reduction="none")
    return (share * loss).sum((1, 2)), share * (z.sigmoid() - same)


def pair_bwd(
    h_s: Tensor, h_q: Tensor, w: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `pair_scores` in the support and the target features, w and b."""
    apart = h_q.unsqueeze(2) - h_s.unsqueeze(1)  # [T, m, n, D]
    dw = (dz.unsqueeze(3) * apart.abs()).sum((1, 2))
    d_apart = dz.unsqueeze(3) * w[:, None, None] * apart.sign()
    return -d_apart.sum(1), d_apart.sum(2), dw, dz.sum((1, 2)).unsqueeze(1)


def class_means(z: Tensor, labels: Tensor, ways: int) -> Tensor:  # [T, m, W]
    """Of scores of support images [T, m, n] those of their classes."""
    return z @ shares_of(labels, ways, z)
