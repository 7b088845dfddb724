"""Calls of the native passes: the same bits whatever runs beside them, memory that comes back, and
input that does not fit.
"""

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from engine import meta
from engine.models.backbone import Backbone
from engine.models.interface import Moments
from kernels import native
from kernels.native import passes
from tests.passes import Problem, Results, native_pass, problem
from tests.test_meta import config, random_episode

pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")

MODEL = Backbone(3, 9, 5, 2, 4)
MODELS = [MODEL, Backbone(1, 18, 20, 3, 4), Backbone(2, 11, 16, 2, 4, "stride")]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def with_threads(count: int, made: Problem) -> Results:
    torch.set_num_threads(count)
    return native_pass(made)


def same(a: Results, b: Results) -> bool:
    return all(map(torch.equal, a, b))


@DTYPES
@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("model", MODELS, ids=["pool", "winograd", "stride"])
def test_any_number_of_threads_gives_the_same_bits(model, tasks, dtype, threads) -> None:
    made = problem(model, 13, tasks).to(dtype)
    expected = with_threads(1, made)
    assert same(with_threads(1, made), expected)
    assert same(with_threads(2, made), expected)
    assert same(with_threads(3, made), expected)


def test_a_large_pass_whose_tasks_all_threads_share_gives_the_same_bits(threads) -> None:
    made = problem(Backbone(3, 84, 48, 2, 5), 30, 2).to(torch.float32)
    size = 2 * 30 * 42**2 * 48 * 4  # x̂ of the first stage and z of the second
    assert size > 2**24, "bytes that csrc/bindings.cpp gives to several tasks at once"
    images = passes.prepare(made.model.net, made.x)
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(passes.run(images, made.theta, made.row, made.labels))
    assert all(map(torch.equal, runs[1][:-1], runs[0][:-1]))
    assert all(map(torch.equal, runs[2][:-1], runs[0][:-1]))


@DTYPES
def test_a_task_does_not_depend_on_its_batch(dtype: torch.dtype, threads) -> None:
    made = problem(MODELS[1], 7, 5, "each").to(dtype)
    together = with_threads(2, made)
    for t in range(5):
        part = slice(t, t + 1)
        statistics = Moments(*(s[part] for s in made.statistics))
        alone = native_pass(made.of(part)._replace(statistics=statistics))
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, together, strict=True))


def test_callers_at_the_same_time_get_the_same_bits(threads) -> None:
    problems = [problem(MODELS[i % 3], 6, 3, seed=i) for i in range(6)]
    expected = [with_threads(1, made) for made in problems]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(2,)) as callers:
        for results in [list(callers.map(native_pass, problems)) for _ in range(10)]:
            assert all(map(same, results, expected))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_makes_threads_of_its_own(threads) -> None:
    made = problem(MODEL, 6, 3)
    expected = with_threads(2, made)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)  # a child that waits for its parent's threads is killed
            code = 0 if same(native_pass(made), expected) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert same(native_pass(made), expected)


def test_meta_steps_do_not_grow(threads) -> None:
    torch.set_num_threads(2)
    cfg = config(image_size=8, targets=1, iterations=10_000, first_order_epochs=0)
    state, episode, process = meta.init_state(cfg), random_episode(cfg), psutil.Process()
    for _ in range(200):
        state, _ = meta.meta_step(state, episode, cfg)
    before = process.memory_info().rss
    for _ in range(2_000):
        state, metrics = meta.meta_step(state, episode, cfg)
    assert metrics.nonfinite is None
    assert process.memory_info().rss - before < 2 * 2**20


def test_blocks_are_reused_and_can_be_released() -> None:
    made = problem(MODEL, 6, 3)
    native.module.release_blocks()
    expected = native_pass(made)
    once = native.module.release_blocks()
    assert once > 0 and native.module.release_blocks() == 0
    for _ in range(20):
        assert same(native_pass(made), expected)
    assert native.module.release_blocks() == once


def test_what_an_earlier_call_left_in_memory_is_never_read() -> None:
    problems = [problem(model, 5, 2, given) for model in MODELS for given in (None, "each")]
    expected = [native_pass(made) for made in problems]
    for made in problems:
        native_pass(made._replace(x=made.x * torch.nan, theta=made.theta * torch.nan))
    assert all(same(native_pass(made), e) for made, e in zip(problems, expected, strict=True))


MADE = problem(MODEL, 3, 2, "each")
ROW, STATISTICS = MADE.row, MADE.statistics


def prepared(x=None, **sizes) -> passes.Images:
    return passes.prepare(MODEL.net._replace(**sizes), MADE.x if x is None else x)


def changed(**arguments) -> passes.Result:
    made = MADE._replace(**arguments)
    return passes.run(prepared(), made.theta, made.row, made.labels, made.statistics, True)


def kept(**arguments) -> passes.Kept:
    return changed(**arguments).kept


def other_images(x=None, **sizes) -> passes.Images:
    return prepared(MADE.x.flip(1) if x is None else x, **sizes)


def tangent(made: passes.Kept, **fields) -> tuple:
    return passes.tangent(made._replace(**fields), MADE.direction)


def run(images: passes.Images, **fields) -> passes.Result:
    return passes.run(images._replace(**fields), MADE.theta, ROW, MADE.labels)


def written_to() -> passes.Kept:
    """By the step of an optimizer, for one."""
    theta = MADE.theta.clone()
    made = kept(theta=theta)
    theta.add_(1)
    return made


def negated() -> torch.Tensor:
    """theta, in memory as −theta."""
    return torch.complex(MADE.theta, -MADE.theta).conj().imag


def labelled(value: int) -> torch.Tensor:
    labels = MADE.labels.clone()
    labels[1, 2] = value
    return labels


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prepared(MADE.x[..., 1:]), r"images: got \(2, 3, 3, 9, 8\); .*3, 9, 9\]"),
        (lambda: prepared(MADE.x[0]), r"images: got \(3, 3, 9, 9\)"),
        (lambda: prepared(MADE.x[:, :0]), r"images: got \(2, 0, 3, 9, 9\); .*N ≥ 1"),
        (lambda: prepared(MADE.x[:0]), r"images: got \(0, 3, 3, 9, 9\); .*T ≥ 1"),
        (lambda: prepared(MADE.x.half()), "takes float32 and float64 on a CPU, got torch.float16"),
        (lambda: prepared(MADE.x.long()), "takes float32 and float64 on a CPU, got torch.int64"),
        (lambda: prepared(MADE.x.to("meta")), "on a CPU, got torch.float64 on meta"),
        (lambda: prepared(stages=17, pool=False), "1 to 16 stages, got 17"),
        (lambda: prepared(stages=0), "1 to 16 stages, got 0"),
        (lambda: prepared(stages=4), "4 stages that pool a side of at least 16, got .*side=9"),
        (lambda: prepared(filters=0), "sizes of at least 1, .*filters=0"),
        (lambda: changed(theta=MADE.theta[:, 1:]), r"theta must be torch.float64 \[2, \d+\]"),
        (lambda: changed(theta=MADE.theta[:1]), r"theta must be .*, got torch.float64 \[1, "),
        (lambda: changed(theta=MADE.theta[0]), "theta must be"),
        (lambda: changed(theta=MADE.theta.float()), "theta must be .*, got torch.float32"),
        (lambda: changed(theta=MADE.theta.to("meta")), "theta must be .* on cpu, got .* on meta"),
        (lambda: changed(row=ROW[:-1]), r"row must be torch.float64 \[20\] .*, got .* \[19\]"),
        (lambda: changed(row=ROW.float()), "row must be torch.float64"),
        (lambda: changed(statistics=STATISTICS._replace(mean=STATISTICS.mean[:1])), "mean must be"),
        (lambda: changed(statistics=STATISTICS._replace(var=STATISTICS.var[0])), "var must be"),
        (lambda: changed(statistics=Moments(ROW, ROW)), r"mean must be torch.float64 \[10\]"),
        (lambda: changed(labels=MADE.labels[:, 1:]), r"labels must be torch.int64 \[2, 3\]"),
        (lambda: changed(labels=MADE.labels[:1]), r"labels must be .*, got torch.int64 \[1, 3\]"),
        (lambda: changed(labels=MADE.labels.int()), "labels must be .*, got torch.int32"),
        (lambda: changed(labels=labelled(4)), "labels: 4 is not in 0..3; number the classes"),
        (lambda: changed(labels=labelled(-1)), "labels: -1 is not in 0..3"),
        (lambda: changed(labels=None), "keep needs labels"),
        (lambda: passes.tangent(changed().kept, MADE.direction[:1]), "direction must be"),
        (lambda: passes.tangent(changed().kept, MADE.direction.float()), "direction must be"),
        (lambda: prepared(eps=-1.0), "eps must be a number from 0 to 1e.30, got -1.0"),
        (lambda: prepared(eps=math.nan), "eps must be .*, got nan"),
        (lambda: prepared(eps=math.inf), "eps must be .*, got inf"),
        (lambda: prepared(eps="1"), "eps must be .*, got '1'"),
        (lambda: prepared(eps=1e300), "eps must be .*, got 1e.300"),
        (lambda: prepared(negative_slope=-0.1), "negative_slope must be .*, got -0.1"),
        (lambda: prepared(negative_slope=math.nan), "negative_slope must be .*, got nan"),
        (lambda: prepared(pool=1), "pool must be a bool and precision a name, got 1"),
        (lambda: prepared(precision=None), "precision a name, got True and None"),
        (lambda: prepared(precision="fp64"), "fp32, bf16x3 and bf16, not in fp64"),
        (lambda: prepared(precision="__doc__"), "not in __doc__; ask for fp32"),
        (lambda: prepared(precision="bf16"), "take float32 images|AVX512-BF16 or AMX, not here"),
        (lambda: prepared(stages=2.0), "stages must be an int up to 4096, got 2.0 of float"),
        (lambda: prepared(channels=True), "channels must be an int .*, got True of bool"),
        (lambda: prepared(filters=-5), "sizes of at least 1, .*filters=-5"),
        (lambda: prepared(filters=2**31), "filters must be an int up to 4096, got 2147483648"),
        (lambda: prepared(ways=10**30), "ways must be an int up to 4096"),
        (lambda: prepared(MADE.x.new_zeros(1, 1, 3, 512, 512), side=512, stages=2, filters=4096,
                          ways=4096), "2147483647 pixels and parameters, got .* and 2.* param"),
        (lambda: passes.prepare(tuple(MODEL.net), MADE.x), "take a kernels.Net, got tuple"),
        (lambda: prepared("x"), "images: must be a tensor, got str"),
        (lambda: prepared(MADE.x.to_sparse()), "x must be dense, .*; use to_dense"),
        (lambda: changed(statistics=(ROW,) * 3), "a mean and a variance, got 3"),
        (lambda: run(prepared(), count=4), "labels must be"),
        (lambda: run(prepared(MADE.x[:, :2]), count=3), "prepare was given 2 images .* run 3"),
        (lambda: run(prepared(), blocks=prepared(side=8, x=MADE.x[..., :8, :8]).blocks),
         "sizes 3 8 5 2 4 pool, run 3 images of float64, sizes 3 9 5 2 4 pool; they must be"),
        (lambda: run(prepared(), net=MODEL.net._replace(eps=0.5)), "must be of one network"),
        (lambda: run(prepared(), net=MODEL.net._replace(filters=6)), "theta must be"),
        (lambda: run(prepared(), dtype=torch.float32), "theta must be"),
        (lambda: run(prepared(), dtype=torch.float16), "takes float32 and float64 on a CPU"),
        (lambda: run(prepared(), device=torch.device("meta")), "on a CPU, got torch.float64 on me"),
        (lambda: run(prepared(), blocks=kept().blocks), "takes the blocks of prepare, got others"),
        (lambda: run(prepared(), blocks=[]), "theta must be"),
        (lambda: passes.run(None, MADE.theta, ROW), "run takes what prepare gave, got NoneType"),
        (lambda: passes.tangent(None, MADE.direction), "tangent takes what run gave, got NoneType"),
        (lambda: tangent(kept(), images=other_images()), "other images or another theta than"),
        (lambda: tangent(kept(), images=other_images(MADE.x[:, :2])), "given 3 .* tangent 2"),
        (lambda: tangent(kept(), images=other_images(MADE.x[:1])), "theta must be"),
        (lambda: tangent(kept(), images=other_images(MADE.x.float())), "theta must be"),
        (lambda: tangent(kept(), images=other_images(ways=3)), "theta must be"),
        (lambda: tangent(kept(), images=other_images(eps=0.5)), "must be of one network"),
        (lambda: tangent(kept(), theta=MADE.theta.clone()), "what run gave was changed since"),
        (lambda: tangent(kept(), blocks=kept(theta=MADE.theta + 1).blocks), "or another theta"),
        (lambda: tangent(kept(), blocks=kept().blocks[::-1]), "other images or another theta"),
        (lambda: tangent(kept(), blocks=kept().blocks[:1]), "other images or another theta"),
        (lambda: tangent(kept(), blocks=prepared().blocks), "takes the blocks of run, got others"),
        (lambda: tangent(kept(), blocks=[None, None]), "takes the blocks of run, got others"),
        (lambda: tangent(written_to()), "or a tensor in it was written to"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_is_read(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_values_whose_signs_are_still_to_be_changed_are_read_as_they_are() -> None:
    made = MADE._replace(theta=negated())
    assert made.theta.is_neg() and same(native_pass(made), native_pass(MADE))


def test_what_another_instruction_set_kept_is_refused() -> None:
    images, made, isa = prepared(), kept(), native.module.isa()
    try:
        if native.module.limit_isa(native.module.Isa.portable) == isa:
            pytest.skip("this machine has one instruction set only")
        with pytest.raises(ValueError, match=f"from {isa.name} to portable between run and"):
            passes.tangent(made, MADE.direction)
        with pytest.raises(ValueError, match=f"from {isa.name} to portable between prepare and"):
            run(images)
    finally:
        native.module.limit_isa(native.module.Isa.amx)


def test_what_was_kept_outlives_the_release_of_blocks() -> None:
    made = kept()
    expected = passes.tangent(made, MADE.direction)
    native.module.release_blocks()
    native_pass(problem(MODEL, 3, 2, seed=1))
    assert all(map(torch.equal, passes.tangent(made, MADE.direction), expected))


def test_no_eps_divides_by_the_variance_alone() -> None:
    images = prepared(eps=0.0)
    found = passes.run(images, MADE.theta, ROW, MADE.labels)
    least = passes.run(prepared(eps=1e-300), MADE.theta, ROW, MADE.labels)
    assert torch.equal(found.gradient, least.gradient) and found.gradient.isfinite().all()
    same_values = passes.prepare(MODEL.net._replace(eps=0.0), torch.ones_like(MADE.x) * 0)
    assert passes.run(same_values, MADE.theta, ROW, MADE.labels).loss.isnan().all()
