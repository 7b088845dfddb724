"""What a batch norm of one's own network is given, and what is told of it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine
from engine import averages
from engine.episodes import Episode
from engine.models.interface import Moments
from engine.models.module import Module
from tests.test_learner_faithful import WEIGHTS, episode, learner, normed
from tests.test_module import close

pytestmark = pytest.mark.usefixtures("one_thread")


class Sometimes(nn.Module):
    """A stage that is left out now and then, as by stochastic depth."""

    def __init__(self):
        super().__init__()
        self.norm, self.rest, self.out = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.there = True

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rest(self.norm(x) if self.there else x))


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x) - self.norm(5 + 2 * x))


def test_statistics_of_a_norm_that_is_not_called_stay_as_they_are():
    net = Sometimes().double()
    made = learner(net)
    made(episode(), WEIGHTS)
    before = made.running()
    before = Moments(*(m.clone() for m in before))
    net.there = False
    made(episode(), WEIGHTS)
    for ours, own in zip(made.running(), before, strict=True):
        close(ours[:, :3], own[:, :3])
        assert not torch.equal(ours[:, 3:], own[:, 3:])
    adapted = made.adapt(episode().support_x[0], episode().support_y[0])
    close(adapted.module().norm.running_var, before.var[-1, :3])


@pytest.mark.parametrize("first", [True, False])
def test_what_one_task_leaves_out_another_may_have(first):
    running = Moments(torch.zeros(1, 2), torch.ones(1, 2))
    var = torch.tensor([[[3.0, -1.0]], [[3.0, 3.0]]])
    found = Moments(torch.ones(2, 1, 2), var if first else var.flip(0))
    mean, var = averages.update(running, (0,), found, 0.5, skips=True)
    close(mean, torch.tensor([[0.75, 0.5]]))
    close(var, torch.tensor([[2.5, 2.0]]))


def test_where_all_are_called_the_averages_are_the_usual_ones():
    running = Moments(torch.randn(3, 4), torch.rand(3, 4))
    found, rows = Moments(torch.randn(2, 6, 4), torch.rand(2, 6, 4)), (0, 0, 1, 1, 2, 5)
    usual, other = (averages.update(running, rows, found, 0.1, skips) for skips in (False, True))
    for ours, expected in zip(other, usual, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_norm_of_the_targets_alone_takes_the_running_statistics():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(x) if len(x) > 4 else x)

    made, given = learner(Long().double()), episode(1)
    few = Episode(given.support_x[:, :4], given.support_y[:, :4], given.target_x, given.target_y)
    inductive = made.predict(few, protocol="inductive")
    assert inductive.isfinite().all()
    adapted = made.adapt(few.support_x[0], few.support_y[0])
    close(adapted(few.target_x[0]), inductive[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adapts_and_answers(dtype):
    net = normed().to(dtype)
    made, given = engine.Learner(net, F.cross_entropy, steps=1, rate=1e-3), episode(1)
    x, y = given.support_x.to(dtype), given.support_y
    answers = made.adapt(x[0], y[0])(x[0])
    assert answers.dtype == dtype
    found = made.predict(Episode(x, y, x, y), protocol="inductive")
    assert torch.equal(found[0], answers)


def test_a_norm_of_one_s_own_is_measured_as_it_normalises():
    class Shifted(nn.BatchNorm1d):
        def forward(self, x: Tensor, by: float = 10.0) -> Tensor:
            return super().forward((x + by).transpose(1, 2)).transpose(1, 2)

    net = nn.Sequential(Shifted(3), nn.Flatten(), nn.Linear(15, 2)).double()
    made = learner(net)
    x, y = torch.randn(1, 6, 5, 3, dtype=torch.float64), torch.arange(6)[None] % 2
    adapted = made.adapt(x[0], y[0])
    close(adapted(x[0]), made.predict(Episode(x, y, x, y))[0])
    close(adapted.module()[0].running_mean, 10 + x[0].mean((0, 1)))


@pytest.mark.parametrize("vectorize", [False, True])
def test_a_norm_that_is_called_twice_has_the_mean_of_both(vectorize):
    made, given = learner(Twins().double(), vectorize=vectorize), episode(1)
    x = given.support_x[0]
    both = torch.stack([x, 5 + 2 * x])
    made(Episode(given.support_x, given.support_y, given.support_x, given.support_y), WEIGHTS)
    seen = 1 - 0.9**2  # support and target set, which are the same here
    close(made.running_mean[0], seen * both.mean((0, 1)))
    close(made.running_var[0], 1 - seen + seen * both.var(1).mean(0))
    adapted = made.adapt(x, given.support_y[0]).module()
    close(adapted.norm.running_mean, both.mean((0, 1)))


def test_a_support_set_s_statistics_normalise_as_they_did_in_the_inner_loop():
    made, given = learner(normed()), episode(1)
    x, y = given.support_x, given.support_y
    adapted = made.adapt(x[0], y[0])
    close(adapted(x[0]), made.predict(Episode(x, y, x, y))[0])
    close(made.predict(Episode(x, y, x, y), protocol="inductive"), adapted(x[0])[None])


def test_statistics_of_a_network_of_one_s_own_are_those_of_the_same_backbone():
    torch.manual_seed(0)
    backbone = engine.Backbone(in_channels=1, image_size=8, filters=4, stages=1, ways=2)
    ours = engine.Learner(backbone, steps=1)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=backbone.norm_eps),
        nn.LeakyReLU(backbone.negative_slope), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    filters, weight, bias = backbone.weights(ours.theta.detach()[None])
    with torch.no_grad():
        net[0].weight.copy_(filters[0])
        net[5].weight.copy_(weight[0])
        net[5].bias.copy_(bias[0])
    theirs = engine.Learner(net, steps=1)
    x, y = torch.randn(2, 3, 1, 8, 8), torch.arange(2)
    x, y = x.transpose(0, 1), y.expand(3, 2)
    given = Episode(x, y, x.flip(1) + 1, y)
    for made in (ours, theirs):
        made(given)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    for protocol in ("transductive", "inductive"):
        found = (made.predict(given, protocol=protocol) for made in (ours, theirs))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_forward_that_was_put_on_a_norm_stays():
    net = normed()
    plain, doubled = copy.deepcopy(net), net[1].forward
    net[1].forward = lambda x: 2 * doubled(x)
    made, usual = learner(net), learner(plain)
    given = episode()
    losses = [made(given, WEIGHTS).loss, usual(given, WEIGHTS).loss, made(given, WEIGHTS).loss]
    assert losses[0] == losses[2] != losses[1]
    made.evaluate([given], protocol="inductive")
    assert "forward" in vars(net[1])
    F.cross_entropy(net(given.support_x[0]), given.support_y[0])


def test_calls_of_several_sizes_count_each_for_itself():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.norm(input=x[:4]), self.norm(x[4:])]))

    made, given = learner(Halves().double()), episode(1)
    x = given.support_x[0]
    own = made.adapt(x, given.support_y[0]).module().norm
    parts = x[:4], x[4:]
    close(own.running_mean, torch.stack([p.mean(0) for p in parts]).mean(0))
    close(own.running_var, torch.stack([p.var(0, correction=0) for p in parts]).mean(0))


def test_by_given_statistics_a_norm_that_is_not_called_is_no_batch():
    model, given = Module(Sometimes().double(), F.cross_entropy), episode(1)
    model.module.there = False
    theta = torch.cat([p.flatten() for p in model.module.out.parameters()])[None]
    row = torch.cat([torch.ones(3), torch.zeros(3)]).repeat(2).double()
    statistics = Moments(*(torch.ones(1, 6).double() for _ in range(2)))
    with model.during(given, False):
        found = model.prepare(given.support_x, 1).loss_and_gradient(
            theta, row, given.support_y, statistics
        )
    assert (found.moments.var[0, :3] == -1).all() and (found.moments.var[0, 3:] > 0).all()
