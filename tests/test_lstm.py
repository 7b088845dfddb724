"""The meta-learner LSTM against `nn.LSTMCell`, and by its neutral value."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from engine import meta
from engine.errors import UserError
from engine.methods import beside, lstm_loop
from engine.methods.loops import loop
from engine.models import network
from engine.models.interface import Params
from kernels.plain import lstm as rule
from kernels.plain.lstm import SIZES
from tests import plain_loop
from tests.inner import flat, leaves, problem
from tests.test_meta import random_episode
from tests.test_methods import close, config

pytestmark = pytest.mark.usefixtures("backend")


def lstm(**explicit):
    return config("lstm", **{"steps": 3, "inner_rate": 0.1} | explicit)


def plain_lstm(cfg, model, params, task):
    """The loss of a task after K steps of an `nn.LSTMCell` and two gates, and its gradients in c_0
    and in the rule's numbers."""
    x, y, target_x, target_y = task
    shared, own = beside.split(model, params)
    start = torch.cat([shared.theta, shared.norm[0]]).requires_grad_()
    own = own.clone().requires_grad_()
    weight, bias, of_f, of_i = own.split(SIZES)
    cell = torch.nn.LSTMCell(4, 20, dtype=torch.float64)
    # of input, forget and output gate and candidate; torch has the candidate third
    order = torch.arange(80).view(4, 20)[[0, 1, 3, 2]].flatten()
    by_torch, bias = weight.view(80, 24)[order], bias[order]
    of_cell = {"weight_ih": by_torch[:, :4], "weight_hh": by_torch[:, 4:], "bias_ih": bias}
    of_cell["bias_hh"] = torch.zeros_like(bias)

    def loss_of(c, x, y):
        theta, row = c.split([len(shared.theta), shared.norm.shape[1]])
        return F.cross_entropy(
            plain_loop.logits_of(model, plain_loop.named(model, theta), row, x), y
        )

    def rho(u):
        small = u.abs() < math.exp(-10)
        log = torch.where(small, -1.0, u.abs().log() / 10)
        return torch.stack([log, torch.where(small, math.exp(10) * u, u.sign())], -1)

    c, gate_f, gate_i = start, torch.zeros_like(start), torch.zeros_like(start)
    hidden = [torch.zeros(len(c), 20, dtype=c.dtype)] * 2
    for _ in range(cfg.steps):
        at = c.detach().requires_grad_()
        loss = loss_of(at, x, y)
        (g,) = torch.autograd.grad(loss, at)
        seen = torch.cat([rho(loss.detach()).expand(len(c), -1), rho(g)], 1)
        hidden = torch.func.functional_call(cell, of_cell, (seen, tuple(hidden)))
        gate_f = torch.cat([hidden[0], c[:, None], gate_f[:, None]], 1) @ of_f[:-1] + of_f[-1]
        gate_i = torch.cat([hidden[0], c[:, None], gate_i[:, None]], 1) @ of_i[:-1] + of_i[-1]
        c = gate_f.sigmoid() * c - gate_i.sigmoid() * g
    target = loss_of(c, target_x, target_y)
    return target.detach(), *torch.autograd.grad(target, [start, own])


@pytest.mark.parametrize(("together", "downsample"), [(50, "stride"), (2048, "pool")])
def test_the_lstm_is_the_plain_one(together, downsample, monkeypatch) -> None:
    monkeypatch.setattr(rule, "_TOGETHER", together)
    cfg = lstm(downsample=downsample)
    model, params, episode, running = problem(cfg)
    width = 2 * model.stat_width
    generator = torch.Generator().manual_seed(0)
    own = lstm_loop.initial(0.1, generator).double()
    own += 0.3 * torch.randn(own.shape, generator=generator, dtype=own.dtype)
    params = params._replace(norm=torch.cat([params.norm[:, :width], own[None]], 1))
    found = loop(cfg, model).adjoint(model, params, episode, [0.0, 0.0, 0.5], False)
    for t, task in enumerate(zip(*vars(episode).values(), strict=True)):
        loss, d_start, d_own = plain_lstm(cfg, model, params, task)
        close(found.loss[t], 0.5 * loss)
        close(found.gradient.theta[t], 0.5 * d_start[:-width])
        close(found.gradient.norm[t, 0], 0.5 * torch.cat([d_start[-width:], d_own]))
    predicted = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=3)
    close(predicted, found.logits)


def test_a_small_gradient_goes_in_by_its_size() -> None:
    small = torch.tensor([0.0, math.exp(-11), -math.exp(-11), -1.0, math.exp(-5), 1.0])
    expected = [[-1, -1, -1, 0, -0.5, 0], [0, math.exp(-1), -math.exp(-1), -1, 1, 1]]
    torch.testing.assert_close(rule.preprocessed(small), torch.tensor(expected))


def test_an_lstm_without_weights_is_gradient_descent() -> None:
    cfg = lstm(steps=2)
    model, params, episode, _ = problem(cfg)
    own = torch.zeros(sum(SIZES), dtype=torch.float64)
    own[-1], own[-1 - SIZES[-1]] = math.log(0.2 / 0.8), 50.0
    width = 2 * model.stat_width
    params = params._replace(norm=torch.cat([params.norm[:, :width], own[None]], 1))
    (*_, last) = loop(cfg, model).inner_loop(model, params, episode.support_x, episode.support_y, 2)
    for t in range(cfg.tasks):
        weights, row, _ = leaves(model, params)
        row.requires_grad_()
        optimizer = torch.optim.SGD([*weights.values(), row], 0.2)
        for _ in range(2):
            optimizer.zero_grad()
            logits = plain_loop.logits_of(model, weights, row, episode.support_x[t])
            F.cross_entropy(logits, episode.support_y[t]).backward()
            optimizer.step()
        after = flat([p.detach() for p in (*weights.values(), row)])
        close(torch.cat([last.adapted[t], last.row[t]]), after)


def test_the_lstm_begins_near_gradient_descent_of_the_rate_that_is_given() -> None:
    cfg = config("lstm", steps=2)
    own = meta.init_state(cfg).params.norm[0, 2 * network(cfg).stat_width :]
    assert own.shape == (2046,)
    *weights, of_f, of_i = own.split(SIZES)
    assert all(part.abs().max() <= 0.01 for part in (*weights, of_f[:-1], of_i[:-1]))
    assert 4 <= of_f[-1] <= 5 and -5 <= of_i[-1] <= -4
    other = meta.init_state(lstm(inner_rate=0.5)).params.norm[0, -1]
    assert other.abs() <= 0.5


def test_the_norm_of_the_whole_gradient_is_bounded() -> None:
    gradient = Params(torch.tensor([3.0]), torch.tensor([[0.0]]), torch.tensor([[4.0]]))
    halved = meta.within(gradient, 2.5)
    assert [g.item() for g in halved] == [1.5, 0.0, 2.0]
    assert all(map(torch.equal, meta.within(gradient, 6.0), gradient))
    cfg = config("maml", steps=1, optimizer="sgd", lr=1.0, max_norm=0.01)
    state = meta.init_state(cfg)
    after, _ = meta.meta_step(state, random_episode(cfg), cfg)
    moved = [a - b for a, b in zip(after.params, state.params, strict=True)]
    assert 0.0099 < torch.cat([m.flatten() for m in moved]).norm() < 0.0101


@pytest.mark.parametrize(("wrong", "words"), [
    ({"inner_rate": 1.0}, "--inner-rate is 1.0 with --method lstm, whose rate is a sigmoid"),
    ({"max_norm": -1.0}, "--max-norm is -1.0: give a number >= 0"),
    ({"norm_gains": "fixed"}, "--norm-gains is fixed with --method lstm"),
    ({"first_order_epochs": 1}, "--first-order-epochs is 1 with --method lstm"),
])  # fmt: skip
def test_what_contradicts_the_lstm_is_one_line(wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        lstm(**wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)
