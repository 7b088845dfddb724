"""The native single ops: every function against `plain`, for awkward sizes, layouts, numbers of
threads and instruction sets.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from kernels import native, plain
from kernels.net import Net
from kernels.plain.lstm import SIZES as LSTM_SIZES
from kernels.tensors import Tangent
from tests.ops import (
    EPS,
    assert_close,
    conv_results,
    largest_error,
    norm_results,
    randn,
    update_results,
    with_infinite_sums,
)
from tests.slow import ALL

pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")

# tasks, images, channels, filters, side: vectors of every width with something left over, a chunk
# of images and one more, the smallest sides.
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 1, 3, 2),
    (3, 5, 3, 6, 7),
    (1, 9, 5, 1, 4),
    (2, 4, 6, 5, 5),
    (3, 1, 48, 70, 3),
    (1, 2, 70, 64, 6),
    (2, 7, 64, 48, 5),
    (3, 6, 6, 48, 13),
]
ids = "x".join
BY_SIZE = pytest.mark.parametrize("size", SIZES, ids=lambda size: ids(map(str, size)))


@BY_SIZE
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_is_that_of_plain(size, stride: int, isa) -> None:
    pairs = zip(*(conv_results(b.conv, size, stride) for b in (native, plain)), strict=True)
    for ours, expected in pairs:
        assert_close(ours, expected)


@pytest.mark.parametrize("kernel", [1, 5, 9])
@BY_SIZE
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_of_other_filters_is_that_of_plain(size, stride: int, kernel: int, isa) -> None:
    results = (conv_results(b.conv, size, stride, kernel=kernel) for b in (native, plain))
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected)


@BY_SIZE
@pytest.mark.parametrize(("slope", "pooled"), [(0.01, True), (0.0, True), (1.0, False)])
@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
def test_norm_act_is_that_of_plain(size, slope: float, pooled: bool, given: bool, isa) -> None:
    size = size if size[4] > 1 or not pooled else (*size[:4], 3)
    arguments = size, slope, pooled, given
    pairs = zip(*(norm_results(b.norm_act, *arguments) for b in (native, plain)), strict=True)
    for ours, expected in pairs:
        # One value is its own mean: what is left of it is rounding, times 1/√ε.
        assert_close(ours, expected, 1e-10 if size[1] * size[4] > 1 or given else 1e-7)


@pytest.mark.parametrize("pooled", [False, True])
def test_what_goes_through_given_statistics_is_0_whatever_the_sums(pooled: bool, isa) -> None:
    ours, expected = (with_infinite_sums(b.norm_act, pooled) for b in (native, plain))
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("sizes", [(1,), (3, 0, 5), (20_000, 7, 8_192)], ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["segments", "numbers"])
def test_update_is_that_of_plain(tasks: int, sizes: tuple[int, ...], each: bool, isa) -> None:
    results = partial(update_results, tasks=tasks, sizes=sizes, each=each)
    pairs = zip(*(results(b.update) for b in (native, plain)), strict=True)
    for ours, expected in pairs:
        assert_close(ours, expected)


LARGE = (  # worth more than one thread; rows of tiles, and longer sums of filters, are shared out
    (1, 3, 16, 24, 14),  # tiles that the edge cuts
    (3, 6, 6, 48, 13),
    (1, 9, 5, 64, 12),
    (2, 4, 48, 48, 7),
    (1, 5, 32, 64, 10),
    (1, 26, 96, 320, 6),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, threads) -> None:
    def everything() -> list[Tensor | None]:
        results = update_results(native.update, 3, (20_000, 7, 8_192), dtype)
        results += update_results(native.update, 3, (20_000, 7, 8_192), dtype, each=True)
        for size in LARGE[: None if dtype == torch.float32 else 2]:
            results += conv_results(native.conv, size, 1, dtype)
            results += conv_results(native.conv, size, 2, dtype)
            results += conv_results(native.conv, size, 1, dtype, kernel=1)
            results += conv_results(native.conv, size, 2, dtype, kernel=5)
            for pooled in (True, False):
                results += norm_results(native.norm_act, size, 0.01, pooled, False, dtype)
        return results

    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append([r for r in everything() if r is not None])
    for others in runs[1:]:
        assert all(map(torch.equal, others, runs[0]))


@pytest.mark.parametrize("size", LARGE, ids=str)
def test_float32_error_is_a_small_multiple_of_that_of_plain(size, isa) -> None:
    if size == LARGE[-1] and isa in ("portable", "avx2") and not ALL:
        pytest.skip("takes half a minute; set MAMLPP_SLOW=1")

    # Without winners and masks: a different one is no rounding error. The gradients and tangents of
    # 3×3 convolutions have Winograd's 4×4 tiles.
    def value(*arguments, **kinds):
        return conv_results(*arguments, **kinds)[:1]

    for results, ops, rest, factor in (
        (value, "conv", (1,), 2),
        (conv_results, "conv", (1,), 4),
        (partial(conv_results, kernel=1), "conv", (1,), 2),
        (partial(conv_results, kernel=5), "conv", (1,), 2),
        (norm_results, "norm_act", (1.0, False, False), 2),
    ):
        ours, plains = (
            results(getattr(b, ops), size, *rest, dtype=torch.float32) for b in (native, plain)
        )
        exact = results(getattr(plain, ops), size, *rest, dtype=torch.float64)
        error, limit = largest_error(ours, plains, exact)
        assert error <= factor * limit + torch.finfo(torch.float32).eps


def test_what_an_earlier_call_left_in_memory_is_never_read() -> None:
    def everything(factor: float) -> list[Tensor]:
        results = []
        for size in ((2, 3, 5, 6, 5), (1, 5, 3, 16, 4)):
            t, n, c, f, side = size
            x, w, dz = (
                randn(0, t, n, c, side, side),
                randn(1, t, f, c, 3, 3),
                randn(2, t, n, f, side, side),
            )
            x, w, dz = (v * factor for v in (x, w, dz))
            gain = bias = randn(3, t, f) * factor
            results += [native.conv.fwd(x, w, 1, 1), *native.conv.bwd(dz, x, w, 1, 1)]
            for size in (1, 5):
                w = randn(1, t, f, c, size, size) * factor
                results.append(native.conv.fwd(x, w, 1, size // 2))
                results += native.conv.bwd(dz, x, w, 1, size // 2)
            y, saved = native.norm_act.fwd(dz, gain, bias, EPS, 0.01, True, None)
            _, tangent = native.norm_act.tan_fwd(saved, gain, dz)
            results += [y, *native.norm_act.bwd(saved, gain, y)]
            results += native.norm_act.tan_bwd(saved, tangent, gain, y, y)
        return results

    expected = everything(1.0)
    everything(float("nan"))
    assert all(map(torch.equal, everything(1.0), expected))


def test_any_layout_gives_the_same_bits() -> None:
    nhwc = [randn(i, 2, 3, 6, 6, 5).permute(0, 1, 4, 2, 3) for i in (0, 1)]
    w, w1 = (randn(2, 2, 7, k, k, 5).permute(0, 1, 4, 2, 3) for k in (3, 1))
    gain = randn(3, 2, 5)

    def everything(change) -> list[Tensor]:
        x, dy = map(change, nhwc)
        z = native.conv.fwd(x, change(w), 1, 1)
        y, saved = native.norm_act.fwd(x, change(gain), change(gain), EPS, 0.01, False, None)
        results = [z, *native.conv.bwd(change(z), x, change(w), 1, 1), y]
        z1 = native.conv.fwd(x, change(w1), 1, 0)
        results += [z1, *native.conv.bwd(change(z1), x, change(w1), 1, 0)]
        return results + [*native.norm_act.bwd(saved, change(gain), dy)]

    def spread(x: Tensor) -> Tensor:
        return torch.stack([x, x], -1)[..., 0]

    expected = everything(lambda x: x)
    for change in (Tensor.contiguous, spread, lambda x: torch.cat([x, x])[:2]):
        assert all(map(torch.equal, everything(change), expected))
    shared = native.conv.fwd(nhwc[0][:1].expand(2, -1, -1, -1, -1), w[:1].expand_as(w), 1, 1)
    assert torch.equal(shared[0], expected[0][0]) and torch.equal(shared[1], shared[0])


def test_winners_of_another_instruction_set_are_refused() -> None:
    z, gain = randn(0, 1, 2, 48, 4, 4), randn(1, 1, 48)
    y, saved = native.norm_act.fwd(z, gain, gain, EPS, 0.01, True, None)
    try:
        native.module.limit_isa(native.module.Isa.portable)
        if native.module.float64.winner_words(saved.shape) == saved.winners.shape[2]:
            pytest.skip("this machine has vectors of one width only")
        with pytest.raises(ValueError, match="instruction set changed between fwd and bwd"):
            native.norm_act.bwd(saved, gain, y)
    finally:
        native.module.limit_isa(native.module.Isa.amx)


X, W, G = torch.ones(2, 1, 3, 4, 4), torch.ones(2, 5, 3, 3, 3), torch.ones(2, 3)
W1, R, T = W[..., :1, :1], torch.ones(1), (3,)
OWN, LOSS = torch.ones(sum(LSTM_SIZES)), torch.ones(2)
MISSING = [
    (lambda: native.conv.bwd(None, X, W, 1, 1), r"dz must be .* \[2, 1, 5, 4, 4\] .* got None"),
    (lambda: native.conv.bwd(None, X, W1, 1, 0), r"dz must be .* \[2, 1, 5, 4, 4\] .* got None"),
    (lambda: native.norm_act.fwd(X, None, G, EPS, 0.0, True, None), "gain must be .* got None"),
    (lambda: native.norm_act.fwd(X, G, G, EPS, 0.0, True, (G, None)), "variance .* got None"),
    (lambda: native.norm_act.fwd(X, G, G, EPS, 0.0, True, (None, G)), "mean must .* got None"),
    (lambda: native.norm_act.bwd(saved(), G, None), "dy must be .* got None"),
    (lambda: native.norm_act.tan_fwd(saved(), None, X), "gain must be .* got None"),
    (lambda: native.norm_act.tan_bwd(saved(), NO_DOT, G, None, X), "dy must be .* got None"),
    (lambda: native.norm_act.bwd(saved()._replace(bias=None), G, X), "bias must be .* got None"),
    (lambda: native.update.fwd(G, G, None, T), "rates must be a tensor, got NoneType"),
    (lambda: native.update.fwd(None, G, R, T), "theta must be a tensor, got NoneType"),
    (lambda: native.update.bwd(G, None, R, T), "grad must be a tensor, got NoneType"),
    (lambda: native.update.tan_fwd(G, None, None, G, None, T), "rates must be .* got None"),
    (lambda: native.update.tan_fwd(None, R, G, G, R, T), "grad_dot must be .* got None"),
    (lambda: native.update.adam(G, None, G, G, 1.0, 1.0, 0.9, 0.9), "first must be .* got None"),
    (lambda: native.update.adam(G, G, None, G, 1.0, 1.0, 0.9, 0.9), "second must be .* got None"),
    (lambda: native.update.adam(G, G, G, None, 1.0, 1.0, 0.9, 0.9), "grad must be .* got None"),
    (lambda: native.lstm.fwd(None, LOSS, G, G, None), "own must be .* got None"),
    (lambda: native.lstm.fwd(OWN, None, G, G, None), "loss must be .* got None"),
    (lambda: native.lstm.bwd(None, [LOSS], [G], G[0], G), "own must be .* got None"),
    (lambda: native.lstm.bwd(OWN, [LOSS], [None], G[0], G), "gradient must be .* got None"),
]
NO_DOT = Tangent(None, None, None, None)


def saved():
    return native.norm_act.fwd(X, G, G, EPS, 0.01, False, None)[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native.passes.prepare(Net(3, 4, 2, 17, 2, False, 0.0, EPS), X), "1 to 16 stages"),
        (lambda: native.conv.fwd(X[:, :0], W, 1, 1), "must be non-empty and agree"),
        (lambda: native.conv.fwd(X[:1], W, 1, 1), "must be non-empty and agree"),
        (lambda: native.conv.fwd(X, W[:, :, :, :2, :2], 1, 1), "filters k×k of an odd k"),
        (lambda: native.conv.fwd(X, W, 1, 0), "got images 4×4, filters 3×3, padding 0"),
        (lambda: native.conv.fwd(X, W[..., :1, :1], 1, 1), "filters 1×1, padding 1, stride 1"),
        (lambda: native.conv.bwd(X, X, W[..., :1, :1], 1, 0), r"dz must be .* \[2, 1, 5, 4, 4\]"),
        (lambda: native.conv.fwd(X, W, 3, 1), "stride 3; plain takes"),
        (lambda: native.conv.fwd(X, W.double(), 1, 1), "w must be torch.float32"),
        (lambda: native.conv.fwd(X.half(), W.half(), 1, 1), "takes float32 and float64"),
        (lambda: native.conv.fwd(X.to("meta"), W, 1, 1), "takes float32 and float64 on a CPU"),
        (lambda: native.conv.bwd(X, X, W, 1, 1), r"dz must be torch.float32 \[2, 1, 5, 4, 4\]"),
        (lambda: native.conv.tan_fwd(X, W, X[:, :, :1], W, 1, 1), "x must be"),
        (lambda: native.norm_act.fwd(X[..., :2], G, G, EPS, 0.0, True, None), "got 4×2"),
        (lambda: native.norm_act.fwd(X[..., :1, :1], G, G, EPS, 0.0, True, None), "at least 2×2"),
        (lambda: native.norm_act.fwd(X, G[:1], G, EPS, 0.0, True, None), "gain must be"),
        (lambda: native.norm_act.fwd(X, G, G, EPS, 0.0, True, (G, G[:, :2])), "variance must be"),
        (lambda: native.update.fwd(G, G[:, :2], torch.ones(1), (3,)), "grad must be"),
        (lambda: native.update.fwd(G, G, torch.ones(2), (3,)), "rates must be"),
        (lambda: native.update.fwd(G, G, torch.ones(2), None), "rates must be"),
        (lambda: native.update.bwd(G, G[:1], None, None), "grad must be"),
        (lambda: native.update.fwd(G, G, torch.ones(2), (4, -1)), "sizes must not be negative"),
        (lambda: native.update.bwd(G, G, torch.ones(1, dtype=torch.float64), (3,)), "rates must"),
        *MISSING,
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_gradient_that_tasks_share_is_not_written_over() -> None:
    gain = randn(2, 2, 5)
    kept = native.norm_act.fwd(randn(0, 2, 3, 5, 4, 4), gain, gain, EPS, 0.01, False, None)[1]
    dy = randn(1, 1, 3, 4, 4, 5).permute(0, 1, 4, 2, 3).expand(2, -1, -1, -1, -1)
    expected = native.norm_act.bwd(kept, gain, dy.clone())
    assert all(map(torch.equal, native.norm_act.bwd(kept, gain, dy, spent=True), expected))


def test_gradients_that_do_not_fit_what_was_saved_are_refused() -> None:
    y, saved = native.norm_act.fwd(X, G, G, EPS, 0.01, True, None)
    for call in (
        lambda: native.norm_act.bwd(saved, G, X),
        lambda: native.norm_act.bwd(saved, G[:1], y),
        lambda: native.norm_act.tan_fwd(saved, G, y),
        lambda: native.norm_act.tan_fwd(saved, G, X, G.double()),
    ):
        with pytest.raises(ValueError, match="native norm_act: .* must be torch.float32"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_equals_wins_a_window_and_before_all_what_is_not_a_number(dtype, isa) -> None:
    values = torch.tensor([torch.nan, -1, 0, 1], dtype=dtype)
    windows = torch.cartesian_prod(*[values] * 4)  # [256, 4]
    zeros, ones = torch.zeros(256, 1, dtype=dtype), torch.ones(256, 1, dtype=dtype)
    for sign in (-1, 0, 1):
        z = windows.view(256, 1, 1, 2, 2)
        saved = native.norm_act.fwd(z, sign * ones, zeros, 0.0, 1.0, True, (zeros, ones))[1]
        found = saved.winners[:, 0, 0] % 2 + 2 * (saved.winners[:, 0, 1] % 2)
        expected = [_winner([sign * v for v in window]) for window in windows.tolist()]
        assert found.tolist() == expected
        chosen = windows.gather(1, found.long()[:, None]).flatten()
        torch.testing.assert_close(saved.x_hat.flatten()[:256], chosen, equal_nan=True)


def _winner(window: list[float]) -> int:
    """The last one that is not a number, or the first of the largest ones."""
    missing = [i for i, v in enumerate(window) if v != v]
    return missing[-1] if missing else window.index(max(window))
