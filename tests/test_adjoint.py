"""The adjoint against torch.autograd over ordinary torch ops, in float64, over everything that
changes the algebra.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

import kernels
from engine import unroll
from engine.episodes import Episode
from engine.models import rows
from engine.models.backbone import Backbone
from engine.models.interface import Moments, Params
from kernels import reference
from tests.lifetimes import waits

torch.manual_seed(0)
pytestmark = pytest.mark.usefixtures("backend", "one_thread")


def random_problem(model: Backbone, steps: int, tasks: int, norm_rows: int, seed: int = 0):
    """Parameters off their initial values, with a negative and a zero gain, and random episodes."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    params = model.init(steps, norm_rows, 0.2, g, torch.float64)
    norm = params.norm + 0.3 * randn(*params.norm.shape)
    norm[:, 0] = -0.7
    norm[:, model.filters * 2 + 1] = 0.0  # a gain of the second stage
    params = Params(
        params.theta + 0.1 * randn(*params.theta.shape),
        norm,
        params.rates + 0.05 * randn(*params.rates.shape),
    )
    side, support, target = model.image_size, model.ways, 2 * model.ways
    images = (
        randn(tasks, n, side, side, model.in_channels).permute(0, 1, 4, 2, 3)
        for n in (support, target)
    )
    labels = (torch.arange(n).remainder(model.ways).expand(tasks, -1) for n in (support, target))
    (support_x, target_x), (support_y, target_y) = images, labels
    running = Moments(
        0.1 * randn(norm_rows, model.stat_width), 1 + 0.2 * randn(norm_rows, model.stat_width).abs()
    )
    return params, Episode(support_x, support_y, target_x, target_y), running


def assert_same(model, params, episode, weights, second_order, running=None) -> None:
    args = model, params, episode, weights, second_order, running
    ours = unroll.total([unroll.adjoint(*args)])
    exact = unroll.total([unroll.autograd(*args, ops=reference)])
    pairs = [("loss", ours.loss, exact.loss), ("logits", ours.logits, exact.logits)]
    pairs += zip(Params._fields, ours.gradient, exact.gradient, strict=True)
    pairs += zip(Moments._fields, ours.moments, exact.moments, strict=True)
    for name, a, e in pairs:
        assert (a - e).abs().max() <= 1e-10 * e.abs().max().clamp(min=1e-12), name
    assert ours.rows == exact.rows


WEIGHTS = {
    1: [1.0],
    2: [0.4, 0.6],
    3: [0.2, 0.0, 0.8],
    4: [0.0, 0.0, 0.0, 1.0],
    5: [0.1, 0.0, 0.2, 0.3, 0.4],
}


@pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])
def test_what_a_branch_reads_is_held_until_it_is_waited_for(
    second_order: bool, monkeypatch
) -> None:
    model = Backbone(2, 14, 4, 2, 3)
    params, episode, _ = random_problem(model, 3, 2, 3)
    with kernels.use("plain"), waits(monkeypatch) as gone:
        unroll.adjoint(model, params, episode, [0.2, 0.3, 0.5], second_order)
    # The last step's targets, and the end of the steps, wait for the images alone; the reverse
    # sweep for the others' targets, the later one first, and its end for what else it reported.
    assert [len(each) > 0 for each in gone] == [False, False, False, True, False, True]
    assert not any(sum(gone, []))


@pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_steps_orders_and_msl_weights(steps: int, tasks: int, second_order: bool) -> None:
    model = Backbone(2, 21, 4, 4, 3)
    params, episode, _ = random_problem(model, steps, tasks, steps)
    assert_same(model, params, episode, WEIGHTS[steps], second_order)


@pytest.mark.parametrize("second_order", [True, False], ids=["second", "first"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("side", [13, 16])
def test_backbones(side: int, slope: float, downsample: str, second_order: bool) -> None:
    model = Backbone(1, side, 3, 3, 4, downsample, slope)
    params, episode, _ = random_problem(model, 3, 2, 3)
    assert_same(model, params, episode, WEIGHTS[3], second_order)


@pytest.mark.parametrize("norm_rows", [1, 3], ids=["shared", "per-step"])
@pytest.mark.parametrize("use_running", [True, False], ids=["running", "batch"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_normalisation_rows_and_statistics(
    norm_rows: int, use_running: bool, downsample: str
) -> None:
    model = Backbone(3, 12, 4, 2, 3, downsample)
    params, episode, running = random_problem(model, 3, 2, norm_rows)
    assert_same(model, params, episode, WEIGHTS[3], True, running if use_running else None)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it holds for all examples
)
@given(
    side=st.integers(4, 15), filters=st.integers(2, 6), stages=st.integers(2, 3),
    ways=st.integers(3, 6), channels=st.sampled_from([1, 3]),
    downsample=st.sampled_from(["pool", "stride"]),
    weights=st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=4).filter(
        lambda w: w[-1] > 0
    ),
    tasks=st.integers(1, 3), second_order=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_random_problems(
    side, filters, stages, ways, channels, downsample, weights, tasks, second_order, seed
):
    model = Backbone(channels, max(side, 2**stages), filters, stages, ways, downsample)
    params, episode, _ = random_problem(model, len(weights), tasks, len(weights), seed)
    assert_same(model, params, episode, weights, second_order)


def test_a_task_does_not_depend_on_its_batch() -> None:
    model = Backbone(1, 14, 4, 3, 5)
    params, episode, _ = random_problem(model, 2, 3, 2)
    params = Params(*(p.float() for p in params))
    episode = Episode(
        *(
            t.float() if t.is_floating_point() else t
            for t in (episode.support_x, episode.support_y, episode.target_x, episode.target_y)
        )
    )
    together = unroll.adjoint(model, params, episode, [0.5, 0.5], True)
    for t in range(3):
        alone = unroll.adjoint(model, params, episode.slice(t, t + 1), [0.5, 0.5], True)
        assert torch.equal(alone.logits[0], together.logits[t])
        for a, b in zip(alone.gradient, together.gradient, strict=True):
            assert torch.equal(a[0], b[t])


@pytest.mark.parametrize("use_running", [True, False], ids=["running", "batch"])
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("tasks", [1, 3])
def test_target_passes_in_one_call_have_the_bits_of_one_after_the_other(
    tasks: int, steps: int, use_running: bool, monkeypatch
) -> None:
    model = Backbone(2, 21, 4, 3, 3)
    params, episode, running = random_problem(model, steps, tasks, steps)
    running = running if use_running else None
    calls = []

    def counted(inputs, times):
        calls.append(rows.repeated(inputs, times))
        return calls[-1]

    monkeypatch.setattr(unroll, "repeated", counted)
    ours = unroll.adjoint(model, params, episode, WEIGHTS[steps], True, running)
    assert (calls[0] is None) == (kernels.passes(episode.target_x) is None)
    monkeypatch.setattr(unroll, "repeated", lambda inputs, times: None)
    alone = unroll.adjoint(model, params, episode, WEIGHTS[steps], True, running)
    pairs = zip(tree_leaves(ours), tree_leaves(alone), strict=True)
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_the_target_sets_of_all_steps_are_never_held_at_once() -> None:
    """Bytes alive at the end of each target pass must not grow with the steps taken."""
    model = Backbone(3, 24, 8, 3, 5)
    params, episode, _ = random_problem(model, 5, 1, 5)
    alive: list[int] = []

    class Watched:
        def __init__(self, images):
            self.images = images

        def loss_and_gradient(self, *arguments):
            result = self.images.loss_and_gradient(*arguments)
            tensors = [result.loss, result.logits, result.gradient, result.norm_gradient]
            tensors += result.moments
            alive.append(sum(t.untyped_storage().nbytes() for t in tensors))
            assert result.kept is None
            return result

    class Watch(Backbone):
        def prepare(self, x, passes):
            images = super().prepare(x, passes)
            return Watched(images) if x is episode.target_x else images

    watch = Watch(*(getattr(model, f) for f in model.__dataclass_fields__))
    unroll.adjoint(watch, params, episode, [0.2] * 5, True)
    assert len(alive) == 5 and max(alive) < episode.target_x.nbytes * 8


def test_evaluation_adapts_with_the_training_loop() -> None:
    model = Backbone(1, 14, 4, 3, 5)
    params, episode, running = random_problem(model, 3, 2, 3)
    trained = unroll.adjoint(model, params, episode, [0.0, 0.0, 1.0], False)
    logits = unroll.adapt_and_predict(model, params, running, episode, steps=3)
    torch.testing.assert_close(logits, trained.logits, rtol=1e-12, atol=1e-12)
    for steps in (1, 5):
        assert (
            unroll.adapt_and_predict(model, params, running, episode, steps=steps).isfinite().all()
        )


@pytest.mark.parametrize("options", [{"norm_statistics": "running"}, {"protocol": "inductive"}])
def test_inductive_predictions_do_not_see_other_targets(options: dict) -> None:
    model = Backbone(1, 14, 4, 3, 5)
    params, episode, running = random_problem(model, 3, 2, 3)
    whole = unroll.adapt_and_predict(model, params, running, episode, steps=3, **options)
    first = Episode(
        episode.support_x, episode.support_y, episode.target_x[:, :1], episode.target_y[:, :1]
    )
    alone = unroll.adapt_and_predict(model, params, running, first, steps=3, **options)
    torch.testing.assert_close(alone, whole[:, :1], rtol=1e-10, atol=1e-12)
    transductive = unroll.adapt_and_predict(model, params, running, episode, steps=3)
    assert not torch.allclose(transductive, whole)
