"""Methods that answer by what they remember of a support set: their gradients by differences, what
they answer by, and siamese networks by the plain formula.
"""

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from engine import meta, unroll
from engine.config import Config
from engine.errors import UserError
from engine.methods import those
from engine.methods.loops import loop
from engine.models import network
from engine.models.interface import Moments
from engine.models.koch import Koch
from engine.runs.problem import Pictures
from engine.scoring import with_ways
from engine.show import random_images
from tests import plain_loop
from tests.own_networks import OWN, alone, by_differences, config, problem
from tests.test_adjoint import random_problem
from tests.test_meta import random_episode
from tests.test_methods import SIZES, close, two_shots

__all__ = ["alone"]


@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("name", [name for name in OWN if name != "memory"])
def test_gradients_are_differences_of_the_loss(name, use_running) -> None:
    cfg = config(name)
    model, params, episode, running = problem(cfg)
    of, given = loop(cfg, model), running if use_running else None

    def found(theta):
        torch.manual_seed(0)  # the same draws at each point
        return of.adjoint(model, params._replace(theta=theta), episode, [0.5], True, given)

    ours = found(params.theta)
    assert ours.gradient.theta.shape == (2, *params.theta.shape) and ours.rows == (0,)
    assert not ours.gradient.rates.any() and ours.moments.mean.shape == (2, 1, model.stat_width)
    close(ours.loss, 0.5 * ours.per_step[0])
    whole = ours.gradient.theta.sum(0)
    by_differences(model.sizes, params.theta, whole, lambda theta: found(theta).loss.sum())


@pytest.mark.parametrize("name", OWN)
def test_a_task_is_answered_by_what_is_remembered(name) -> None:
    """Whatever is asked beside, with the statistics that each protocol says."""
    cfg = config(name)
    model, params, episode, running = problem(cfg)
    of, theta = loop(cfg, model), params.theta.expand(2, -1)
    remembered, moments = of.learn(model, params, episode.support_x, episode.support_y)
    once, each = of.remembered_sizes(model)
    assert remembered.shape[0] == 2 and (remembered.shape[1] - once) % each == 0
    images = model.prepare(episode.target_x, 1)
    for options, given in (
        ({}, None),
        ({"protocol": "inductive"}, moments),
        ({"norm_statistics": "running"}, Moments(*(m[0] for m in running))),
    ):
        if "norm_statistics" in options:
            remembered, _ = of.learn(model, params, episode.support_x, episode.support_y, given)
        expected = of.answer(model, images, theta, remembered, cfg.ways, params.norm[0], given)
        found = of.adapt_and_predict(model, params, running, episode, steps=1, **options)
        assert torch.equal(found, expected) and found.shape == (
            2,
            episode.target_y.shape[1],
            cfg.ways,
        )
        if given is not None:
            for i in range(found.shape[1]):
                one = model.prepare(episode.target_x[:, i : i + 1], 1)
                alone = of.answer(model, one, theta, remembered, cfg.ways, params.norm[0], given)
                error = (alone[:, 0] - found[:, i]).abs().max()
                assert error <= 1e-12 * found.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", OWN)
def test_it_learns_by_a_function_of_seed_and_iteration(name) -> None:
    cfg = config(name, tasks=3)
    states, losses = [], []
    for _ in range(2):
        torch.manual_seed(len(states))  # of what the process drew before
        state = first = meta.init_state(cfg)
        for i in range(2):
            state, metrics = meta.meta_step(state, random_episode(cfg, i), cfg)
            assert metrics.nonfinite is None
            losses.append(metrics.loss)
        states.append(state)
    assert losses[:2] == losses[2:]
    for a, b in zip(*(s.params for s in states), strict=True):
        assert torch.equal(a, b)
    moved = (state.params.theta != first.params.theta).split(network(cfg).sizes)
    still = [name for name, of in zip(network(cfg).shapes, moved, strict=True) if not of.any()]
    # the classifier of metanet's embedder is in gradients alone, which are constants
    assert still == (["embedder.6"] if name == "metanet" else [])
    assert torch.equal(state.params.rates, first.params.rates)
    other = meta.init_state(dataclasses.replace(cfg, seed=1))
    assert not torch.equal(other.params.theta, first.params.theta)


@pytest.mark.parametrize("cfg", [
    *(config(name) for name in those(lambda m: m.remembers and m.closed_form)),
    Config.of("maml", "folder", method="siamese", **SIZES),
], ids=lambda cfg: f"{cfg.method}-{cfg.network}")  # fmt: skip
def test_a_state_for_other_ways_is_the_same_one(cfg) -> None:
    state = meta.init_state(cfg)
    other = with_ways(state, cfg, dataclasses.replace(cfg, ways=5))
    assert all(torch.equal(a, b) for a, b in zip(other.params, state.params, strict=True))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
def test_gradients_of_siamese_networks_on_the_backbone(use_running, downsample) -> None:
    cfg = Config.of("maml", "folder", method="siamese", downsample=downsample, **SIZES)
    model = network(cfg)
    params, _, running = random_problem(model, 1, 2, 1)
    _, episode, _ = random_problem(dataclasses.replace(model, ways=3), 1, 2, 1)
    episode = two_shots(episode)
    given = running if use_running else None
    found = unroll.total([loop(cfg, model).adjoint(model, params, episode, [0.5], True, given)])
    row = given and Moments(*(m[0] for m in given))
    theta, norm = (p.clone().requires_grad_() for p in params[:2])
    total = 0
    for x, y, target_x, target_y in zip(*vars(episode).values(), strict=True):
        weights = plain_loop.named(model, theta)
        h = plain_loop.features(model, weights, norm[0], torch.cat([x, target_x]), row)
        z = pair_odds(weights, h[: len(y)], h[len(y) :])
        kinds = {True: [], False: []}
        for q, label in enumerate(target_y):
            for i, other in enumerate(y):
                same = bool(label == other)
                kinds[same].append(F.softplus(-z[q, i] if same else z[q, i]))
        total = total + sum(torch.stack(losses).mean() / 2 for losses in kinds.values())
    exact = torch.autograd.grad(total, [theta, norm])
    close(found.loss, 0.5 * total.detach())
    close(found.gradient.theta, 0.5 * exact[0])
    close(found.gradient.norm, 0.5 * exact[1])
    logits = torch.stack([z[:, y == w].mean(1) for w in range(3)], 1)
    close(found.logits[-1], logits.detach())


def pair_odds(weights, h_s, h_q):  # [m, n]
    rows = [[weights["linear.weight"][0] @ (q - s).abs() for s in h_s] for q in h_q]
    return torch.stack([torch.stack(row) for row in rows]) + weights["linear.bias"]


@pytest.mark.usefixtures("backend")
def test_siamese_networks_of_equal_weights_take_the_nearest() -> None:
    cfg = Config.of("maml", "folder", method="siamese", **SIZES)
    model = network(cfg)
    params, _, running = random_problem(model, 1, 2, 1)
    _, episode, _ = random_problem(dataclasses.replace(model, ways=3), 1, 2, 1)
    width = model.sizes[-2]
    params.theta[-width - 1 : -1] = -1
    params.theta[-1] = 0
    options = {"steps": 1, "norm_statistics": "running"}
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, **options)
    row, theta = Moments(*(m[0] for m in running)), params.theta.expand(2, -1)
    h_s, h_q = (
        model.prepare(x, 1).embed(theta, params.norm[0], row).features
        for x in (episode.support_x, episode.target_x)
    )
    nearest = torch.cdist(h_q, h_s, p=1).argmin(2)
    assert torch.equal(found.argmax(2), episode.support_y.gather(1, nearest))


def test_kochs_network_is_as_large_as_the_paper_has_it() -> None:
    cfg = Config.of("maml++", "omniglot", method="siamese", network="own")
    assert (cfg.image_size, cfg.filters) == (105, 64)
    assert sum(meta.layout(cfg).params.theta.shape) == 38_951_745
    with pytest.raises(UserError, match="--image-size is 64 with --network own: Koch's takes 65"):
        Koch(1, 64, 2)


@pytest.mark.parametrize(
    ("name", "sizes", "why"),
    [
        ("statistician", {}, "draws random numbers"),
        ("memory", {}, None),
        ("memory", {"filters": 64, "image_size": 28}, "is large"),
    ],
)
def test_tasks_that_all_threads_compute_are_shared_by_their_number_alone(name, sizes, why):
    cfg = config(name, **sizes)
    pictures = Pictures(random_images(cfg))
    assert pictures.bound(cfg) == (("threads",) if why else ())
    with pytest.raises(UserError, match=why) if why else contextlib.nullcontext():
        pictures.require_shareable(cfg, 2)
    pictures.require_shareable(dataclasses.replace(cfg, threads=1), 2)
