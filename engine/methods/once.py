"""The inner loop where it leaves the body (ANIL): features of both sets are computed once, the loop
runs on the classifier, and one backward pass of all features ends it.

Each step's gradient depends on the support features, also through its second derivatives; what the
reverse sweep gathers of that is their gradient, and the target loss gives that of the target's. To
rounding it is what `engine.unroll` gives with rates of 0 for the body, for 3 passes of each image
in place of 9 for each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine import unroll
from engine.episodes import Episode, Values
from engine.models.backbone import Backbone
from engine.models.head import Head
from engine.models.interface import Moments, Params


@torch.inference_mode()
def adjoint(
    model: Backbone,
    params: Params,  # with a single row of norm
    episode: Episode,
    loss_weights: Sequence[float | Tensor],  # K
    second_order: bool,
    running: Moments | None = None,  # [1, S]
) -> unroll.MetaGradient:
    """As `unroll.adjoint`; the gradient of the body's rates is 0."""
    theta, (row,) = params.theta.expand(episode.tasks, -1), params.norm
    given = running and running.first()
    images = episode.support_x, episode.target_x
    # Without second derivatives nothing depends on the support features.
    found = tuple(
        model.prepare(x, 1).embed(theta, row, given, keep)
        for x, keep in zip(images, (second_order, True), strict=True)
    )
    head = Head(model, images, found)
    inner = unroll.adjoint(
        head, head.params(params), head.episode(episode), loss_weights, second_order
    )
    parts = inner.gradient.norm[:, 0].split(head.widths, 1)
    pulled = [
        embedding.kept.pullback(part.view_as(embedding.features))
        for embedding, part in zip(found, parts, strict=True)
        if embedding.kept is not None
    ]
    gradient, norm = (sum(of_sets[1:], of_sets[0]) for of_sets in zip(*pulled, strict=True))
    gradient[:, -sum(head.sizes) :] += inner.gradient.theta
    rates = params.rates.new_zeros(episode.tasks, *params.rates.shape)
    rates[..., -inner.gradient.rates.shape[-1] :] = inner.gradient.rates
    return inner._replace(gradient=Params(gradient, norm.unsqueeze(1), rates))


@torch.inference_mode()
def adapt_and_predict(
    model: Backbone,
    params: Params,  # with a single row of norm
    running: Moments,  # [1, S]
    episode: Episode,
    *,
    steps: int,
    norm_statistics: str = "batch",
    protocol: str = "transductive",
    every: bool = False,
) -> Values:
    """As `unroll.adapt_and_predict`."""
    theta, (row,) = params.theta.expand(episode.tasks, -1), params.norm
    given = running.first() if norm_statistics == "running" else None
    images = episode.support_x, episode.target_x
    support = model.prepare(images[0], 1).embed(theta, row, given)
    if given is None and protocol == "inductive":
        given = support.moments
    target = model.prepare(images[1], 1).embed(theta, row, given)
    head = Head(model, images, (support, target))
    return unroll.adapt_and_predict(
        head, head.params(params), running, head.episode(episode), steps=steps, every=every
    )
