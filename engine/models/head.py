"""A backbone's classifier alone, over features that the inner loop leaves as they are.

Its parameters beside θ, a row of `Params.norm`, stand for the features: they are what the outer
loop has the gradient of, those of a task each, support set first. So whatever unrolls a network
unrolls this one, and `gradient.norm` is the gradient of all features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine.episodes import Episode, Values
from engine.methods.rates import HEAD
from engine.models.backbone import Backbone
from engine.models.interface import Embedding, Moments, Params, Pass

SETS = ("support", "target")


class Head:
    """A `Model` of softmax regression. Its inputs are features by the name of their set."""

    def __init__(
        self,
        backbone: Backbone,
        images: tuple[Tensor, Tensor],  # support and target [T, N, C, H, W]
        found: tuple[Embedding, Embedding],  # of them
    ):
        self.sizes = backbone.sizes[-HEAD:]
        self.widths = tuple(e.features[0].numel() for e in found)
        self._backbone, self._ways = backbone, backbone.ways
        self._images, self._found = (dict(zip(SETS, of, strict=True)) for of in (images, found))

    def params(self, params: Params) -> Params:
        """The classifier's of a backbone's."""
        tensors, numbers = len(self._backbone.sizes), sum(self.sizes)
        width = HEAD if params.rates.shape[1] == tensors else numbers
        row = params.norm.new_zeros(1, sum(self.widths))
        return Params(params.theta[-numbers:], row, params.rates[:, -width:])

    def episode(self, episode: Episode) -> Episode:
        support, target = ({name: self._found[name].features} for name in SETS)
        return Episode(support, episode.support_y, target, episode.target_y)

    def prepare(self, x: Values, passes: int) -> _Features:
        ((name, h),) = x.items()
        return _Features(self, h, SETS.index(name), self._found[name].moments)

    def bessel(self, x: Values, like: Tensor) -> Tensor:
        (name,) = x
        return self._backbone.bessel(self._images[name], like)

    def weights(self, theta: Tensor) -> tuple[Tensor, Tensor]:  # [T, ways, D], [T, ways]
        weight, bias = theta.split(self.sizes, 1)
        return weight.unflatten(1, (self._ways, -1)), bias


class _Features(NamedTuple):
    model: Head
    h: Tensor  # [T, N, D]
    place: int  # of the set
    moments: Moments

    def predict(self, theta, row, statistics=None):
        w, c = self.model.weights(theta)
        return torch.baddbmm(c.unsqueeze(1), self.h, w.mT), self.moments

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        head, (w, c) = kernels.backend("head", self.h), self.model.weights(theta)
        loss, logits, saved = head.fwd(self.h, w, c, labels)
        dh, dw, dc = head.bwd(saved, self.h, w, torch.ones_like(loss))
        kept = _Kept(self, w, saved) if keep else None
        return Pass(loss, logits, _flat(dw, dc), self.placed(dh), self.moments, kept)

    def placed(self, dh: Tensor) -> Tensor:  # [T, G]
        """The gradient of these features among those of all."""
        sets = [dh.new_zeros(len(dh), width) for width in self.model.widths]
        sets[self.place] = dh.flatten(1)
        return torch.cat(sets, 1)


class _Kept(NamedTuple):
    features: _Features
    w: Tensor
    saved: tuple  # by the head

    def tangent(self, direction):
        (model, h, *_), w, saved = self
        head, (w_dot, c_dot) = kernels.backend("head", h), model.weights(direction)
        _, logits_dot = head.tan_fwd(saved, h, w, None, w_dot, c_dot)
        ones = torch.ones_like(h[:, 0, 0])
        dh, dw, dc = head.tan_bwd(saved, logits_dot, h, w, None, w_dot, ones)
        return _flat(dw, dc), self.features.placed(dh)


def _flat(dw: Tensor, dc: Tensor) -> Tensor:
    return torch.cat([dw.flatten(1), dc], 1)
