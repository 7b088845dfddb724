"""Single ops: every function against `plain` in float64, by an error budget; the public ops and
their derivatives against their definition.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

import kernels
from kernels import cases, plain, triton
from kernels.triton.rows import aligned
from tests.derivatives import to_second_order
from tests.ops import EPS, conv_results, norm_results, randn, update_results, with_infinite_sums
from tests.slow import chosen, slow
from tests.test_elsewhere import CASES
from tests.test_ops import conv, errors, norm_act, second_derivatives, update, value_and_gradients
from tests.ways import WAYS

SMALL = {case.name: case for case in cases.SMALL}
LAYOUTS = "hooks that make dense", "hooks that lay out anew", "negative bit"
UNIT = torch.finfo(torch.float32).eps


def assert_within_budget(results, op: str, *arguments, **options) -> None:
    """Errors of at most twice those of plain torch in float32 and four units of rounding."""
    ours, plains, exact = (
        results(getattr(backend, op), *arguments, dtype=dtype, **options)
        for backend, dtype in (
            (triton, torch.float32),
            (plain, torch.float32),
            (plain, torch.float64),
        )
    )
    for i, (a, p, e) in enumerate(zip(ours, plains, exact, strict=True)):
        assert (a is None) == (e is None), i
        if a is None:
            continue
        assert a.shape == e.shape and a.dtype == torch.float32 and a.isfinite().all(), i
        scale = e.norm().clamp(min=1e-30)
        error, torchs = (((t - e).norm() / scale).item() for t in (a, p))
        assert torchs < 1e-4, f"result {i}: another winner in float32, choose another size or seed"
        assert error <= 2 * torchs + 4 * UNIT, f"result {i}: {error:.1e}, torch {torchs:.1e}"


# tasks, images, channels, filters, side and stride: odd sides and even ones, the smallest one, more
# pixels, channels and filters than one program does.
CONVOLUTIONS = [
    ((2, 3, 2, 3, 5), 1),
    ((2, 3, 2, 3, 5), 2),
    ((1, 2, 17, 4, 6), 2),
    ((1, 1, 70, 17, 2), 1),
    ((1, 1, 3, 66, 2), 1),
    ((1, 1, 1, 1, 1), 1),
    ((1, 1, 1, 1, 1), 2),
]
REST = slow("like sizes that run every day")
EVERY_DAY = [pytest.param(*c, marks=() if c[0][4] in (5, 6) else REST) for c in CONVOLUTIONS]


@pytest.mark.parametrize(("size", "stride"), EVERY_DAY)
def test_conv(size, stride: int) -> None:
    assert_within_budget(conv_results, "conv", size, stride, every=False)


def test_conv_of_every_choice_of_directions() -> None:
    assert_within_budget(conv_results, "conv", (1, 2, 2, 3, 3), 1)


@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize(
    ("size", "slope", "pooled"),
    [((2, 3, 0, 3, 5), 0.01, True), ((1, 5, 0, 66, 4), 0.0, True), ((2, 2, 0, 5, 7), 1.0, False)],
    ids=str,
)
def test_norm_act(size, slope: float, pooled: bool, running: bool) -> None:
    assert_within_budget(norm_results, "norm_act", size, slope, pooled, running, every=False)


@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
def test_norm_act_of_every_choice_of_directions(running: bool) -> None:
    assert_within_budget(norm_results, "norm_act", (1, 2, 0, 2, 3), 0.1, True, running)


@pytest.mark.parametrize("sizes", [(1,), (3, 0, 5), (2_500, 7)], ids=str)
def test_update(sizes: tuple[int, ...]) -> None:
    assert_within_budget(update_results, "update", 2, sizes)
    assert_within_budget(partial(update_results, each=True), "update", 2, sizes)


@pytest.mark.parametrize("case", chosen(SMALL, ["pool-odd", "stride"]))
def test_public_ops_to_second_order(case) -> None:
    step = torch.arange(case.tasks).flip(0) % 3
    single = torch.float32
    for make, inputs in (
        (lambda ops: conv(ops, case), cases.conv_inputs(case, single)),
        (lambda ops: norm_act(ops, case, step), cases.norm_inputs(case, dtype=single)),
    ):
        for outputs in (value_and_gradients, second_derivatives):
            ours, torchs = errors(make, inputs, outputs)
            assert torchs < 1e-4 and ours <= 2 * torchs + 4 * UNIT


def test_public_update_to_second_order() -> None:
    *inputs, sizes = cases.update_inputs(3, (4, 1, 6), torch.float32)
    for outputs in (value_and_gradients, second_derivatives):
        ours, torchs = errors(lambda ops: update(ops, sizes), inputs, outputs)
        assert ours <= 2 * torchs + 4 * UNIT


@pytest.mark.parametrize("way", chosen(LAYOUTS, ["hooks that lay out anew"]))
@pytest.mark.parametrize("op", ["conv", "norm", "update"])
def test_public_ops_trust_no_layout(op: str, way: str) -> None:
    case = CASES[op]
    inputs = case.inputs(torch.float32)
    expected = to_second_order(case.make(kernels), inputs)
    found = WAYS[way](case.make(kernels), inputs)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for what is infinite
@pytest.mark.parametrize("pooled", [False, True])
def test_what_goes_through_given_statistics_is_0_whatever_the_sums(pooled: bool) -> None:
    ours, expected = (with_infinite_sums(b.norm_act, pooled) for b in (triton, plain))
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-3)


def test_tasks_further_apart_than_32_bits_count(tmp_path) -> None:
    """In a file that is a hole but for what is written."""
    far = torch.from_file(str(tmp_path / "far"), shared=True, size=5 * 2**29).view(5, -1)
    theta, w = far[:, :8], far[:, 64 : 64 + 2 * 9 * 3].view(5, 2, 3, 3, 3).permute(0, 1, 4, 2, 3)
    theta.copy_(randn(0, 5, 8))
    w.copy_(randn(1, *w.shape))
    grad, rates, sizes = randn(2, 5, 8).float(), torch.tensor([0.5, 0.25]), (3, 5)
    x, dz = randn(3, 5, 1, 3, 3, 3).float(), randn(4, 5, 1, 2, 3, 3).float()
    for run, operands in (
        (lambda t: triton.update.fwd(t, grad, rates, sizes), theta),
        (lambda t: triton.update.bwd(t, grad, rates, sizes)[0], theta),
        (lambda t: triton.conv.fwd(x, t, 1, 1), w),
        (lambda t: triton.conv.bwd(dz, x, t, 1, 1)[0], w),
        (aligned, theta),
    ):
        assert torch.equal(run(operands), run(operands.clone()))


@pytest.mark.parametrize("clamp", [0.0, 0.5])
def test_adam(clamp: float) -> None:
    tensors = [randn(i, 3, 700) for i in range(4)]
    tensors[2] = tensors[2].square()
    options = 3e-3, 1.7, 0.9, 0.99, clamp
    exact = plain.update.adam(*tensors, *options)
    singles = [t.float() for t in tensors]
    results = triton.update.adam(*singles, *options)
    for ours, expected in zip(results, exact, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=4 * UNIT, atol=UNIT)
    scales = torch.tensor(options[:2], dtype=torch.float64)
    again = triton.update.adam(*singles, *scales, *options[2:])
    assert all(map(torch.equal, again, results))


def windows(*rows: list[float]) -> Tensor:
    """2×2 images of one channel [1, N, 1, 2, 2]"""
    return torch.tensor(rows).view(1, -1, 1, 2, 2)


NAN = float("nan")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for what is not a number
@pytest.mark.parametrize("gain", [1.0, -2.0, 0.0])
def test_winners_are_those_of_torch(gain: float) -> None:
    z = windows([1, 1, 0, 1], [0, 2, 2, 1], [3, 3, 3, 3], [-1, -2, -2, 0], [0, 1, 5, 5])
    z = torch.cat([z, windows([1, NAN, 3, 0], [NAN, 5, 1, NAN], [NAN, 1, 2, 3], [1, 2, 3, NAN])], 1)
    gains, zeros = torch.full((1, 1), gain), torch.zeros(1, 1)
    options = EPS, 0.5, True, (zeros, zeros + 1)
    y, saved = triton.norm_act.fwd(z, gains, zeros, *options)
    expected, plains = plain.norm_act.fwd(z, gains, zeros, *options)
    assert saved.winners.flatten().tolist() == plains.index.flatten().tolist()
    torch.testing.assert_close(y, expected, equal_nan=True)


def everything() -> list[Tensor]:
    """Results of single ops, of one size each."""
    single = torch.float32
    results = conv_results(triton.conv, (2, 2, 3, 2, 3), 1, single, False)
    results += norm_results(triton.norm_act, (2, 2, 0, 2, 3), 0.01, True, False, single, False)
    results += update_results(triton.update, 2, (3, 2), single)
    results += update_results(triton.update, 2, (3, 2), single, each=True)
    return [r for r in results if r is not None]


def test_outputs_are_written_in_full_and_have_the_same_bits_again(request) -> None:
    expected, unwritten = everything(), request.getfixturevalue("unwritten")
    assert all(map(torch.equal, everything(), expected)) and unwritten


def test_any_layout_gives_the_same_bits() -> None:
    nhwc = [randn(i, 2, 3, 4, 4, 5).float().permute(0, 1, 4, 2, 3) for i in (0, 1)]
    w = randn(2, 2, 7, 3, 3, 5).float().permute(0, 1, 4, 2, 3)
    gain = randn(3, 2, 5).float()

    def results(change) -> list[Tensor]:
        x, dy = map(change, nhwc)
        z = kernels.task_conv2d(x, change(w))
        y, saved = triton.norm_act.fwd(x, change(gain), change(gain), EPS, 0.01, False, None)
        gradients = triton.conv.bwd(change(z), x, change(w), 1, 1)
        return [z, *gradients, y, *triton.norm_act.bwd(saved, change(gain), dy)]

    def spread(x: Tensor) -> Tensor:
        return torch.stack([x, x], -1)[..., 0]

    expected = results(lambda x: x)
    for change in (Tensor.contiguous, spread):
        assert all(map(torch.equal, results(change), expected))
    shared = triton.conv.fwd(nhwc[0][:1].expand(2, -1, -1, -1, -1), w[:1].expand_as(w), 1, 1)
    assert torch.equal(shared[0], expected[0][0]) and torch.equal(shared[1], shared[0])


X, W, G = torch.ones(2, 1, 3, 4, 4), torch.ones(2, 5, 3, 3, 3), torch.ones(2, 3)
HUGE = torch.ones(1, 1, 1, 1, 1).expand(2**11, 2**11, 2**3, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: triton.conv.fwd(X[:, :0], W, 1, 1), "must be non-empty and agree"),
        (lambda: triton.conv.fwd(X[:1], W, 1, 1), "must be non-empty and agree"),
        (lambda: triton.conv.fwd(X, W[:, :, :, :2, :2], 1, 1), "3×3 filters, padding 1"),
        (lambda: triton.conv.fwd(X, W, 3, 1), "stride 3; plain takes"),
        (lambda: triton.conv.fwd(X, W.double(), 1, 1), "w must be torch.float32"),
        (lambda: triton.conv.fwd(X.double(), W.double(), 1, 1), "takes float32, not float64"),
        (lambda: triton.conv.fwd(X.to("meta"), W, 1, 1), "not on meta"),
        (lambda: triton.conv.bwd(X, X, W, 1, 1), r"dz must be torch.float32 \[2, 1, 5, 4, 4\]"),
        (lambda: triton.conv.tan_fwd(X, W, X[:, :, :1], W, 1, 1), "x must be"),
        (lambda: triton.norm_act.fwd(X[..., :2], G, G, EPS, 0.0, True, None), "got 4×2"),
        (lambda: triton.norm_act.fwd(X[..., :1, :1], G, G, EPS, 0.0, True, None), "at least 2×2"),
        (lambda: triton.norm_act.fwd(X, G[:1], G, EPS, 0.0, True, None), "gain must be"),
        (lambda: triton.norm_act.fwd(X, G, G, EPS, 0.0, True, (G, G[:, :2])), "variance must be"),
        (lambda: triton.norm_act.fwd(HUGE, *G[:1, :1].expand(2, 2**11, 8), EPS, 0.0, True, None),
         "its kernels count to 2147483647; use fewer tasks"),
        (lambda: triton.update.fwd(G, G[:, :2], torch.ones(1), (3,)), "grad must be"),
        (lambda: triton.update.fwd(G, G, torch.ones(2), (3,)), "rates must be"),
        (lambda: triton.update.fwd(G, G, torch.ones(2), None), "rates must be"),
        (lambda: triton.update.fwd(G, G, torch.ones(2), (4, -1)), "sizes must not be negative"),
        (lambda: triton.update.bwd(G, G, torch.ones(1, dtype=torch.float64), (3,)), "rates must"),
        (lambda: triton.update.fwd(G[:0], G[:0], torch.ones(1), (3,)), r"nothing to update"),
        (lambda: triton.update.fwd(*G[:1, :1].expand(2, 2**11, 2**20), torch.ones(1), (2**20,)),
         "its kernels count to 2147483647"),
        (lambda: triton.update.adam(*G[:1, :1].expand(4, 2**31), 1.0, 1.0, 0.9, 0.9),
         "its kernels count to 2147483647"),
        (lambda: triton.conv.bwd(None, X, W, 1, 1), "dz must be .* got None"),
        (lambda: triton.norm_act.fwd(X, None, G, EPS, 0.0, True, None), "gain must be .* got None"),
        (lambda: triton.norm_act.fwd(X, G, G, EPS, 0.0, True, (G, None)), "variance .* got None"),
        (lambda: triton.update.fwd(G, G, None, (3,)), "rates must be a tensor, got NoneType"),
        (lambda: triton.update.tan_fwd(G, None, None, G, None, (3,)), "rates must be .* got None"),
        (lambda: triton.update.adam(G, G, G, None, 1.0, 1.0, 0.9, 0.9), "grad must be .* got None"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_is_read(call, message: str) -> None:
    with pytest.raises(ValueError, match=f"triton.*{message}"):
        call()


def test_gradients_that_do_not_fit_what_was_saved_are_refused() -> None:
    y, saved = triton.norm_act.fwd(X, G, G, EPS, 0.01, True, None)
    for call in (
        lambda: triton.norm_act.bwd(saved, G, X),
        lambda: triton.norm_act.bwd(saved, G[:1], y),
        lambda: triton.norm_act.tan_fwd(saved, G, y),
        lambda: triton.norm_act.tan_fwd(saved, G, X, G.double()),
    ):
        with pytest.raises(ValueError, match="triton norm_act: .* must be torch.float32"):
            call()


def test_other_geometries_are_refused_with_a_cure() -> None:
    with pytest.raises(kernels.BackendError, match="triton conv takes .*; ask for 'auto'"):
        kernels.task_conv2d(X, W, padding=0)
    with pytest.raises(kernels.BackendError, match="triton norm_act takes .*; ask for 'auto'"):
        kernels.per_step_batch_norm(X[..., :2], G, G)
