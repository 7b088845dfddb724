"""A module that changes between two calls, as by a schedule or a hook, is called as it then is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.episodes import Episode
from engine.models.module import Module
from tests.foreign import plain_loop, start
from tests.test_module import close, ours

WEIGHTS = [0.5, 0.5]


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Scheduled(nn.Module):
    """What a training may turn, in each form that an attribute has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("scale", torch.ones(8))
        self.act, self.gain, self.shifts, self.rate = torch.tanh, 1.0, [0.0, 0.0], 0.0
        self.mask = torch.ones(8, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x)) * self.gain * self.mask * self.scale + self.shifts[1]
        return self.last(F.dropout(h, self.rate))


CHANGES = {
    "number": lambda net: setattr(net, "gain", 2.0),
    "function": lambda net: setattr(net, "act", torch.relu),
    "list in place": lambda net: net.shifts.__setitem__(1, 0.5),
    "tensor": lambda net: setattr(net, "mask", torch.arange(8, dtype=torch.float64)),
    "tensor in place": lambda net: net.mask[2:].zero_(),
    "buffer": lambda net: net.scale.fill_(3.0),
    "hook": lambda net: net.first.register_forward_hook(lambda module, x, y: 2 * y),
    "module": lambda net: setattr(net, "last", Doubled(8, 4).double()),
}


def scheduled() -> tuple[Module, Episode]:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.arange(30).view(2, 3, 5) % 4
    return Scheduled().double(), Episode(x[0], y[0], x[1], y[1])


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_seen_by_every_thread(name, vectorize, threads):
    torch.set_num_threads(2)
    net, episode = scheduled()
    model = Module(net, F.cross_entropy, vectorize=vectorize)
    params = start(model, 2)
    before = ours(model, params, episode, WEIGHTS, 2).loss
    CHANGES[name](net)
    found = ours(model, params, episode, WEIGHTS, 2)
    loss, gradient, _ = plain_loop(model, params, episode, WEIGHTS, 2)
    assert abs(before - loss) > 1e-3
    close(found.loss, loss)
    for mine, theirs in zip(found.gradient, gradient, strict=True):
        close(mine, theirs)


def test_random_numbers_that_come_later_are_seen():
    net, episode = scheduled()
    model = Module(net, F.cross_entropy)
    ours(model, start(model, 2), episode, WEIGHTS, 2)
    assert not model.random
    net.rate = 0.5
    ours(model, start(model, 2), episode, WEIGHTS, 2)
    assert model.random


def test_what_stays_is_copied_once():
    net, episode = scheduled()
    model = Module(net, F.cross_entropy)
    copies = []
    for _ in range(3):
        net.train(not net.training)
        ours(model, start(model, 2), episode, WEIGHTS, 2)
        with model._skeleton.lent() as lent:
            copies.append(lent)
    assert copies[0] is copies[1] is copies[2] is not net and model._skeleton.version == 0
