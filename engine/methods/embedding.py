"""Methods without an inner loop: features of both sets, a classifier in closed form, one backward
pass. They have what `engine.unroll` has of a method with one.

Support and target images of a task are one batch for batch norm in training, and in evaluation by
the batch's statistics, unless `inductive`: the targets then have the support set's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.by_step import Record
from engine.episodes import Episode
from engine.methods import beside, heads
from engine.methods.context import InContext, of_support, of_targets
from engine.methods.inner import ended
from engine.models.backbone import Backbone
from engine.models.interface import Moments, Params
from engine.unroll import MetaGradient


class ClosedForm(NamedTuple):
    head: heads.Prototypes | heads.Matching
    train_ways: int  # classes of a training task
    ways: int  # of one in evaluation
    context: int = 0  # steps of full context embeddings, 0: without

    @property
    def alone(self) -> bool:
        return self.context > 0

    @torch.inference_mode()
    def adjoint(
        self,
        model: Backbone,
        params: Params,  # with a single row of norm; its classifier and rates take no part
        episode: Episode,
        loss_weights: Sequence[float | Tensor],  # 1
        second_order: bool,
        running: Moments | None = None,  # [1, S]
    ) -> MetaGradient:
        network, own = beside.split(model, params)
        x = torch.cat([episode.support_x, episode.target_x], 1)
        theta = network.theta.expand(len(x), -1)
        found = model.prepare(x, 1).embed(theta, network.norm[0], running and running.first(), True)
        n = episode.support_y.shape[1]
        features = found.features[:, :n], found.features[:, n:]
        seen = InContext.of(own, *features, self.context) if self.context else None
        h_s, h_q = seen.features if seen else features
        logits, saved = self.head.fwd(h_s, episode.support_y, h_q, self.train_ways)
        loss, d_logits = heads.cross_entropy(logits, episode.target_y)
        pulled = self.head.bwd(saved, d_logits)
        *pulled, d_own = seen.pullback(*pulled) if seen else (*pulled, own.expand(len(x), -1))
        gradient, norm = found.kept.pullback(torch.cat(pulled, 1))
        record = Record(model)
        record.add(0, found.moments, x)
        norm = torch.cat([norm, d_own], 1)
        return ended(params, loss_weights, loss, logits, gradient, norm, record)

    @torch.inference_mode()
    def adapt_and_predict(
        self,
        model: Backbone,
        params: Params,
        running: Moments,  # [1, S]
        episode: Episode,
        *,
        steps: int,
        norm_statistics: str = "batch",
        protocol: str = "transductive",
        every: bool = False,
    ) -> Tensor:  # logits [T, N, ways], with `every` [1, T, N, ways]
        given = running.first() if norm_statistics == "running" else None
        x, target = episode.support_x, episode.target_x
        params, own = beside.split(model, params)
        n, theta = x.shape[1], params.theta.expand(len(x), -1)
        if given is None and protocol == "transductive":
            x = torch.cat([x, target], 1)
        h, moments, _ = model.prepare(x, 1).embed(theta, params.norm[0], given)
        h_s, h_q = h[:, :n], h[:, n:]
        if x.shape[1] == n:
            given = moments if given is None else given
            h_q = model.prepare(target, 1).embed(theta, params.norm[0], given).features
        if self.context:
            weights = own.expand(len(x), -1)
            h_s = of_support(weights, h_s)
            h_q = of_targets(weights, h_s, h_q, self.context)
        logits, _ = self.head.fwd(h_s, episode.support_y, h_q, self.ways)
        return logits.unsqueeze(0) if every else logits
