"""Tasks of any module in threads: the bits of one thread, and torch's switches as before."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import unroll
from engine.episodes import Episode
from engine.models.attention import composed_attention
from engine.models.module import Module
from engine.runtime.workers import over_blocks
from tests.foreign import start

WEIGHTS = [0.5, 0.5]


class Encoder(nn.Module):
    """Over token ids, in float32; with `number`, nothing for vmap."""

    def __init__(self, width: int, layers: int = 2, number: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        layer = nn.TransformerEncoderLayer(width, 4, width, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out, self.number = nn.Linear(width, 5), number

    def forward(self, ids):
        hidden = self.layers(self.embedding(ids)).mean(1)
        return self.out(hidden) + (hidden.sum().item() * 0 if self.number else 0)


def texts(tasks: int = 4, length: int = 16) -> Episode:
    ids = torch.randint(50, (2, tasks, 10, length), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(10).remainder(5).expand(tasks, -1)
    return Episode(ids[0], labels, ids[1], labels)


def encoder(width: int = 48, number: bool = False, **options) -> Module:
    torch.manual_seed(0)
    return Module(Encoder(width, number=number), F.cross_entropy, **options)


def gradient(model: Module, episode: Episode, second_order: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = start(model, len(WEIGHTS))
    parts = over_blocks(
        lambda block: unroll.adjoint(model, params, block, WEIGHTS, second_order),
        episode,
        model,
        second_order,
    )
    found = unroll.total(parts)
    return [found.loss, found.logits, *found.gradient]


def switches() -> tuple[bool, ...]:
    cuda = torch.backends.cuda  # whose names these have on a CPU, too
    return (
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_second_order_in_threads_has_the_bits_of_one(memory, threads):
    model, episode, before = encoder(memory=memory), texts(8), switches()
    torch.set_num_threads(1)
    expected = gradient(model, episode)
    torch.set_num_threads(2)
    for _ in range(3):
        found = gradient(model, episode)
        assert all(map(torch.equal, found, expected))
        assert switches() == before


def test_the_callers_autocast_goes_along_into_threads(threads):
    model, episode = encoder(vectorize=False), texts(2)
    torch.set_num_threads(1)
    exact = gradient(model, episode)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradient(model, episode)
        torch.set_num_threads(2)
        found = gradient(model, episode)
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[1], exact[1])


class Dropped(nn.Module):
    """Random without a layer that says so."""

    def __init__(self):
        super().__init__()
        self.body, self.out, self.share = nn.Linear(16, 32), nn.Linear(32, 5), 0.3

    def forward(self, x):
        return self.out(F.dropout(self.body(x / 50).tanh(), self.share, self.training))


@pytest.mark.parametrize("vectorize", [False, "auto"])
def test_random_numbers_without_a_layer_are_drawn_in_order(vectorize, threads):
    episode, found = texts(), []
    torch.set_num_threads(2)
    for memory in ("fast", "fast", "low", "low"):
        torch.manual_seed(0)
        module = Dropped()
        state = torch.get_rng_state()
        model = Module(module, F.cross_entropy, memory=memory, vectorize=vectorize)
        with model.during(episode, True):
            assert torch.equal(torch.get_rng_state(), state) and model.random
        found.append(gradient(model, episode))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    module.eval()
    assert not model.random


def test_the_last_one_who_leaves_restores_attention():
    before = switches()
    first, second = ExitStack(), ExitStack()
    first.enter_context(composed_attention())
    inside = switches()
    second.enter_context(composed_attention())
    first.close()
    assert switches() == inside == (False, False, False, True) != before
    second.close()
    assert switches() == before
    with pytest.raises(ZeroDivisionError), composed_attention():
        1 / 0  # noqa: B018
    assert switches() == before


def test_the_pass_in_which_vmap_fails_has_the_bits_of_the_next(threads):
    torch.set_num_threads(1)
    model, episode = encoder(16, number=True), texts()
    with model.during(episode, False):
        assert switches()[1] is False
    first = gradient(model, episode, second_order=False)
    assert model._vmap_fails
    assert all(map(torch.equal, gradient(model, episode, second_order=False), first))


class Summed(nn.Module):
    """Sums that torch's threads share."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return (self.scale * x).sum().expand(len(x), 5) * torch.arange(5.0)


@pytest.mark.parametrize("tasks", [1, 3, 4])
@pytest.mark.parametrize("vectorize", [False, 1])
def test_tasks_left_over_have_the_bits_of_one_thread(tasks, vectorize, threads):
    x = torch.randn(2, tasks, 10, 9_000, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(10).remainder(5).expand(tasks, -1)
    episode = Episode(x[0], labels, x[1], labels)
    model = Module(Summed(), F.cross_entropy, vectorize=vectorize)
    assert model.parallel(episode) and not model.spreads
    torch.set_num_threads(1)
    expected = gradient(model, episode)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert all(map(torch.equal, gradient(model, episode), expected))
        assert torch.get_num_threads() == count


@pytest.mark.parametrize("block", [1, 2, 8])
def test_the_sum_of_tasks_is_the_same_whatever_the_blocks(block):
    torch.manual_seed(0)
    tasks, rows = 8, torch.randn(5, 8, 37)  # as `adjoint` leaves them: steps first in memory

    def part(first: int, last: int) -> unroll.MetaGradient:
        norm = rows[:, first:last].clone().transpose(0, 1)
        theta = torch.arange(last - first, dtype=torch.float32).unsqueeze(1)
        moments = unroll.Moments(norm, norm)
        params = unroll.Params(theta, norm, norm)
        return unroll.MetaGradient(norm[:, 0, 0], norm, params, (None,), (0,), moments)

    found = unroll.total([part(i, i + block) for i in range(0, tasks, block)])
    assert torch.equal(found.gradient.norm, rows.transpose(0, 1).contiguous().sum(0))
    assert not torch.equal(found.gradient.norm, rows.transpose(0, 1).sum(0))
