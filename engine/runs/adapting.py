"""How a trained network adapts to classes of one's own, and answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.by_step import at_step
from engine.config import Config
from engine.methods import METHODS, beside, prototypical
from engine.methods.context import of_support, of_targets
from engine.methods.heads import Matching
from engine.methods.inner import Inner
from engine.methods.loops import loop
from engine.methods.rates import HEAD
from engine.models.interface import Model, Moments, Params
from engine.runs import adapted
from engine.runs.adapted import Adapted, Member, moved
from engine.unroll import inner_loop

_TOGETHER = 32  # pictures that are answered in one call of the kernels


def adapt(cfg: Config, model: Model, member: Member, x: Tensor, y: Tensor) -> Adapted:
    """By the engine's inner loop, then the statistics as of its inductive protocol."""
    params, running = moved(member, x.device)
    given = running if cfg.norm_statistics == "running" else None
    if METHODS[cfg.method].remembers:
        return _remember(cfg, model, params, given, x, y)
    whole = adapted.network(cfg, cfg.ways)
    outputs = whole.sizes, whole.ways, model.ways
    if cfg.rates == "per-parameter":
        params = params._replace(rates=_with_outputs(params.rates, *outputs))
    if METHODS[cfg.method].any_ways:
        params, own = beside.split(whole, params)
        params = params._replace(theta=prototypical.resized(params.theta, whole, model))
        params, found, _ = prototypical.start(model, params, x, y, given)
        if METHODS[cfg.method].closed_form:
            row, (theta,), moments = params.norm[0], params.theta, given or found.moments
            if METHODS[cfg.method].by_image:
                h = found.features
                h = of_support(own[None], h) if cfg.context else h
                theta = torch.cat([theta[: sum(model.sizes[:-HEAD])], _as_classifier(h, y)])
            return Adapted(theta, row, Moments(*(m[0] for m in moments)))
    own, steps = loop(cfg, model), cfg.eval_steps or cfg.steps
    if isinstance(own, Inner):
        params = own.with_outputs(whole, params, lambda theta: _with_outputs(theta, *outputs))
        (last,) = deque(own.inner_loop(model, params, x, y, steps), 1)
    else:
        if not METHODS[cfg.method].any_ways:
            params = params._replace(theta=_with_outputs(params.theta, *outputs))
        (last,) = deque(inner_loop(model, params, x, y, steps, given), 1)
    row = last.row if last.row.dim() == 1 else last.row[0]
    if given is None:
        _, statistics = model.prepare(x, 1).predict(last.adapted, row)
        statistics = Moments(*(moment[0] for moment in statistics))
    else:
        statistics = Moments(*(at_step(moment, last.index) for moment in given))
    return Adapted(last.adapted[0], row, statistics)


def _remember(
    cfg: Config, model: Model, params: Params, given: Moments | None, x: Tensor, y: Tensor
) -> Adapted:
    """θ as it is, and after it what the method remembers of the support set."""
    given = given and Moments(*(m[0] for m in given))
    (remembered,), moments = loop(cfg, model).learn(model, params, x, y, given)
    statistics = given or Moments(*(m[0] for m in moments))
    return Adapted(torch.cat([params.theta, remembered]), params.norm[0], statistics)


def _as_classifier(h: Tensor, y: Tensor) -> Tensor:
    """The support set of a task in the place of a classifier: features for weights, an output an
    image, and as its bias the place of the image's class.
    """
    return torch.cat([h.flatten(), y.flatten().to(h.dtype)])


def predictor(cfg: Config, model: Model, member: Member, classes: int) -> Callable[..., Tensor]:
    """Logits [T, N, classes] of images ready for passes, by θ, row and statistics."""
    if METHODS[cfg.method].remembers:
        return _recaller(loop(cfg, model).answer, model, classes)
    if not METHODS[cfg.method].by_image:
        return logits

    _, own = beside.split(model, member.params)

    def match(images: Any, theta: Tensor, *rest: Any) -> Tensor:
        *_, support, places = model.weights(theta)
        h = images.embed(theta, *rest).features
        if cfg.context:
            weights = own.to(h.device).expand(len(h), -1)
            h = of_targets(weights, support, h, cfg.context)
        return Matching.of(cfg).fwd(support, places.long(), h, classes)[0]

    return match


def _recaller(answer: Callable, model: Model, classes: int) -> Callable[..., Tensor]:
    size = sum(model.sizes)

    def recall(images: Any, theta: Tensor, *rest: Any) -> Tensor:
        return answer(model, images, theta[:, :size], theta[:, size:], classes, *rest)

    return recall


def _with_outputs(values: Tensor, sizes: tuple[int, ...], ways: int, classes: int) -> Tensor:
    """Of a number for each parameter [..., P] those of the first outputs alone of the classifier,
    whose weight and bias are the last segments."""
    *body, weight, bias = values.split(sizes, -1)
    weight = weight.unflatten(-1, (ways, -1))[..., :classes, :].flatten(-2)
    return torch.cat([*body, weight, bias[..., :classes]], -1)


def logits(images: Any, *adapted_to: Any) -> Tensor:
    return images.predict(*adapted_to)[0]


def one_by_one(model: Model, predict: Callable, a: Adapted, x: Tensor) -> Tensor:
    """Each picture a task of its own: whatever lies beside it in memory, the same sums."""
    parts = []
    for some in x.split(_TOGETHER):
        images = model.prepare(some[:, None], 1)
        parts.append(predict(images, a.theta.expand(len(some), -1), a.row, a.statistics)[:, 0])
    return torch.cat(parts)


def together(model: Model, predict: Callable, a: Adapted, x: Tensor) -> Tensor:
    return predict(model.prepare(x[None], 1), a.theta[None], a.row)[0]
