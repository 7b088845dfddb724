"""What the tests of methods with an inner loop of their own share."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import Config
from engine.methods import beside
from engine.models import network
from engine.models.backbone import Backbone
from engine.models.interface import Params
from tests import plain_loop
from tests.test_adjoint import random_problem
from tests.test_methods import two_shots


def problem(cfg: Config, seed: int = 0):
    """As of test_methods, with two shots and numbers of the method's own, none of them 0."""
    model = network(cfg)
    params, episode, running = random_problem(model, cfg.steps, cfg.tasks, 1, seed)
    own = torch.rand(1, beside.width(cfg, model), dtype=torch.float64) + 0.5
    return (
        model,
        params._replace(norm=torch.cat([params.norm, own], 1)),
        two_shots(episode),
        running,
    )


def leaves(model: Backbone, params: Params) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Of one task: what the inner loop changes, by name, and the row; and what is beside them."""
    shared, own = beside.split(model, params)
    named = plain_loop.named(model, shared.theta)
    return {n: p.clone().requires_grad_() for n, p in named.items()}, shared.norm[0].clone(), own


def flat(tensors: list[Tensor]) -> Tensor:
    """Of a network's, filters being NHWC, and what follows them."""
    return torch.cat([(t.permute(0, 2, 3, 1) if t.dim() == 4 else t).flatten() for t in tensors])
