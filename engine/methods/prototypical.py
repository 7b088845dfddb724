"""MAML whose classifier begins as the prototypes of the support set: `engine.unroll` from another
start, and the way back to the features that it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import unroll
from engine.episodes import Episode, Values
from engine.methods import heads
from engine.methods.rates import HEAD
from engine.models.backbone import Backbone
from engine.models.interface import Embedding, Moments, Params


def resized(theta: Tensor, old: Backbone, new: Backbone) -> Tensor:  # [P] → [P']
    """With an empty classifier of other ways, where a method makes its own."""
    if old.sizes == new.sizes:  # it has none of its ways
        return theta
    body = sum(old.sizes[:-HEAD])
    return torch.cat([theta[:body], theta.new_zeros(sum(new.sizes[-HEAD:]))])


def start(
    model: Backbone,
    params: Params,
    x: Tensor,  # support set [T, n, C, H, W]
    labels: Tensor,  # [T, n]
    running: Moments | None = None,
    keep: bool = False,
) -> tuple[Params, Embedding, tuple]:
    """With θ [T, P] whose classifier is the prototypes' at the first step's row; what it was made
    of.
    """
    given = running and running.first()
    theta = params.theta.expand(len(x), -1)
    found = model.prepare(x, 1).embed(theta, params.norm[0], given, keep)
    shares = heads.shares_of(labels, model.ways, found.features)
    w, b, c = heads.linear(found.features, shares)
    body = theta[:, : -sum(model.sizes[-HEAD:])]
    return params._replace(theta=torch.cat([body, w.flatten(1), b], 1)), found, (shares, c)


@torch.inference_mode()
def adjoint(
    model: Backbone,
    params: Params,
    episode: Episode,
    loss_weights: Sequence[float | Tensor],  # K
    second_order: bool,
    running: Moments | None = None,
) -> unroll.MetaGradient:
    """As `unroll.adjoint`; the gradient of θ's own classifier, which takes no part, is 0. What the
    sweep leaves on the prototypes goes back through the support features, in both orders.
    """
    support = episode.support_x, episode.support_y
    begun, found, (shares, c) = start(model, params, *support, running, True)
    inner = unroll.adjoint(model, begun, episode, loss_weights, second_order, running)
    weight, bias = model.sizes[-HEAD:]
    carry = inner.gradient.theta
    d_w, d_b = carry[:, -weight - bias : -bias].view_as(c), carry[:, -bias:]
    gradient, norm = found.kept.pullback(heads.linear_bwd(d_w, d_b, shares, c))
    gradient[:, : -weight - bias] += carry[:, : -weight - bias]
    inner.gradient.norm[:, 0] += norm
    return inner._replace(gradient=inner.gradient._replace(theta=gradient))


@torch.inference_mode()
def adapt_and_predict(
    model: Backbone,
    params: Params,
    running: Moments,
    episode: Episode,
    *,
    norm_statistics: str = "batch",
    **options,
) -> Values:
    """As `unroll.adapt_and_predict`."""
    given = running if norm_statistics == "running" else None
    begun, _, _ = start(model, params, episode.support_x, episode.support_y, given)
    return unroll.adapt_and_predict(
        model, begun, running, episode, norm_statistics=norm_statistics, **options
    )
