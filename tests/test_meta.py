"""Schedules, Adam, running statistics and one outer step."""

import math

import pytest
import torch

import kernels
from engine import averages, meta
from engine.config import Config
from engine.episodes import Episode
from engine.models.interface import Moments, Params


def config(**explicit) -> Config:
    sizes = dict(
        image_size=16, filters=4, stages=2, ways=3, shots=1, targets=2, tasks=2, channels=1
    )
    return Config.of(
        "maml++", "folder", **sizes | dict(steps=2, epochs=10, iterations=4) | explicit
    )


def random_episode(cfg: Config, seed: int = 0) -> Episode:
    g = torch.Generator().manual_seed(seed)

    def images(n: int) -> torch.Tensor:
        x = torch.randn(cfg.tasks, n, cfg.image_size, cfg.image_size, cfg.channels, generator=g)
        return x.permute(0, 1, 4, 2, 3)

    def labels(n: int) -> torch.Tensor:
        return torch.arange(cfg.ways).repeat_interleave(n // cfg.ways).expand(cfg.tasks, -1)

    support, target = cfg.ways * cfg.shots, cfg.ways * cfg.targets
    return Episode(images(support), labels(support), images(target), labels(target))


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("rows", ["per-step", "shared"])
def test_the_layout_is_that_of_the_first_state(downsample: str, rows: str) -> None:
    cfg = config(downsample=downsample, norm_weights=rows, norm_stats=rows, steps=3, channels=3)
    state, layout = meta.init_state(cfg), meta.layout(cfg)
    for groups in zip(state[:4], layout[:4], strict=True):
        assert [(t.shape, t.dtype) for t in groups[0]] == [(t.shape, t.dtype) for t in groups[1]]
    assert layout.params.theta.device.type == "meta" and layout.iteration == state.iteration


def test_multi_step_loss_starts_equal_and_ends_on_the_last_step() -> None:
    cfg = config(steps=4, msl_epochs=3)
    assert meta.loss_weights(0, cfg) == pytest.approx([0.25] * 4)
    for epoch in range(3):
        weights = meta.loss_weights(epoch, cfg)
        assert min(weights) >= 0.03 / 4 and math.isclose(sum(weights), 1.0)
    assert meta.loss_weights(3, cfg) == [0, 0, 0, 1]
    assert meta.loss_weights(0, config(steps=4, msl_epochs=0)) == [0, 0, 0, 1]


def test_the_outer_rate_may_fall_along_a_line_or_by_half_at_a_time() -> None:
    rates = (
        ({"annealing": "linear"}, [1.0, 0.78, 0.56, 0.34]),
        ({"annealing": "halving", "halving_epochs": 2}, [1.0, 1.0, 0.5, 0.5]),
    )
    for annealing, expected in rates:
        cfg = config(lr=1.0, min_lr=0.12, epochs=4, **annealing)
        found = [meta.learning_rate(epoch, cfg) for epoch in range(4)]
        assert found == pytest.approx(expected), annealing
    cfg = config(annealing="halving", halving_epochs=1, lr=1.0, min_lr=0.3)
    assert meta.learning_rate(9, cfg) == 0.3


def test_schedules_and_their_neutral_values() -> None:
    cfg = config(first_order_epochs=2, lr=1e-3, min_lr=1e-5)
    assert [meta.second_order(e, cfg) for e in range(4)] == [False, False, True, True]
    assert meta.second_order(0, config(first_order_epochs=0))
    assert meta.learning_rate(0, cfg) == pytest.approx(1e-3)
    assert meta.learning_rate(5, cfg) == pytest.approx((1e-3 + 1e-5) / 2)
    assert meta.learning_rate(10, cfg) == pytest.approx(1e-5)
    assert meta.learning_rate(7, config(lr=1e-3, min_lr=1e-3)) == pytest.approx(1e-3)


@pytest.mark.parametrize("clamp", [0.0, 0.5])
def test_adam_is_that_of_torch(clamp: float, backend: str) -> None:
    cfg = config()
    state = meta.init_state(cfg)
    theirs = [p.clone().requires_grad_() for p in state.params]
    optimizer = torch.optim.Adam(theirs, lr=3e-3, betas=(0.9, 0.99))
    for step in range(5):
        g = torch.Generator().manual_seed(step)
        gradient = Params(*(torch.randn(p.shape, generator=g) for p in theirs))
        for p, grad in zip(theirs, gradient, strict=True):
            p.grad = grad.clone()
        for p in theirs[:2] if clamp else ():
            p.grad.clamp_(-clamp, clamp)
        optimizer.step()
        scales = meta.adam_scales(3e-3, 0.9, 0.99, state.iteration + 1)
        groups = meta.adam(state, gradient, *scales, 0.9, 0.99, clamp)
        state = meta.State(*groups, state.running, state.iteration + 1)
    for ours, expected in zip(state.params, theirs, strict=True):
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2], ids=["shared", "per-step"])
def test_running_statistics_are_the_sequential_averages(rows: int) -> None:
    columns, batches = (0, 0, 1, 1), torch.randn(3, 4, 5, dtype=torch.float64)
    running = Moments(*torch.randn(2, rows, 5, dtype=torch.float64))
    expected = [m.clone() for m in running]
    for task in range(3):
        for column, step in enumerate(columns):
            for average in expected:
                row = average[min(step, rows - 1)]
                row.mul_(0.9).add_(0.1 * batches[task, column])
    after = averages.update(running, columns, Moments(batches, batches), 0.1)
    for ours, exact in zip(after, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_a_step_goes_from_state_to_state() -> None:
    cfg = config()
    state, episode = meta.init_state(cfg), random_episode(cfg)
    before = [p.clone() for p in state.params]
    after, metrics = meta.meta_step(state, episode, cfg)
    again, _ = meta.meta_step(state, episode, cfg)
    assert all(map(torch.equal, state.params, before)) and after.iteration == 1
    assert all(map(torch.equal, after.params, again.params)), "the same inputs give the same bits"
    assert metrics.nonfinite is None and 0 <= metrics.accuracy <= 1 and metrics.loss > 0


@pytest.mark.parametrize("backend", ["native", "plain"])
@pytest.mark.parametrize("first_order_epochs", [0, 1])
def test_any_number_of_threads_takes_the_same_step(backend, first_order_epochs, threads) -> None:
    cfg = config(tasks=5, first_order_epochs=first_order_epochs)
    state, episode = meta.init_state(cfg), random_episode(cfg)
    after = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with kernels.use(backend):
            after.append(meta.meta_step(state, episode, cfg)[0])
    for other in after[1:]:
        for ours, theirs in zip(after[0][:-1], other[:-1], strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_both_unrolls_and_both_reductions_take_the_same_first_step() -> None:
    # Adam's first step does not depend on the scale of the gradient.
    cfg = config(clamp=0.0, task_reduction="mean")
    state, episode = meta.init_state(cfg), random_episode(cfg)
    groups = (type(group)(*(t.double() for t in group)) for group in state[:-1])
    state = meta.State(*groups, state.iteration)
    episode = Episode(episode.support_x.double(), episode.support_y, episode.target_x.double(),
                      episode.target_y)  # fmt: skip
    exact = meta.meta_gradient(state, episode, cfg)
    other = meta.meta_gradient(state, episode, config(clamp=0.0, unroll="autograd"))
    for a, e in zip(exact.gradient, other.gradient, strict=True):
        torch.testing.assert_close(a * cfg.tasks, e, rtol=1e-9, atol=1e-12)
    losses = [meta.meta_step(state, episode, c)[1].loss for c in (cfg, config(clamp=0.0))]
    assert losses[0] == pytest.approx(losses[1])


def test_fixed_rates_stay_and_the_clamp_spares_the_rates() -> None:
    cfg = config(rates="fixed")
    state, episode = meta.init_state(cfg), random_episode(cfg)
    after, _ = meta.meta_step(state, episode, cfg)
    assert torch.equal(after.params.rates, state.params.rates)
    after, _ = meta.meta_step(state, episode, config(clamp=1e-6))
    bound = 1.001 * (1 - cfg.beta1) * 1e-6
    assert after.first.theta.abs().max() <= bound and after.first.norm.abs().max() <= bound
    assert after.first.rates.abs().max() > bound


def test_what_is_not_finite_is_named_and_the_state_kept() -> None:
    cfg = config()
    state, episode = meta.init_state(cfg), random_episode(cfg)
    broken = state._replace(params=state.params._replace(rates=state.params.rates * math.inf))
    after, metrics = meta.meta_step(broken, episode, cfg)
    assert after is broken and "loss" in metrics.nonfinite and "theta" in metrics.nonfinite
