"""Reptile against torch.optim, and by its neutral value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engine import meta
from engine.errors import UserError
from engine.methods.loops import loop
from engine.methods.reptile_loop import minibatches
from engine.models import network
from engine.unroll import total
from tests import plain_loop
from tests.inner import flat, leaves, problem
from tests.test_meta import random_episode
from tests.test_methods import close, config, two_shots

pytestmark = pytest.mark.usefixtures("backend")


def reptile(**explicit):
    given = {"train_shots": 2, "steps": 3, "eval_steps": 3, "inner_rate": 0.02}
    return config("reptile", **given | {"inner_batch": 4, "eval_batch": 4} | explicit)


def plain_reptile(cfg, model, params, x, y):
    """One task by torch.optim: φ_K, the row after it, and Adam's second moment of both."""
    weights, row, own = leaves(model, params)
    row.requires_grad_()
    everything = [*weights.values(), row]
    adam = cfg.inner_optimizer == "adam"
    if adam:
        optimizer = torch.optim.Adam(everything, cfg.inner_rate, betas=(0.0, 0.999))
        second, seen = own[:-1], own[-1]
        moments = plain_loop.named(model, second[: sum(model.sizes)]) | {
            "row": second[sum(model.sizes) :]
        }
        for p, v in zip(everything, moments.values(), strict=True):
            optimizer.state[p] = {"step": seen.clone(), "exp_avg": torch.zeros_like(p)}
            optimizer.state[p]["exp_avg_sq"] = v.clone()
    else:
        optimizer = torch.optim.SGD(everything, cfg.inner_rate)
    for taken in minibatches(len(x), cfg.inner_batch, cfg.steps, own[-1]):
        optimizer.zero_grad()
        logits = plain_loop.logits_of(model, weights, row, x[taken])
        F.cross_entropy(logits, y[taken]).backward()
        optimizer.step()
    moments = [optimizer.state[p]["exp_avg_sq"] for p in everything] if adam else None
    return [p.detach() for p in everything], moments


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_reptile_is_the_plain_loop(downsample, optimizer) -> None:
    cfg = reptile(downsample=downsample, inner_optimizer=optimizer)
    model, params, episode, running = problem(cfg)
    params.norm[0, -1] = 7.0  # steps before
    own = loop(cfg, model)
    found = own.adjoint(model, params, episode, [0.0, 0.0, 0.25], False)
    start = torch.cat([params.theta, params.norm[0]])
    end, logits = sum(model.sizes), []
    for t in range(cfg.tasks):
        x, y = episode.support_x[t], episode.support_y[t]
        after, second = plain_reptile(cfg, model, params, x, y)
        moved = 0.25 * (start[: len(flat(after))] - flat(after))
        close(found.gradient.theta[t], moved[:end])
        close(found.gradient.norm[t, 0, : 2 * model.stat_width], moved[end:])
        state = found.gradient.norm[t, 0, 2 * model.stat_width :]
        if second is not None:
            close(state[:-1], flat(second))
        assert state[-1] == 10
        weights = dict(zip(model.shapes, after, strict=False))
        logits.append(plain_loop.logits_of(model, weights, after[-1], episode.target_x[t]))
    close(found.logits, torch.stack(logits))
    losses = F.cross_entropy(found.logits.mT, episode.target_y, reduction="none").mean(1)
    close(found.loss, 0.25 * losses)
    assert found.rows == (0, 1, 2) and not found.gradient.rates.any()
    predicted = own.adapt_and_predict(model, params, running, episode, steps=3)
    close(predicted, found.logits)


def test_reptile_at_test_normalises_each_target_with_the_support_set() -> None:
    cfg = reptile()
    model, params, episode, running = problem(cfg)
    own, options = loop(cfg, model), {"steps": 3, "protocol": "inductive"}
    found = own.adapt_and_predict(model, params, running, episode, **options)
    for t in range(cfg.tasks):
        x = episode.support_x[t]
        after, _ = plain_reptile(cfg, model, params, x, episode.support_y[t])
        weights = dict(zip(model.shapes, after, strict=False))
        for i, target in enumerate(episode.target_x[t]):
            both = torch.cat([x, target.unsqueeze(0)])
            close(found[t, i], plain_loop.logits_of(model, weights, after[-1], both)[-1])
    each = own.adapt_and_predict(model, params, running, episode, every=True, **options)
    assert torch.equal(each[-1], found) and not torch.equal(each[0], found)


def test_reptile_of_one_step_of_gradient_descent_is_joint_training() -> None:
    """θ − φ_1 is α times the gradient of the loss at θ, of gains and biases too."""
    cfg = reptile(steps=1, inner_optimizer="sgd", inner_batch=0)
    model, params, episode, _ = problem(cfg)
    found = total([loop(cfg, model).adjoint(model, params, episode, [1.0], False)])
    weights, row, _ = leaves(model, params)
    row.requires_grad_()
    joint = sum(
        F.cross_entropy(plain_loop.logits_of(model, weights, row, x), y)
        for x, y in zip(episode.support_x, episode.support_y, strict=True)
    )
    exact = torch.autograd.grad(joint, [*weights.values(), row])
    ours = torch.cat([found.gradient.theta, found.gradient.norm[0, : len(row)]])
    close(ours, cfg.inner_rate * flat(exact))


def test_an_iteration_of_reptile_goes_a_part_of_the_way_to_where_the_tasks_ended() -> None:
    cfg = reptile(lr=0.8, min_lr=0.2, tasks=3)
    assert [round(meta.learning_rate(e, cfg), 10) for e in range(4)] == [0.8, 0.65, 0.5, 0.35]
    before = meta.init_state(cfg)._replace(iteration=2 * cfg.iterations)
    episode = two_shots(random_episode(cfg))
    gradient = meta.meta_gradient(before, episode, cfg).gradient
    after, _ = meta.meta_step(before, episode, cfg)
    torch.testing.assert_close(after.params.theta, before.params.theta - 0.5 * gradient.theta)
    width = 2 * network(cfg).stat_width
    moved = before.params.norm[:, :width] - 0.5 * gradient.norm[:, :width]
    torch.testing.assert_close(after.params.norm[:, :width], moved)
    assert torch.equal(after.params.norm[:, width:], gradient.norm[:, width:] / 3)
    assert after.params.norm[0, -1] == 3 and after.params.norm[0, width:].min() >= 0
    assert torch.equal(after.params.rates, before.params.rates)
    assert not any(moment.any() for moment in (*after.first, *after.second))


def test_the_norm_of_a_step_is_that_of_what_is_learned() -> None:
    """Adam's v and its count are no gradient: they do not count in it, and are not scaled."""
    cfg = reptile(lr=1.0, min_lr=1.0, tasks=3, max_norm=1e-3)
    before = meta.init_state(cfg)
    episode = two_shots(random_episode(cfg))
    gradient = meta.meta_gradient(before, episode, cfg).gradient
    after, _ = meta.meta_step(before, episode, cfg)
    width = 2 * network(cfg).stat_width
    norm = torch.cat([gradient.theta, gradient.norm[0, :width]]).norm()
    assert norm > cfg.max_norm
    moved = before.params.theta - cfg.max_norm / norm * gradient.theta
    torch.testing.assert_close(after.params.theta, moved)
    assert torch.equal(after.params.norm[:, width:], gradient.norm[:, width:] / 3)


def test_minibatches_are_passes_without_replacement_that_run_on() -> None:
    seen = torch.tensor(3.0)
    places = minibatches(5, 3, 5, seen)
    assert places.shape == (5, 3)
    for each in places.flatten().split(5):
        assert sorted(each.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(places, minibatches(5, 3, 6, seen)[:5])
    others = [minibatches(5, 3, 5, torch.tensor(float(t))) for t in range(200)]
    counts = torch.stack(others)[:, 0, 0].bincount(minlength=5)
    assert counts.min() > 20, counts  # 40 of each are expected


@pytest.mark.parametrize(("wrong", "words"), [
    ({"inner_batch": -1}, "--inner-batch is -1"),
    ({"optimizer": "adam"}, "--optimizer is adam with --method reptile, which is --optimizer sgd"),
    ({"norm_statistics": "running"}, "--norm-statistics is running with --method reptile"),
    ({"temperature": 2.0}, "--temperature is 2.0 with --method reptile, which has none"),
])  # fmt: skip
def test_what_contradicts_reptile_is_one_line(wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        reptile(**wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_reptiles_alone_is_refused_elsewhere() -> None:
    for name, value in {"inner_batch": 3, "eval_batch": 3, "inner_optimizer": "adam"}.items():
        with pytest.raises(UserError, match="which has none: leave it out, or give --method rept"):
            config("boil", **{name: value})
