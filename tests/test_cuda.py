"""The CUDA backend: every function against `plain`, emulated on a CPU and, where there is one, on a
GPU.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import kernels
from engine import meta
from kernels import cases, cuda, plain
from kernels.check.rows import PARTS, Subject, rows
from kernels.cuda import tensors
from tests import emulated
from tests.derivatives import to_second_order
from tests.ops import EPS, assert_close, largest_error, norm_results, randn, update_results
from tests.planted import FAULTS, SMALL, assert_caught, assert_clean
from tests.test_elsewhere import CASES
from tests.test_native_ops import BY_SIZE
from tests.ways import WAYS

SEGMENTS = pytest.mark.parametrize("sizes", [(1,), (3, 0, 5), (2_500, 7, 1_024)], ids=str)


@pytest.fixture(scope="session")
def emulation(tmp_path_factory) -> Path:
    return emulated.build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["emulated", "gpu"])
def device(request) -> Iterator[str]:
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("torch finds no GPU")
        refused = cuda.refuses(torch.device("cuda"), torch.float32)
        if refused:
            pytest.skip(refused)
        yield "cuda"
        return
    with emulated.in_place(request.getfixturevalue("emulation")):
        yield "cpu"


@BY_SIZE
@pytest.mark.parametrize(("slope", "pooled"), [(0.01, True), (0.0, True), (1.0, False)])
@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
def test_norm_act_is_that_of_plain(size, slope, pooled, given, device) -> None:
    size = size if size[4] > 1 or not pooled else (*size[:4], 3)
    results = partial(norm_results, size=size, slope=slope, pooled=pooled, running=given)
    pairs = zip(*(results(b.norm_act, device=device) for b in (cuda, plain)), strict=True)
    for ours, expected in pairs:
        # One value is its own mean: what is left of it is rounding, times 1/√ε.
        assert_close(ours, expected, 1e-10 if size[1] * size[4] > 1 or given else 1e-7)


def test_tiles_of_several_batches_are_those_of_plain(device) -> None:
    z, dy = randn(0, 1, 1, 128, 130, 130, device=device), randn(1, 1, 1, 128, 65, 65, device=device)
    gain, bias = (randn(i, 1, 128, device=device) for i in (2, 3))
    runs = []
    for backend in (cuda.norm_act, plain.norm_act):
        y, saved = backend.fwd(z, gain, bias, EPS, 0.1, True, None)
        y_dot, tangent = backend.tan_fwd(saved, gain, z.flip(3))
        runs.append([y, saved.mean, saved.var, *backend.bwd(saved, gain, dy), y_dot])
        runs[-1] += backend.tan_bwd(saved, tangent, gain, dy, dy.flip(3))
    for ours, expected in zip(*runs, strict=True):
        assert_close(ours, expected, 1e-10)


@pytest.mark.parametrize("tasks", [1, 3])
@SEGMENTS
@pytest.mark.parametrize("each", [False, True], ids=["segments", "numbers"])
def test_update_is_that_of_plain(tasks: int, sizes: tuple[int, ...], each: bool, device) -> None:
    results = partial(update_results, tasks=tasks, sizes=sizes, device=device, each=each)
    for ours, expected in zip(*(results(b.update) for b in (cuda, plain)), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("held", ["numbers", "tensors"])
@pytest.mark.parametrize("clamp", [0.0, 0.3])
def test_adam_is_that_of_plain(dtype: torch.dtype, held: str, clamp: float, device) -> None:
    ours = expected = [randn(i, 1_000, dtype=dtype, device=device) for i in (0, 1)]
    ours = expected = [*ours, randn(2, 1_000, dtype=dtype, device=device) ** 2]
    for step in (1, 2, 30_000):
        grad = randn(step, 1_000, dtype=dtype, device=device)
        grad[0] = torch.nan
        given = numbers = meta.adam_scales(1e-3, 0.9, 0.999, step)
        if held == "tensors":
            given = torch.tensor(numbers, dtype=torch.float64, device=device)
        ours = cuda.update.adam(*ours, grad, *given, 0.9, 0.999, clamp)
        expected = plain.update.adam(*expected, grad, *numbers, 0.9, 0.999, clamp)
        for a, b in zip(ours, expected, strict=True):
            assert a[0].isnan() and b[0].isnan()
            assert_close(a[1:], b[1:], 1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("size", [(3, 6, 6, 48, 13), (2, 4, 48, 70, 7)], ids=str)
def test_float32_error_is_within_twice_that_of_plain(size, device) -> None:
    # Without winners and masks: a different one is no rounding error.
    norm = partial(norm_results, size=size, slope=1.0, pooled=False, running=False, device=device)
    update = partial(update_results, tasks=3, sizes=(2_500, 7, 1_024), device=device)
    for results, op in ((norm, "norm_act"), (update, "update")):
        ours, plains = (results(getattr(b, op), dtype=torch.float32) for b in (cuda, plain))
        exact = results(getattr(plain, op), dtype=torch.float64)
        error, limit = largest_error(ours, plains, exact)
        assert error <= 2 * limit + torch.finfo(torch.float32).eps


def test_variance_survives_a_large_mean(device) -> None:
    z = randn(0, 2, 3, 48, 10, 10, dtype=torch.float32, device=device) + 10_000
    one = torch.ones(2, 48, device=device)
    _, saved = cuda.norm_act.fwd(z, one, one, EPS, 0.0, True, None)
    exact = z.double()
    assert_close(saved.mean.double(), exact.mean((1, 3, 4)), 1e-7)
    assert_close(saved.var.double(), exact.var((1, 3, 4), correction=0), 1e-6)


@pytest.mark.parametrize("case", cases.SMALL, ids=lambda case: case.name)
def test_public_ops_differentiate_twice(case, device) -> None:
    z, gain, bias = (t.to(device).requires_grad_() for t in cases.norm_inputs(case))
    theta, grad, rates, sizes = cases.update_inputs(2, (4, 3))
    flat = [t.to(device).requires_grad_() for t in (theta, grad, rates)]

    def normalised(*inputs: Tensor) -> Tensor:
        options = {"negative_slope": case.negative_slope, "pool": case.pool}
        return kernels.per_step_batch_norm(*inputs, 1, **options)[0]

    def updated(*inputs: Tensor) -> Tensor:
        return kernels.lslr_update(*inputs, sizes)

    each = [*flat[:2], randn(3, 7, device=str(device)).requires_grad_()]
    with kernels.use("cuda"):
        for f, inputs in (
            (normalised, (z, gain, bias)),
            (updated, flat),
            (kernels.elementwise_update, each),
        ):
            assert gradcheck(f, inputs, fast_mode=True)
            assert gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "way", ["hooks that make dense", "hooks that lay out anew", "negative bit"]
)
def test_public_ops_trust_no_layout(way: str, device) -> None:
    case = CASES["norm"]
    inputs = tuple(t.to(device) for t in case.inputs())
    with kernels.use("cuda"):
        expected = to_second_order(case.make(kernels), inputs)
        found = WAYS[way](case.make(kernels), inputs)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", cuda.OPS)
@pytest.mark.parametrize("part", PARTS)
def test_the_check_sees_a_wrong_kernel(op: str, part: str, device) -> None:
    here = Subject(torch.device(device), "cuda", None)
    assert_clean(rows([here], SMALL))
    for fault in FAULTS:
        assert_caught(here, op, part, fault)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_winners_are_those_of_torch(dtype: torch.dtype, device) -> None:
    z = torch.randint(-1, 2, (2, 3, 8, 7, 7), generator=torch.Generator().manual_seed(0))
    z = z.to(device, dtype)  # of few values, which tie
    z[0, 0, 1, 0, 1] = z[1, 2, 5, 4, 4] = torch.nan
    gain = randn(1, 2, 8, dtype=dtype, device=device)
    gain[:, 3] = 0.0
    zero = torch.zeros_like(gain)
    _, saved = cuda.norm_act.fwd(z, gain, zero, EPS, 0.1, True, (zero, zero + 1))
    signed = z * gain.sign()[:, None, :, None, None]
    _, index = F.max_pool2d(signed.flatten(0, 1), 2, return_indices=True)
    place = index // 7 % 2 * 2 + index % 7 % 2
    assert torch.equal(saved.winners.flatten(0, 1).long(), place)


def everything(device: str, change=lambda x: x, tasks: int = 3) -> list[Tensor]:
    """Results of every function in float32, on inputs that `change` passes on."""
    results = []
    for c, side, pooled in ((48, 9, True), (6, 8, False), (5, 7, True)):
        z, z_dot = (
            change(randn(i, 3, 4, c, side, side, dtype=torch.float32, device=device)[:tasks])
            for i in (0, 1)
        )
        gain, bias = (
            change(randn(i, 3, c, dtype=torch.float32, device=device)[:tasks]) for i in (2, 3)
        )
        y, saved = cuda.norm_act.fwd(z, gain, bias, EPS, 0.1, pooled, None)
        dy = change(y)
        y_dot, tangent = cuda.norm_act.tan_fwd(saved, gain, z_dot, bias, gain)
        results += [y, *cuda.norm_act.bwd(saved, gain, dy), y_dot]
        results += cuda.norm_act.tan_bwd(saved, tangent, gain, dy, change(y_dot), bias)
    theta, grad = (
        change(randn(i, 3, 3_000, dtype=torch.float32, device=device)[:tasks]) for i in (4, 5)
    )
    rates = randn(6, 2, dtype=torch.float32, device=device)
    results.append(cuda.update.fwd(theta, grad, rates, (10, 2_990)))
    results += cuda.update.bwd(theta, grad, rates, (10, 2_990))
    each = randn(7, 3_000, dtype=torch.float32, device=device)
    results.append(cuda.update.fwd(theta, grad, each, None))
    return [*results, *cuda.update.bwd(theta, grad, each, None)]


def test_the_same_inputs_give_the_same_bits(device, request) -> None:
    expected = everything(device)
    for _ in range(3):
        assert all(map(torch.equal, everything(device), expected))
    if device == "cpu":
        with emulated.backwards(request.getfixturevalue("emulation")):
            assert all(map(torch.equal, everything(device), expected))


def test_a_task_does_not_depend_on_its_batch(device) -> None:
    alone, together = everything(device, tasks=1), everything(device)
    assert all(torch.equal(a, b[:1]) for a, b in zip(alone, together, strict=True))


def test_any_layout_gives_the_same_bits(device) -> None:
    def spread(x: Tensor) -> Tensor:
        return torch.stack([x, x], -1)[..., 0]

    def misaligned(x: Tensor) -> Tensor:
        """Of the same strides, an element further on."""
        memory = torch.cat([x.new_zeros(1), x.as_strided((x.numel(),), (1,))])
        return memory[1:].as_strided(x.shape, x.stride())

    expected = everything(device)
    for change in (Tensor.contiguous, spread, misaligned, lambda x: torch.cat([x, x])[: len(x)]):
        assert all(map(torch.equal, everything(device, change), expected))
    shared = everything(device, lambda x: x[:1].expand_as(x))
    assert all(torch.equal(r[1], r[0]) and torch.equal(r[2], r[0]) for r in shared)


def test_memory_that_nobody_wrote_is_never_read(device, monkeypatch) -> None:
    expected = everything(device)
    for name in ("empty", "empty_like", "empty_strided"):
        make = getattr(torch, name)

        def filled(*arguments, make=make, **options) -> Tensor:
            tensor = make(*arguments, **options)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 255)

        monkeypatch.setattr(torch, name, filled)
    assert all(map(torch.equal, everything(device), expected))


def test_a_graph_replays_with_another_rate(device) -> None:
    if device == "cpu":
        pytest.skip("a CPU has no CUDA graphs")
    param, first, second, grad = (randn(i, 999, device=device) ** 2 for i in range(4))
    scales = torch.ones(2, dtype=torch.float64, device=device)
    adam = partial(cuda.update.adam, param, first, second, grad, beta1=0.9, beta2=0.999)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        everything(device), adam(rate=scales[0], correction=scales[1])  # as later calls find it
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        stepped = adam(rate=scales[0], correction=scales[1])
    for rate, correction in ((0.5, 1.0), (0.25, 7.0)):
        scales[0], scales[1] = rate, correction
        graph.replay()
        for ours, expected in zip(stepped, adam(rate=rate, correction=correction), strict=True):
            assert_close(ours, expected, 1e-14)


X, G = torch.ones(2, 1, 3, 4, 4), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cuda.norm_act.fwd(X[..., :2], G, G, EPS, 0.0, True, None), "got 4×2; plain"),
        (lambda: cuda.norm_act.fwd(X[..., :1, :1], G, G, EPS, 0.0, True, None), "at least 2×2"),
        (lambda: cuda.norm_act.fwd(X, G[:1], G, EPS, 0.0, True, None), "gain must be"),
        (lambda: cuda.norm_act.fwd(X, G, G, EPS, 0.0, True, (G, G[:, :2])), "variance must be"),
        (lambda: cuda.norm_act.fwd(X.half(), G, G, EPS, 0.0, True, None), "takes float32 and"),
        (lambda: cuda.update.fwd(G, G[:, :2], torch.ones(1), (3,)), "grad must be"),
        (lambda: cuda.update.fwd(G, G, torch.ones(2), (4, -1)), "sizes must not be negative"),
        (lambda: cuda.update.fwd(G, G, torch.ones(2), None), "rates must be"),
        (lambda: cuda.update.bwd(G, G, torch.ones(1, dtype=torch.float64), (3,)), "rates must"),
        (
            lambda: cuda.update.adam(G, G, G, G, torch.ones(1), 1.0, 0.9, 0.9),
            "rate and correction must be numbers",
        ),
        (lambda: cuda.norm_act.fwd(X, None, G, EPS, 0.0, True, None), "gain must be .* got None"),
        (lambda: cuda.norm_act.fwd(X, G, G, EPS, 0.0, True, (G, None)), "variance .* got None"),
        (lambda: cuda.update.fwd(G, G, None, None), "rates must be a tensor, got NoneType"),
        (lambda: cuda.update.tan_fwd(G, None, None, G, None, None), "rates must be .* got None"),
        (lambda: cuda.update.adam(G, G, G, None, 1.0, 1.0, 0.9, 0.9), "grad must be .* got None"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(call, message: str, emulation) -> None:
    with emulated.in_place(emulation), pytest.raises(ValueError, match=f"^cuda .*{message}"):
        call()


@pytest.mark.skipif(cuda.module is None, reason=f"cuda module: {cuda.reason}")
def test_tensors_of_a_cpu_are_refused_in_one_line() -> None:
    for call in (
        lambda: cuda.norm_act.fwd(X, G, G, EPS, 0.0, True, None),
        lambda: cuda.update.fwd(G, G, torch.ones(1), (3,)),
        lambda: cuda.update.adam(G, G, G, G, 0.1, 1.0, 0.9, 0.9),
    ):
        with pytest.raises(ValueError, match="takes float32 and float64 on a GPU, got") as error:
            call()
        assert "\n" not in str(error.value)
    with kernels.use("cuda"), pytest.raises(kernels.BackendError, match="runs on a GPU, not on"):
        kernels.lslr_update(G, G, torch.ones(1), (3,))


@pytest.mark.skipif(cuda.module is None, reason=f"cuda module: {cuda.reason}")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_module_loads_without_a_driver_and_says_what_is_missing() -> None:
    assert cuda.module.version() and "90" in cuda.module.architectures()
    refused = tensors.refusal(torch.device("cuda", 0))
    assert refused.startswith("cuda: ") and "\n" not in refused
