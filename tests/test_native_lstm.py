"""The native rule of the meta-learner LSTM: against `plain`, and against ordinary autograd, for
awkward sizes, layouts, numbers of threads and instruction sets.
"""

import math

import pytest
import torch
from torch import Tensor

import kernels
from kernels import native, plain, reference
from tests.ops import assert_close, largest_error, randn

pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")

NUMBERS = sum(plain.lstm.SIZES)
# tasks, coordinates, steps: less than a vector, a block and one more, a chunk and some blocks
SIZES = [(1, 1, 1), (2, 3, 2), (3, 49, 3), (2, 95, 1), (1, 2017, 5)]


def inputs(tasks: int, count: int, steps: int, dtype=torch.float64):
    """Gradients of every size, some of them 0."""
    losses = [randn(i, tasks).abs() for i in range(steps)]
    gradients = [
        randn(10 + i, tasks, count) * (3 * randn(30 + i, tasks, count) - 6).exp()
        for i in range(steps)
    ]
    gradients[0][:, ::7] = 0.0
    single = 0.3 * randn(50, NUMBERS), losses, gradients, randn(51, count), randn(52, tasks, count)
    return tuple(
        [v.float().to(dtype) for v in part] if isinstance(part, list) else part.float().to(dtype)
        for part in single
    )


def results(lstm, own, losses, gradients, start, carry) -> list[Tensor]:
    """c after every step, and the gradients."""
    c, memory, found = start.expand(len(carry), -1), None, []
    for loss, gradient in zip(losses, gradients, strict=True):
        c, memory = lstm.fwd(own, loss, gradient, c, memory)
        found.append(c)
    return [*found, *lstm.bwd(own, losses, gradients, start, carry)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_rule_is_that_of_plain(size, isa) -> None:
    ours, expected = (results(b.lstm, *inputs(*size)) for b in (native, plain))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_rule_is_that_of_autograd(size) -> None:
    own, losses, gradients, start, carry = inputs(*size)
    for t in range(size[0]):
        leaves = own.clone().requires_grad_(), start.clone().requires_grad_()
        task = [loss[t] for loss in losses], [gradient[t] for gradient in gradients]
        c = reference.lstm(leaves[0], *task, leaves[1])
        expected = torch.autograd.grad(c, leaves, carry[t])
        for b in (native, plain):
            *_, last, of_start, of_own = results(b.lstm, own, losses, gradients, start, carry)
            for ours, exact in zip((last, of_start, of_own), (c, *expected[::-1]), strict=True):
                assert_close(ours[t], exact.detach())


def test_float32_error_is_a_small_multiple_of_that_of_plain(isa) -> None:
    for size in SIZES[2:]:
        exact = results(plain.lstm, *inputs(*size))
        ours, theirs = (results(b.lstm, *inputs(*size, torch.float32)) for b in (native, plain))
        for each in zip(ours, theirs, exact, strict=True):
            error, of_plain = largest_error(*([t] for t in each))
            assert error <= 2 * of_plain + 2.0**-23


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_number_of_threads_gives_the_same_bits_and_company_changes_none(dtype, threads) -> None:
    given = own, losses, gradients, start, carry = inputs(3, 4001, 3, dtype)
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(results(native.lstm, *given))
    for others in runs[1:]:
        assert all(map(torch.equal, others, runs[0]))
    alone = [loss[1:2] for loss in losses], [gradient[1:2] for gradient in gradients]
    for ours, among in zip(
        results(native.lstm, own, *alone, start, carry[1:2]), runs[0], strict=True
    ):
        assert torch.equal(ours[0], among[1])


def test_a_spent_memory_is_written_over_and_no_other_input_is() -> None:
    own, losses, gradients, start, carry = inputs(2, 50, 2)
    c, memory = native.lstm.fwd(own, losses[0], gradients[0], start.expand(2, -1), None)
    before = memory.clone()
    kept = native.lstm.fwd(own, losses[1], gradients[1], c, memory)
    assert torch.equal(memory, before) and kept[1] is not memory
    spent = native.lstm.fwd(own, losses[1], gradients[1], c, memory, spent=True)
    assert spent[1] is memory and all(map(torch.equal, spent, kept))
    wide = [torch.stack([g, g], 2)[..., 0] for g in gradients]  # of another layout
    ours = native.lstm.bwd(own, losses, wide, start, carry)
    assert all(map(torch.equal, ours, native.lstm.bwd(own, losses, gradients, start, carry)))


def test_saturated_gates_are_those_of_plain_and_what_is_no_number_stays_none(isa) -> None:
    own, losses, gradients, start, carry = inputs(1, 60, 2)
    for scale in (30.0, 1000.0):
        pairs = (results(b.lstm, scale * own, losses, gradients, start, carry)
                 for b in (native, plain))  # fmt: skip
        for a, b in zip(*pairs, strict=True):
            assert_close(a, b)
    for wrong in (math.nan, math.inf):
        gradients[1][0, 7] = wrong
        for b in (native, plain):
            c = results(b.lstm, own, losses, gradients, start, carry)[1]
            assert (~c.isfinite()).nonzero().tolist() == [[0, 7]]
    gradients[1][0, 7] = 0.0
    losses = [torch.full_like(loss, math.inf) for loss in losses]  # whose logarithm is infinite
    found = (results(b.lstm, own, losses, gradients, start, carry)[:2] for b in (native, plain))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


OWN, L, G = torch.zeros(NUMBERS), torch.zeros(2), torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native.lstm.fwd(OWN[1:], L, G, G, None), r"own must be torch.float32 \[2046\]"),
        (lambda: native.lstm.fwd(OWN, L[:1], G, G, None), r"loss must be torch.float32 \[2\]"),
        (lambda: native.lstm.fwd(OWN, L, G[:1], G, None), r"gradient must be .* \[2, 5\]"),
        (lambda: native.lstm.fwd(OWN, L, G, G.double(), None), "gradient must be torch.float64"),
        (lambda: native.lstm.fwd(OWN, L, G, G, G), r"memory must be .* \[2, 1, 42, 48\]"),
        (lambda: native.lstm.fwd(OWN, L, G, G[:, :0], None), "of a task and a coordinate at least"),
        (lambda: native.lstm.fwd(OWN, L, G, L, None), "of a task and a coordinate at least"),
        (lambda: native.lstm.fwd(OWN, L, G, None, None), "c must be a tensor, got NoneType"),
        (lambda: native.lstm.fwd(OWN, L, G, G.half(), None), "takes float32 and float64 on a CPU"),
        (lambda: native.lstm.bwd(OWN, [], [], G[0], G), "of one at least, got 0 and 0"),
        (lambda: native.lstm.bwd(OWN, [L], [G, G], G[0], G), "as many steps, .* got 1 and 2"),
        (lambda: native.lstm.bwd(OWN, [L], [G[:1]], G[0], G), "gradient must be"),
        (lambda: native.lstm.bwd(OWN, [L[:1]], [G], G[0], G), "loss must be"),
        (lambda: native.lstm.bwd(OWN, [L], [G], G, G), r"start must be torch.float32 \[5\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(call, message: str) -> None:
    with pytest.raises(ValueError, match=f"native lstm: .*{message}|native lstm {message}"):
        call()


def test_the_rule_is_plain_where_a_backend_leaves_it_to_torch() -> None:
    assert kernels.rule(G) is native.lstm
    for name in ("plain", "triton", "cuda"):
        with kernels.use(name):
            assert kernels.rule(G) is plain.lstm
    with kernels.use("native"):
        assert kernels.rule(G) is native.lstm
        with pytest.raises(kernels.BackendError, match="takes float32 and float64, not bfloat16"):
            kernels.rule(G.bfloat16())
