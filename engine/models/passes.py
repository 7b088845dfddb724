"""Passes of a backbone over a set of images a task: forward, to the features or
to the loss, backward, and the tangent of both.

`Composed` composes them of the ops of `kernels`; `Fused` leaves each to a backend that runs it in
one call. `prepare` chooses.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import kernels
from engine.models.interface import Embedding, Inputs, Moments, Pass

if TYPE_CHECKING:
    from engine.models.backbone import Backbone


def prepare(
    model: Backbone,
    x: Tensor,  # [T, N, C, H, W]
    passes: int,
) -> Inputs:
    """Images that `passes` passes will read. When ops are composed, the moments of the first
    stage's patches pay from two passes on, where it pools.
    """
    backend, precision = backend_of(model, x)
    if backend:
        return Fused(backend, backend.prepare(model.net._replace(precision=precision), x))
    worthwhile = model.pool and passes > 1
    return Composed(model, x, kernels.backend("stem", x).patches(x) if worthwhile else None)


def backend_of(model: Backbone, x: Tensor) -> tuple[ModuleType | None, str]:
    """What runs whole passes over such images, None where ops are composed; in which precision."""
    precision = model.precision
    if precision == "auto":
        precision = kernels.fastest_precision(x)
    return kernels.passes(x, precision), precision


class Fused(NamedTuple):
    """Passes that a backend runs in one call each."""

    backend: object
    images: tuple

    def predict(self, theta, row, statistics=None):
        result = self.backend.run(self.images, theta, row, None, statistics)
        return result.logits, Moments(result.mean, result.var)

    def embed(self, theta, row, statistics=None, keep=False):
        h, mean, var, kept = self.backend.embed(self.images, theta, row, statistics, keep)
        kept = FusedFeatures(self.backend, kept) if keep else None
        return Embedding(h, Moments(mean, var), kept)

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        *results, mean, var, kept = self.backend.run(
            self.images, theta, row, labels, statistics, keep
        )
        return Pass(*results, Moments(mean, var), FusedKept(self.backend, kept) if keep else None)


class FusedKept(NamedTuple):
    backend: object
    kept: tuple

    def tangent(self, direction):
        return self.backend.tangent(self.kept, direction)


class FusedFeatures(NamedTuple):
    backend: object
    kept: tuple

    def pullback(self, d_features):
        return self.backend.pullback(self.kept, d_features)


class _Stage(NamedTuple):
    x: Tensor  # [T, N, C, H, W] input
    saved: tuple  # of norm_act, or of stem
    dy: Tensor | None = None  # [T, N, F, h, w] gradient of the output
    dz: Tensor | None = None  # [T, N, F, H', W'] gradient of the convolution; stem has none
    by_patches: bool = False


class Composed(NamedTuple):
    """Passes composed of single ops, of whichever backends run them."""

    model: Backbone
    x: Tensor  # [T, N, C, H, W]
    patches: tuple | None  # moments of the first stage's patches

    def predict(self, theta, row, statistics=None):
        weights = self.model.weights(theta)
        h, _, moments = self._forward(weights, row, statistics)
        return torch.baddbmm(weights[-1].unsqueeze(1), h, weights[-2].mT), moments

    def embed(self, theta, row, statistics=None, keep=False):
        weights = self.model.weights(theta)
        h, stages, moments = self._forward(weights, row, statistics)
        kept = ComposedFeatures(self.model, weights, row, stages) if keep else None
        return Embedding(h, moments, kept)

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        model = self.model
        (head,) = _ops(self.x, "head")
        weights = model.weights(theta)
        h, stages, moments = self._forward(weights, row, statistics)
        loss, logits, head_saved = head.fwd(h, *weights[-2:], labels)
        dh, dw, dc = head.bwd(head_saved, h, weights[-2], torch.ones_like(loss))
        gradients, norm_gradients = _backward(model, weights, row, stages, dh, keep)
        kept = ComposedKept(model, weights, row, stages, h, head_saved) if keep else None
        gradient = model.flat([*gradients, dw, dc])
        return Pass(loss, logits, gradient, torch.cat(norm_gradients, 1), moments, kept)

    def _forward(self, weights, row, statistics) -> tuple[Tensor, list[_Stage], Moments]:
        model, x = self.model, self.x
        conv, norm_act, stem = _ops(x, "conv", "norm_act", "stem")
        given, stages = model.given(statistics, len(x)), []
        options = model.norm_eps, model.negative_slope
        for s, (gain, bias) in enumerate(_affine(model, row, len(x))):
            by_patches = s == 0 and self.patches is not None
            if by_patches:
                y, saved = stem.fwd(x, self.patches, weights[0], gain, bias, *options, given[0])
            else:
                z = conv.fwd(x, weights[s], model.stride, 1)
                y, saved = norm_act.fwd(z, gain, bias, *options, model.pool, given[s])
            stages.append(_Stage(x, saved, by_patches=by_patches))
            x = y
        mean, var = (
            torch.cat([getattr(stage.saved, name) for stage in stages], 1)
            for name in Moments._fields
        )
        return model.features(x), stages, Moments(mean, var)


def _backward(
    model: Backbone,
    weights: list[Tensor],
    row: Tensor,
    stages: list[_Stage],  # gets the gradients, or without `keep` lets go of each
    dh: Tensor,  # [T, N, D]
    keep: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the filters, and of gains and biases."""
    conv, norm_act, stem = _ops(dh, "conv", "norm_act", "stem")
    gradients, norm_gradients = [], []
    dy, affine = _features_bwd(model, dh), _affine(model, row, len(dh))
    for s in reversed(range(model.stages)):
        stage = stages[s]._replace(dy=dy)
        if stage.by_patches:
            dw, d_gain, d_bias = stem.bwd(stage.saved, affine[0, 0], dy)
        else:
            dz, d_gain, d_bias = norm_act.bwd(stage.saved, affine[s, 0], dy)
            dy, dw = conv.bwd(dz, stage.x, weights[s], model.stride, 1, need=(s > 0, True))
            stage = stage._replace(dz=dz)
        stages[s] = stage if keep else None
        gradients.insert(0, dw)
        norm_gradients[:0] = d_gain, d_bias
    return gradients, norm_gradients


class ComposedFeatures(NamedTuple):
    model: Backbone
    weights: list[Tensor]
    row: Tensor
    stages: list[_Stage]

    def pullback(self, d_features):
        model, weights, row, stages = self
        gradients, norm_gradients = _backward(model, weights, row, [*stages], d_features, False)
        head = [torch.zeros_like(weight) for weight in weights[-2:]]
        return model.flat([*gradients, *head]), torch.cat(norm_gradients, 1)


class ComposedKept(NamedTuple):
    model: Backbone
    weights: list[Tensor]
    row: Tensor
    stages: list[_Stage]
    h: Tensor  # [T, N, D]
    head: tuple  # what the head saved

    def tangent(self, direction):
        model, weights, row, stages, h, head_saved = self
        weights_dot = model.weights(direction)
        conv, norm_act, stem, head = _ops(h, "conv", "norm_act", "stem", "head")
        affine, x_dot, forward = _affine(model, row, len(h)), None, []
        for s, stage in enumerate(stages):
            if stage.by_patches:
                y_dot, tangent = stem.tan_fwd(stage.saved, affine[0, 0], weights_dot[0])
            else:
                z_dot = conv.tan_fwd(stage.x, weights[s], x_dot, weights_dot[s], model.stride, 1)
                y_dot, tangent = norm_act.tan_fwd(stage.saved, affine[s, 0], z_dot)
            forward.append((x_dot, tangent))
            x_dot = y_dot
        h_dot, (w, w_dot) = model.features(x_dot), (weights[-2], weights_dot[-2])
        _, logits_dot = head.tan_fwd(head_saved, h, w, h_dot, w_dot, weights_dot[-1])
        dh_dot, dw_dot, dc_dot = head.tan_bwd(
            head_saved, logits_dot, h, w, h_dot, w_dot, torch.ones_like(h[:, 0, 0])
        )
        gradients, norm_gradients = [dw_dot, dc_dot], []
        dy_dot = _features_bwd(model, dh_dot)
        for s in reversed(range(model.stages)):
            stage, (x_dot, tangent) = stages[s], forward[s]
            arguments = stage.saved, tangent, affine[s, 0], stage.dy, dy_dot
            if stage.by_patches:
                dw_dot, d_gain, d_bias = stem.tan_bwd(*arguments)
            else:
                dz_dot, d_gain, d_bias = norm_act.tan_bwd(*arguments)
                operands = stage.dz, dz_dot, stage.x, weights[s], x_dot, weights_dot[s]
                dy_dot, dw_dot = conv.tan_bwd(*operands, model.stride, 1, need=(s > 0, True))
            gradients.insert(0, dw_dot)
            norm_gradients[:0] = d_gain, d_bias
        return model.flat(gradients), torch.cat(norm_gradients, 1)


def _affine(model: Backbone, row: Tensor, tasks: int) -> Tensor:
    """[G] → gain and bias of each stage [stages, 2, T, F]"""
    return row.view(model.stages, 2, 1, model.filters).expand(-1, -1, tasks, -1)


def _features_bwd(model: Backbone, dh: Tensor) -> Tensor:
    side = model.image_sizes[-1]
    shape = (*dh.shape[:2], model.filters, side, side)
    return dh.view(shape) if model.pool else (dh / side**2)[..., None, None].expand(shape)


def _ops(like: Tensor, *names: str) -> list:
    return [kernels.backend(name, like) for name in names]
