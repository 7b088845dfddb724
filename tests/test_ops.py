"""Every op: value, gradient and second derivative in float64 against its definition; float32 by an
error budget.
"""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import kernels
from kernels import cases, reference

SMALL = pytest.mark.parametrize("case", cases.SMALL, ids=lambda c: c.name)
REAL = pytest.mark.parametrize("case", cases.REAL, ids=lambda c: c.name)


def conv(ops, case):
    return lambda x, w: ops.task_conv2d(x, w, stride=case.stride)


def norm_act(ops, case, step, statistics=None):
    options = dict(negative_slope=case.negative_slope, pool=case.pool, statistics=statistics)
    return lambda z, gain, bias: ops.per_step_batch_norm(z, gain, bias, step, **options)[0]


def head(ops, labels):
    return lambda h, w, c: ops.linear_cross_entropy(h, w, c, labels)[0]


def update(ops, sizes):
    return lambda theta, grad, rates: ops.lslr_update(theta, grad, rates, sizes)


def check(make, inputs: tuple) -> None:
    """Value and both derivatives of make(kernels); the value against make(reference)."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    torch.testing.assert_close(
        make(kernels)(*inputs), make(reference)(*inputs), rtol=1e-11, atol=1e-12
    )
    assert gradcheck(make(kernels), inputs)
    assert gradgradcheck(make(kernels), inputs)


@SMALL
def test_conv_to_second_order(case) -> None:
    check(lambda ops: conv(ops, case), cases.conv_inputs(case))


@SMALL
@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
def test_norm_act_to_second_order(case, given: bool) -> None:
    z, gain, bias = cases.norm_inputs(case)
    step = torch.arange(case.tasks).flip(0) % 3
    statistics = (z.mean((0, 1, 3, 4)) + 0.1, z.var((0, 1, 3, 4)) * 1.2) if given else None
    check(lambda ops: norm_act(ops, case, step, statistics), (z, gain, bias))


@SMALL
def test_head_to_second_order(case) -> None:
    *inputs, labels = cases.head_inputs(case)
    check(lambda ops: head(ops, labels), tuple(inputs))


def test_update_to_second_order() -> None:
    *inputs, sizes = cases.update_inputs(3, (4, 1, 6))
    check(lambda ops: update(ops, sizes), tuple(inputs))


def test_conv_to_third_order() -> None:
    case = cases.SMALL[0]

    def third(ops) -> torch.Tensor:
        x, w = (t.requires_grad_() for t in cases.conv_inputs(case))
        y = torch.tanh(ops.task_conv2d(x, w)).pow(3).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), w)[0]

    torch.testing.assert_close(third(kernels), third(reference), rtol=1e-10, atol=1e-12)


def third_derivatives():
    case = cases.SMALL[0]
    z, gain, bias = cases.norm_inputs(case)
    *head_inputs, labels = cases.head_inputs(case)
    *update_inputs, sizes = cases.update_inputs(2, (3, 2))
    return {
        "per_step_batch_norm": (norm_act(kernels, case, 0), (z, gain, bias)),
        "linear_cross_entropy": (head(kernels, labels), tuple(head_inputs)),
        "lslr_update": (update(kernels, sizes), tuple(update_inputs)),
    }


@pytest.mark.parametrize("constant", [True, False], ids=["fixed-cotangent", "own-cotangent"])
@pytest.mark.parametrize("op", ["per_step_batch_norm", "linear_cross_entropy", "lslr_update"])
def test_a_third_derivative_raises_and_is_never_wrong(op: str, constant: bool) -> None:
    f, inputs = third_derivatives()[op]
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = f(*inputs)
    first = torch.autograd.grad((y * torch.rand_like(y)).sum(), inputs, create_graph=True)
    power = 1 if constant else 3
    scalar = sum((g * torch.rand_like(g)).pow(power).sum() for g in first if g.requires_grad)
    second = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
    with pytest.raises(RuntimeError, match=f"{op}: the third derivative is not implemented"):
        sum(s.pow(2).sum() for s in second).backward()


def test_writing_to_the_output_is_an_error_not_a_wrong_gradient() -> None:
    z, gain, bias = (t.requires_grad_() for t in cases.norm_inputs(cases.SMALL[0]))
    y = norm_act(kernels, cases.SMALL[0], 0)(z, gain, bias)
    y.sub_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", ["per_step_batch_norm", "linear_cross_entropy", "lslr_update"])
def test_a_graph_is_freed_without_the_garbage_collector(op: str) -> None:
    f, inputs = third_derivatives()[op]
    inputs = [t.detach().requires_grad_() for t in inputs]
    gc.disable()
    try:
        y = f(*inputs)
        (g,) = torch.autograd.grad(y.sum(), inputs[1], create_graph=True)
        alive = weakref.ref(y.grad_fn), weakref.ref(g)
        del y, g
        assert [a() for a in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_batch_norm_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = cases.Case("large", 1, 20, 1, 2, 84)  # sums beyond the range of float16
    z, gain, bias = (t.to(dtype) for t in cases.norm_inputs(case))
    z = z + 3
    y, mean, var = kernels.per_step_batch_norm(z, gain, bias, pool=True)
    exact = reference.per_step_batch_norm(z.double(), gain.double(), bias.double(), pool=True)
    assert y.dtype == dtype and mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=1e-2)
    torch.testing.assert_close(var.double(), exact[2], rtol=1e-5, atol=1e-6)


def test_a_zero_gain_pools_the_first_of_each_window() -> None:
    z, gain, bias = cases.norm_inputs(cases.SMALL[0])
    gain[:, 1] = 0.0
    z.requires_grad_()
    weights = torch.randn(z.shape[0], z.shape[1], z.shape[2], 2, 2, dtype=z.dtype)
    results = []
    for ops in (kernels, reference):
        leaves = [z, gain.requires_grad_(), bias]
        y = norm_act(ops, cases.SMALL[0], 0)(*leaves)
        (dz, dgain) = torch.autograd.grad((y * weights).sum(), leaves[:2], create_graph=True)
        results.append(
            (y, dz, dgain, *torch.autograd.grad(dz.pow(2).sum() + dgain.pow(2).sum(), leaves[:2]))
        )
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


def test_one_task_does_not_see_the_others() -> None:
    case = cases.SMALL[0]
    x, w = cases.conv_inputs(case)
    z, gain, bias = cases.norm_inputs(case)
    for run, first in (
        (lambda s: kernels.task_conv2d(x[s], w[s]), slice(0, 1)),
        (lambda s: norm_act(kernels, case, 1)(z[s], gain, bias), slice(0, 1)),
    ):
        assert torch.equal(run(first), run(slice(None))[first])


def errors(make, inputs, outputs_of) -> tuple[float, float]:
    """Largest relative error of float32 against float64: ours, and ordinary torch's."""
    exact = outputs_of(make(reference), [t.double() for t in inputs])
    pairs = [outputs_of(make(ops), inputs) for ops in (kernels, reference)]
    return tuple(
        max(((a - e).norm() / e.norm()).item() for a, e in zip(outputs, exact, strict=True))
        for outputs in pairs
    )


def value_and_gradients(f, inputs):
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = f(*leaves)
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, seed)]


@REAL
def test_float32_error_is_within_twice_that_of_torch(case) -> None:
    # The winners and masks of pooling and leaky ReLU are piecewise constant: without them the op is
    # smooth.
    smooth = cases.Case(
        case.name,
        case.tasks,
        case.images,
        case.channels,
        case.filters,
        case.side,
        pool=False,
        negative_slope=1.0,
    )
    single = torch.float32
    for make, inputs in (
        (lambda ops: conv(ops, smooth), cases.conv_inputs(smooth, single)),
        (lambda ops: norm_act(ops, smooth, 0), cases.norm_inputs(smooth, dtype=single)),
    ):
        ours, torchs = errors(make, inputs, value_and_gradients)
        assert ours <= 2 * torchs + torch.finfo(single).eps


def test_outputs_are_written_in_full(monkeypatch) -> None:
    case = cases.SMALL[0]
    x, w = cases.conv_inputs(case)
    z, gain, bias = cases.norm_inputs(case)

    def everything() -> list[torch.Tensor]:
        inputs = [t.detach().requires_grad_() for t in (x, w, gain, bias)]
        y = norm_act(kernels, case, 0)(kernels.task_conv2d(*inputs[:2]), *inputs[2:])
        first = torch.autograd.grad(y.pow(2).sum(), inputs, create_graph=True)
        scalar = sum(g.pow(2).sum() for g in first)
        return [y, *first, *torch.autograd.grad(scalar, inputs)]

    expected, unwritten = everything(), []
    for name in ("empty", "empty_strided"):
        allocate = getattr(torch, name)

        def poisoned(*args, allocate=allocate, **kwargs):
            unwritten.append(allocate(*args, **kwargs).fill_(float("nan")))
            return unwritten[-1]

        monkeypatch.setattr(torch, name, poisoned)
    assert all(map(torch.equal, everything(), expected)) and unwritten


def ones(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.ones(shape) for shape in shapes]


def pooled(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, pool=True)


def at_step_3(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, 3)


def sloped_down(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, negative_slope=-0.5)


def at_rows(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, torch.tensor([4]))


def normalised(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs[:3], statistics=inputs[3:])


def mixed(x: torch.Tensor, w: torch.Tensor) -> object:
    return kernels.task_conv2d(x, w.double())


def two_segments(*inputs: torch.Tensor) -> object:
    return kernels.lslr_update(*inputs, (2, 2))


def labelled(dtype: torch.dtype):
    labels = torch.zeros(1, 2, dtype=dtype)
    return lambda *inputs: kernels.linear_cross_entropy(*inputs, labels)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (kernels.task_conv2d, ones((2, 3, 4, 5), (1, 2, 3, 3, 3)), r"must be \[T, N, C, H, W\]"),
        (kernels.task_conv2d, ones((2, 1, 4, 5, 5), (2, 2, 3, 3, 3)), "must agree"),
        (kernels.task_conv2d, ones((2, 0, 3, 5, 5), (2, 2, 3, 3, 3)), "empty"),
        (pooled, ones((1, 1, 2, 4, 4), (3, 3), (3, 3)), r"must both be \[K, 2\]"),
        (at_step_3, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "step 3 is outside 0…2"),
        (kernels.task_conv2d, ones((1, 1, 2, 2, 2), (1, 1, 2, 7, 7)), "larger than the padded"),
        (mixed, ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3)), "one dtype and device"),
        (sloped_down, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "negative_slope -0.5 is below 0"),
        (at_rows, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), r"steps \[4\] reach outside 0…2"),
        (
            normalised,
            ones((1, 1, 2, 4, 4), (3, 2), (3, 2), (3,), (3,)),
            "statistics must be a mean",
        ),
        (pooled, ones((1, 1, 2, 1, 4), (3, 2), (3, 2)), "at least 2×2"),
        (labelled(torch.int64), ones((1, 2, 3), (1, 4, 2), (1, 4)), "must be non-empty"),
        (labelled(torch.float32), ones((1, 2, 3), (1, 4, 3), (1, 4)), "labels must be int64"),
        (two_segments, ones((1, 5), (1, 5), (2,)), "the sum of"),
        (two_segments, ones((1, 4), (1, 4), (3,)), "one a segment"),
    ],
)
def test_bad_shapes_get_one_clear_error(op, inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(*inputs)


def test_dispatch_never_falls_back_from_an_explicit_request(monkeypatch) -> None:
    x, w = cases.conv_inputs(cases.SMALL[0])
    with kernels.use("plain"):
        kernels.task_conv2d(x, w)
    with pytest.raises(kernels.BackendError, match="'cuda12' is not known"), kernels.use("cuda12"):
        pass
    monkeypatch.setenv("KERNELS_BACKEND", "nonesuch")
    with pytest.raises(
        kernels.BackendError, match="'nonesuch' is not known; use one of auto, native, plain"
    ):
        kernels.task_conv2d(x, w)
    table = subprocess.run([sys.executable, "-m", "kernels"], capture_output=True, text=True)
    assert table.returncode == 2 and table.stdout == ""
    assert table.stderr.startswith("error: backend 'nonesuch' is not known")
    monkeypatch.delenv("KERNELS_BACKEND")
    with pytest.raises(kernels.BackendError, match="not a floating-point type"):
        kernels.task_conv2d(x.long(), w.long())


def test_the_table_of_backends_prints() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "kernels"], capture_output=True, text=True, check=True
    )
    for op in ("passes", "conv", "norm_act", "stem", "head", "update"):
        assert f"{op:<10} cpu" in run.stdout


def test_kernels_does_not_import_the_engine() -> None:
    code = "import sys, kernels; sys.exit(any(m.split('.')[0] == 'engine' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
