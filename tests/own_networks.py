"""Small networks of methods that have their own, off their first weights, in float64."""

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch

from engine.config import Config
from engine.models import network
from engine.models.interface import Moments
from tests.test_meta import random_episode
from tests.test_methods import SIZES, two_shots

OWN = {
    "siamese": {"network": "own", "image_size": 65, "filters": 2},
    "memory": {"filters": 2},
    "metanet": {"filters": 6},
    "statistician": {"filters": 2, "norm_statistics": "running", "eval_targets": 0},
}


def config(name: str, **explicit) -> Config:
    """Of the method with a network of its own."""
    sizes = {name: value for name, value in SIZES.items() if name != "stages"}
    explicit = sizes | {"ways": 2, "targets": 1, "precision": "fp32"} | OWN[name] | explicit
    return Config.of("maml", "folder", method=name, **explicit)


def problem(cfg: Config, seed: int = 0):
    """In float64: a model, parameters off their first values, tasks of two shots."""
    model, g = network(cfg), torch.Generator().manual_seed(seed)
    params = model.init(1, 1, 0.1, g, torch.float64)
    theta = params.theta + 0.02 * torch.randn(params.theta.shape, generator=g, dtype=torch.float64)
    twice = dataclasses.replace(cfg, targets=cfg.targets + 1)
    episode = random_episode(twice, seed).map(
        lambda values: values.double() if values.is_floating_point() else values
    )
    shape = 1, model.stat_width
    running = 0.1 * torch.randn(shape, generator=g, dtype=torch.float64)
    running = Moments(running, 1 + running.abs())
    return model, params._replace(theta=theta), two_shots(episode), running


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """On one thread, for the work of each operation is too little for two; seeded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def by_differences(sizes, theta, gradient, loss) -> None:
    """The gradient is the loss's, along directions that have length 1 in every tensor."""
    scale = sum(part.norm() for part in gradient.split(sizes))
    for _ in range(3):
        parts = [torch.randn(size, dtype=torch.float64) for size in sizes]
        direction = torch.cat([part / part.norm() for part in parts])
        ahead, behind = (loss(theta + sign * 1e-7 * direction) for sign in (1, -1))
        assert ((ahead - behind) / 2e-7 - gradient @ direction).abs() <= 1e-6 * scale + 1e-9


def filled(model, theta):
    """The network itself, in float64."""
    net = copy.deepcopy(model.module).double()
    torch.nn.utils.vector_to_parameters(theta, net.parameters())
    return net.requires_grad_(False)
