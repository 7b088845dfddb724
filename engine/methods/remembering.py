"""Methods that answer by what they remember of a support set, and by nothing else of it.

In training both sets of a task are one batch for batch norm. In evaluation by the batch's
statistics each set has its own, or with `inductive` the targets have the support set's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.by_step import Record
from engine.episodes import Episode
from engine.methods import heads
from engine.methods.inner import ended
from engine.methods.rates import HEAD
from engine.models.backbone import Backbone
from engine.models.interface import Inputs, Model, Moments, Params
from engine.models.whole import Whole
from engine.unroll import MetaGradient


@dataclass(frozen=True)
class _Predicting:
    """`engine.methods.base.Remembering` but for what a method does itself."""

    ways: int  # classes of a task in evaluation

    @torch.inference_mode()
    def adapt_and_predict(
        self,
        model: Model,
        params: Params,  # with single rows
        running: Moments,  # [1, S]
        episode: Episode,
        *,
        steps: int,
        norm_statistics: str = "batch",
        protocol: str = "transductive",
        every: bool = False,
    ) -> Tensor:  # logits [T, N, W], with `every` [1, T, N, W]
        given = running.first() if norm_statistics == "running" else None
        remembered, moments = self.learn(model, params, episode.support_x, episode.support_y, given)
        if given is None and protocol == "inductive":
            given = moments
        theta = params.theta.expand(len(remembered), -1)
        images = model.prepare(episode.target_x, 1)
        logits = self.answer(model, images, theta, remembered, self.ways, params.norm[0], given)
        return logits.unsqueeze(0) if every else logits


@dataclass(frozen=True)
class Pairs(_Predicting):
    """Siamese networks on a backbone of a single output, whose classifier is the pairs'."""

    train_ways: int  # classes of a training task

    @torch.inference_mode()
    def adjoint(
        self,
        model: Backbone,
        params: Params,  # with single rows; its rates take no part
        episode: Episode,
        loss_weights: Sequence[float | Tensor],  # 1
        second_order: bool,
        running: Moments | None = None,  # [1, S]
    ) -> MetaGradient:
        x = torch.cat([episode.support_x, episode.target_x], 1)
        theta = params.theta.expand(len(x), -1)
        found = model.prepare(x, 1).embed(theta, params.norm[0], running and running.first(), True)
        n = episode.support_y.shape[1]
        h_s, h_q = found.features[:, :n], found.features[:, n:]
        w, b = _head(model, theta)
        z = heads.pair_scores(h_s, h_q, w, b)
        loss, dz = heads.pair_loss(z, episode.support_y, episode.target_y)
        *d_features, dw, db = heads.pair_bwd(h_s, h_q, w, dz)
        gradient, norm = found.kept.pullback(torch.cat(d_features, 1))
        gradient[:, -sum(model.sizes[-HEAD:]) :] = torch.cat([dw, db], 1)
        logits, record = heads.class_means(z, episode.support_y, self.train_ways), Record(model)
        record.add(0, found.moments, x)
        return ended(params, loss_weights, loss, logits, gradient, norm, record)

    def remembered_sizes(self, model: Backbone) -> tuple[int, int]:
        return 0, model.sizes[-HEAD] + 1

    def learn(
        self,
        model: Backbone,
        params: Params,
        x: Tensor,  # [T, n, C, H, W]
        labels: Tensor,  # [T, n]
        given: Moments | None = None,
    ) -> tuple[Tensor, Moments]:
        """A row an image: its features and its class."""
        theta = params.theta.expand(len(x), -1)
        h, moments, _ = model.prepare(x, 1).embed(theta, params.norm[0], given)
        return torch.cat([h, labels.unsqueeze(2).to(h)], 2).flatten(1), moments

    def answer(
        self,
        model: Backbone,
        images: Inputs,
        theta: Tensor,  # [T, P]
        remembered: Tensor,  # [T, n · (D + 1)]
        ways: int,
        row: Tensor,
        given: Moments | None = None,
    ) -> Tensor:
        h_q = images.embed(theta, row, given).features
        remembered = remembered.unflatten(1, (-1, h_q.shape[2] + 1))
        z = heads.pair_scores(remembered[..., :-1], h_q, *_head(model, theta))
        return heads.class_means(z, remembered[..., -1].long(), ways)


def _head(model: Backbone, theta: Tensor) -> tuple[Tensor, Tensor]:  # [T, D], [T, 1]
    *_, weight, bias = model.weights(theta)
    return weight.squeeze(1), bias


class Networks(_Predicting):
    """A network of the method's own, which autograd differentiates, task by task."""

    @torch.inference_mode()
    def adjoint(
        self,
        model: Whole,
        params: Params,  # all that is learned is θ
        episode: Episode,
        loss_weights: Sequence[float | Tensor],  # 1
        second_order: bool,
        running: Moments | None = None,  # [1, S]
    ) -> MetaGradient:
        given = running and running.first()
        tasks = [
            model.differentiated(params.theta, given, second_order=second_order, **fields)
            for fields in _each(model, **vars(episode))
        ]
        loss, logits, gradient, mean, var = (torch.stack(of) for of in zip(*tasks, strict=True))
        record = Record(model)
        record.add(0, Moments(mean, var), episode.target_x)
        norm = params.norm.new_zeros(len(loss), params.norm.shape[1])
        return ended(params, loss_weights, loss, logits, gradient, norm, record)

    def remembered_sizes(self, model: Whole) -> tuple[int, int]:
        return model.module.remembered_sizes

    def learn(
        self,
        model: Whole,
        params: Params,
        x: Tensor,
        labels: Tensor,
        given: Moments | None = None,
    ) -> tuple[Tensor, Moments]:
        theta = params.theta.expand(len(x), -1)
        return self._over(model, theta, given, None, support_x=x, support_y=labels)

    def answer(
        self,
        model: Whole,
        images: Inputs,
        theta: Tensor,
        remembered: Tensor,
        ways: int,
        row: Tensor,
        given: Moments | None = None,
    ) -> Tensor:
        return self._over(model, theta, given, ways, remembered=remembered, target_x=images.x)[0]

    @staticmethod
    def _over(
        model: Whole, theta: Tensor, given: Moments | None, ways: int | None, **inputs: Tensor
    ) -> tuple[Tensor, Moments]:
        """Of each task by itself."""
        tasks = len(theta)
        each = [None] * tasks
        if given is not None:
            each = [Moments(*m) for m in zip(*(m.expand(tasks, -1) for m in given), strict=True)]
        of_tasks = zip(theta, each, _each(model, **inputs), strict=True)
        found = [model.run(t, g, ways=ways, **fields) for t, g, fields in of_tasks]
        result, mean, var = (torch.stack(of) for of in zip(*found, strict=True))
        return result, Moments(mean, var)


def _each(model: Whole, **fields: Tensor) -> list[dict[str, Tensor]]:
    """Of every task its own, at an address as new tensors have."""
    tasks = zip(*fields.values(), strict=True)
    return [model.prepare(dict(zip(fields, task, strict=True)), 1).x for task in tasks]
