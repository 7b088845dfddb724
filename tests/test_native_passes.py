"""Whole passes natively against the same composed of plain ops: in float64 to rounding on every
instruction set, in float32 by an error budget.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.models.backbone import Backbone
from engine.models.interface import Moments
from kernels import native
from kernels.native import passes
from tests.ops import randn
from tests.passes import (
    Problem,
    Results,
    assert_close,
    away_from_ties,
    budget,
    composed,
    composed_features,
    error,
    fused_features,
    named,
    native_pass,
    often_equal,
    on_a_grid,
    problem,
)

pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")

# channels, side, filters, stages, downsampling, slope, images, tasks: the smallest sides, odd ones,
# filters with and without something left of a vector, images with and without something left of a
# chunk. The convolution of stride 1 has a way of its own from a side of 6 on.
CASES = [
    (1, 2, 1, 1, "pool", 0.01, 1, 1),
    (3, 2, 5, 1, "pool", 0.0, 3, 2),
    (2, 3, 16, 1, "pool", 1.0, 9, 3),
    (3, 4, 20, 2, "pool", 0.01, 2, 3),
    (1, 8, 48, 3, "pool", 0.01, 5, 1),
    (3, 16, 5, 4, "pool", 0.0, 4, 2),
    (1, 17, 64, 4, "pool", 0.01, 6, 1),
    (2, 21, 16, 4, "pool", 1.0, 7, 2),
    (3, 13, 20, 2, "pool", 0.01, 13, 1),
    (1, 28, 48, 2, "pool", 0.01, 8, 1),
    (1, 1, 1, 1, "stride", 0.01, 2, 2),
    (3, 1, 5, 2, "stride", 0.01, 9, 1),
    (2, 2, 16, 2, "stride", 0.0, 3, 3),
    (3, 9, 48, 2, "stride", 0.01, 4, 2),
    (1, 16, 20, 4, "stride", 1.0, 5, 1),
    (3, 21, 5, 3, "stride", 0.01, 7, 2),
    (16, 12, 64, 3, "stride", 0.01, 12, 1),
    (1, 3, 4, 16, "stride", 0.01, 3, 1),
]


@cache
def case_and_results(case: tuple, given: str | None) -> tuple[Problem, Results]:
    channels, side, filters, stages, downsample, slope, images, tasks = case
    model = Backbone(channels, side, filters, stages, 4, downsample, slope)
    made = problem(model, images, tasks, given)
    return made, composed(made)


@pytest.mark.parametrize("statistics", [None, "shared", "each"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_pass_and_its_tangent_are_those_of_single_ops(case, statistics, isa) -> None:
    made, expected = case_and_results(case, statistics)
    assert_close(native_pass(made), expected)


@pytest.mark.parametrize("statistics", [None, "shared", "each"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_features_and_their_pullback_are_those_of_single_ops(case, statistics, isa) -> None:
    made, _ = case_and_results(case, statistics)
    assert_close(fused_features(passes, made), composed_features(made))


def test_features_are_written_in_full_and_are_the_same_bits_on_any_threads(threads) -> None:
    made = problem(Backbone(3, 21, 20, 3, 4), 12, 3).to(torch.float32)
    runs = []
    for count in (1, 3, 4):
        torch.set_num_threads(count)
        runs.append(fused_features(passes, made))
    assert all(map(torch.equal, runs[0], runs[1])) and all(map(torch.equal, runs[0], runs[2]))
    head = made.model.sizes[-2:]
    assert not runs[0].gradient[:, -sum(head) :].any()


def test_pullbacks_of_the_same_at_the_same_time_give_the_same_bits() -> None:
    """Each works in what the pass kept."""
    made = problem(Backbone(3, 28, 16, 3, 5), 10, 2).to(torch.float32)
    images = passes.prepare(made.model.net, made.x)
    found = passes.embed(images, made.theta, made.row, None, True)
    directions = [randn(i, *found.features.shape, dtype=torch.float32) for i in range(2)]
    expected = [passes.pullback(found.kept, d) for d in directions]

    def again(i: int) -> bool:
        pulled = (passes.pullback(found.kept, directions[i]) for _ in range(50))
        return all(all(map(torch.equal, p, expected[i])) for p in pulled)

    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as callers:
        assert all(callers.map(again, range(2)))


def test_what_a_pullback_does_not_take_is_refused() -> None:
    made = problem(Backbone(3, 9, 5, 2, 4), 3, 2)
    images = passes.prepare(made.model.net, made.x)
    found = passes.embed(images, made.theta, made.row, None, True)
    kept, dh = found.kept, torch.ones_like(found.features)
    of_run = passes.run(images, made.theta, made.row, made.labels, None, True).kept
    other = passes.prepare(made.model.net, made.x)
    for wrong, d_features, words in (
        (of_run, dh, "pullback takes what embed gave, got Kept"),
        (None, dh, "pullback takes what embed gave, got NoneType"),
        (kept, dh[:, :1], r"d_features must be torch.float64 \[2, 3, 20\]"),
        (kept, dh.float(), "d_features must be torch.float64"),
        (kept, None, "d_features must be a tensor"),
        (kept._replace(images=other), dh, "pullback was given other images"),
        (kept._replace(blocks=kept.blocks[:1]), dh, "pullback was given other images"),
    ):
        with pytest.raises(ValueError, match=words):
            passes.pullback(wrong, d_features)
    with pytest.raises(ValueError, match="takes what run gave, got KeptFeatures"):
        passes.tangent(kept, made.direction)
    made.theta.add_(1)
    with pytest.raises(ValueError, match="what embed gave was changed since"):
        passes.pullback(kept, dh)


@settings(max_examples=100, deadline=None)
@given(
    channels=st.integers(1, 17), side=st.integers(1, 15), filters=st.integers(1, 33),
    stages=st.integers(1, 4), ways=st.integers(1, 7),
    downsample=st.sampled_from(["pool", "stride"]),
    slope=st.sampled_from([0.0, 0.01, 1.0]), images=st.integers(2, 14), tasks=st.integers(1, 3),
    statistics=st.sampled_from([None, "shared", "each"]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_random_passes(
    channels, side, filters, stages, ways, downsample, slope, images, tasks, statistics, seed
):
    side = max(side, 2**stages) if downsample == "pool" else side
    model = Backbone(channels, side, filters, stages, ways, downsample, slope)
    made = problem(model, images, tasks, statistics, seed)
    expected = composed(made)
    try:
        for most in native.module.Isa.__members__.values():
            native.module.limit_isa(most)
            assert_close(native_pass(made), expected)
    finally:
        native.module.limit_isa(native.module.Isa.amx)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_of_equal_values_wins(seed: int, isa) -> None:
    exact = often_equal(Backbone(1, 16, 6, 3, 4, "pool", 0.5, norm_eps=2.0**-17), 4, seed)
    assert_close(native_pass(exact), composed(exact), 1e-14)


@pytest.mark.parametrize("value", [0.0, 0.75], ids=["zero", "grey"])
def test_constant_images_of_which_each_window_s_first_wins(value: float, isa) -> None:
    # Without any variance in the first case; in the other the border is one.
    model = Backbone(2, 12, 5, 2 if value == 0 else 1, 3, "pool", 0.5)
    made = problem(model, images=3)
    theta, row = on_a_grid(made.theta, 2.0**-20), on_a_grid(made.row, 2.0**-10)
    constant = made._replace(x=torch.full_like(made.x, value), theta=theta, row=row)
    assert_close(native_pass(constant), composed(constant))


@cache
def problem_and_budget(sizes: tuple[int, ...], images: int) -> tuple[Problem, tuple[dict, dict]]:
    made = away_from_ties(Backbone(*sizes), images)
    return made, budget(made)


@pytest.mark.parametrize(
    ("sizes", "images"),
    [((3, 84, 48, 4, 5), 2), ((1, 28, 64, 4, 20), 4)],
    ids=["mini", "omniglot"],
)
def test_float32_error_is_within_four_times_that_of_torch(sizes, images: int, isa) -> None:
    made, (exact, allowed) = problem_and_budget(sizes, images)
    for name, ours in named(made.model, native_pass(made)).items():
        assert error(ours, exact[name]) <= allowed[name], name


MODEL = Backbone(3, 9, 5, 2, 4)


@pytest.mark.parametrize("given", [None, "shared", "each"])
def test_a_row_of_each_task_gives_the_bits_of_its_task_alone(given: str | None) -> None:
    made = problem(MODEL, tasks=3, given=given)
    rows = made.row * torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
    together = native_pass(made._replace(row=rows))
    for t in range(3):
        one = slice(t, t + 1)
        alone = {name: getattr(made, name)[one] for name in ("x", "theta", "labels", "direction")}
        if given == "each":
            alone["statistics"] = Moments(*(s[one] for s in made.statistics))
        found = native_pass(made._replace(row=rows[t], **alone))
        for name, a, b in zip(found._fields, found, together, strict=True):
            assert torch.equal(a, b[one]), name
    with pytest.raises(ValueError, match=r"row must be torch.float64 \[3, 20\].* got .*\[2, 20\]"):
        native_pass(made._replace(row=rows[:2]))


def test_any_layout_gives_the_same_bits() -> None:
    made = problem(MODEL, tasks=3, given="each")
    made = made._replace(theta=made.theta[:1].expand(3, -1))
    expected = native_pass(made)

    def spread(values: Tensor) -> Tensor:
        return torch.stack([values, -values], -1)[..., 0]

    def inside(values: Tensor) -> Tensor:
        return torch.cat([values, -values], -1)[..., : values.shape[-1]]

    for change in (Tensor.contiguous, spread, inside, lambda v: torch.cat([v, v])[: len(v)]):
        moved = made._replace(
            **{name: change(getattr(made, name)) for name in ("x", "theta", "row", "direction")},
            labels=change(made.labels),
            statistics=Moments(*map(change, made.statistics)),
        )
        assert all(map(torch.equal, native_pass(moved), expected))


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_what_is_not_asked_for_changes_nothing_else(downsample: str) -> None:
    model = Backbone(2, 13, 6, 3, 4, downsample)
    made = problem(model, images=5)
    images = passes.prepare(model.net, made.x)
    kept = passes.run(images, made.theta, made.row, made.labels, None, True)
    lost = passes.run(images, made.theta, made.row, made.labels)
    alone = passes.run(images, made.theta, made.row)
    assert kept.kept is not None and lost.kept is None
    assert all(map(torch.equal, lost[:-1], kept[:-1]))
    assert alone.loss is alone.gradient is alone.norm_gradient is None
    for name in ("logits", "mean", "var"):
        assert torch.equal(getattr(alone, name), getattr(kept, name))


@pytest.mark.parametrize("statistics", [None, "shared"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_what_is_not_a_number_wins_its_window(where: str, statistics, isa) -> None:
    made = problem(Backbone(1, 12, 5, 2, 4), 6, 1, statistics)
    made.theta[0, 0 if where == "first" else made.model.sizes[0]] = torch.nan
    ours, expected = native_pass(made), composed(made)
    for name, a, e in zip(Results._fields, ours, expected, strict=True):
        assert torch.equal(a.isnan(), e.isnan()), name
    assert expected.loss.isnan().all()


def test_an_image_that_is_not_a_number_makes_all_so(isa) -> None:
    made = problem(Backbone(1, 12, 5, 2, 4), 6, 1)
    made.x[0, 2, 0, 3, 4] = torch.nan
    assert all(result.isnan().all() for result in native_pass(made)[:6])
