"""Methods as everybody would write them: an inner loop in ordinary torch, a task at a time, that
autograd differentiates (`create_graph`). The oracle of `engine.methods`, and independent of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.episodes import Episode
from engine.models.backbone import Backbone
from engine.models.interface import Moments, Params


class Found(NamedTuple):
    loss: Tensor
    theta: Tensor  # gradients
    norm: Tensor
    rates: Tensor
    logits: Tensor  # [T, N, ways]


def features(
    model: Backbone,
    weights: dict[str, Tensor],
    row: Tensor,
    x: Tensor,
    given: Moments | None = None,  # [S]
) -> Tensor:
    """Of one task's images, by the batch's own statistics or those given."""
    moments = [None] * 2 if given is None else [m.split(model.filters) for m in given]
    for s, (gain, bias) in enumerate(row.view(model.stages, 2, model.filters)):
        x = F.conv2d(x, weights[f"conv{s}.weight"], stride=model.stride, padding=1)
        mean, var = (m and m[s] for m in moments)
        x = F.batch_norm(x, mean, var, gain, bias, training=mean is None, eps=model.norm_eps)
        x = F.leaky_relu(x, model.negative_slope)
        x = F.max_pool2d(x, 2) if model.pool else x
    return x.flatten(1) if model.pool else x.mean((2, 3))


def logits_of(model: Backbone, weights: dict[str, Tensor], row: Tensor, x: Tensor) -> Tensor:
    h = features(model, weights, row, x)
    return h @ weights["linear.weight"].T + weights["linear.bias"]


def named(model: Backbone, flat: Tensor) -> dict[str, Tensor]:
    """[P] → its tensors, filters being NHWC."""
    parts, found = flat.split(model.sizes), {}
    for (name, shape), part in zip(model.shapes.items(), parts, strict=True):
        if len(shape) == 4:
            f, c, r, s = shape
            found[name] = part.view(f, r, s, c).permute(0, 3, 1, 2)
        else:
            found[name] = part.view(shape)
    return found


def prototypes(h: Tensor, y: Tensor, ways: int) -> Tensor:
    return torch.stack([h[y == w].mean(0) for w in range(ways)])


def by_distance(h_s: Tensor, y: Tensor, h_q: Tensor, ways: int) -> Tensor:
    """log p(w|x) of prototypical networks."""
    apart = h_q.unsqueeze(1) - prototypes(h_s, y, ways)
    return (-apart.square().sum(2)).log_softmax(1)


def by_attention(h_s: Tensor, y: Tensor, h_q: Tensor, ways: int, tau: float = 1.0) -> Tensor:
    """log p(w|x) of matching networks."""
    cosines = F.cosine_similarity(h_q.unsqueeze(1), h_s.unsqueeze(0), dim=2)
    share = (tau * cosines).softmax(1)
    return torch.stack([share[:, y == w].sum(1) for w in range(ways)], 1).log()


def embedding_gradient(
    model: Backbone,
    params: Params,
    episode: Episode,
    log_p: Callable[..., Tensor],
    ways: int,
    given: Moments | None = None,  # [S]
) -> Found:
    """Of methods without an inner loop, support and target as one batch; summed over tasks."""
    theta, norm = (p.detach().clone().requires_grad_() for p in params[:2])
    total, logits = theta.new_zeros(()), []
    for x, y, target_x, target_y in zip(*vars(episode).values(), strict=True):
        both = torch.cat([x, target_x])
        h = features(model, named(model, theta), norm[0], both, given)
        answers = log_p(h[: len(y)], y, h[len(y) :], ways)
        total = total + F.nll_loss(answers, target_y)
        logits.append(answers.detach())
    found = torch.autograd.grad(total, [theta, norm], materialize_grads=True)
    return Found(total.detach(), *found, torch.zeros_like(params.rates), torch.stack(logits))


def meta_gradient(
    model: Backbone,
    params: Params,
    episode: Episode,
    weights: Sequence[float],  # of the target loss after each step
    *,
    order: int = 2,
    adapt: str = "all",
    from_prototypes: bool = False,  # the head of the first step (ProtoMAML)
) -> Found:
    """Summed over tasks. Rates are [K, L], or [1, P] where they end in one for each number."""
    theta, norm, rates = (p.detach().clone().requires_grad_() for p in params)
    total, logits = theta.new_zeros(()), []
    for x, y, target_x, target_y in zip(*vars(episode).values(), strict=True):
        phi = named(model, theta)
        if from_prototypes:
            own = named(model, theta)  # apart from those that the loop differentiates in
            c = prototypes(features(model, own, norm[0], x), y, model.ways)
            phi |= {"linear.weight": 2 * c, "linear.bias": -c.square().sum(1)}
        for k, weight in enumerate(weights):
            row, alpha = norm[min(k, len(norm) - 1)], rates[min(k, len(rates) - 1)]
            if len(alpha) == len(model.sizes):
                by_name = dict(zip(model.shapes, alpha, strict=True))
            else:
                by_name = named(model, alpha)
            loss = F.cross_entropy(logits_of(model, phi, row, x), y)
            chosen = [
                n for n in phi if adapt == "all" or n.startswith("linear") == (adapt == "head")
            ]
            graph = {"create_graph": order == 2, "retain_graph": True}
            gradients = torch.autograd.grad(loss, [phi[n] for n in chosen], **graph)
            steps = dict(zip(chosen, gradients, strict=True))
            phi = {n: w - by_name[n] * steps[n] if n in steps else w for n, w in phi.items()}
            if weight:
                answers = logits_of(model, phi, row, target_x)
                total = total + weight * F.cross_entropy(answers, target_y)
        logits.append(answers.detach())
    found = torch.autograd.grad(total, [theta, norm, rates], materialize_grads=True)
    return Found(total.detach(), *found, torch.stack(logits))
