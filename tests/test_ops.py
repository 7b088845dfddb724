"""Every op: value, gradient and second derivative in float64 against its definition; float32 by an
error budget.
"""

import dataclasses
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import kernels
from kernels import cases, dispatch, reference
from tests.ops import randn

SMALL = pytest.mark.parametrize("case", cases.SMALL, ids=lambda c: c.name)
REAL = pytest.mark.parametrize("case", cases.REAL, ids=lambda c: c.name)


@pytest.fixture
def backend(request) -> Iterator[str]:
    """Everything inside the test runs on this backend, or raises."""
    if request.param == "auto":
        with kernels.use("auto"):
            yield "auto"
        return
    if refused := dispatch.space(request.param).refuses(torch.device("cpu"), torch.float64):
        pytest.skip(refused)
    with kernels.use(request.param):
        yield request.param


def on_all(*ops: str):
    """Every backend that has all of these ops."""
    names = [n for n in dispatch.BACKENDS if set(ops) <= set(dispatch.space(n).OPS)]
    return pytest.mark.parametrize("backend", names, indirect=True)


# The ops that are differentiable twice and no further, on each of their backends.
NAMES = {"per_step_batch_norm": "norm_act", "linear_cross_entropy": "head", "lslr_update": "update"}
TWICE = pytest.mark.parametrize(
    ("op", "backend"),
    [
        (op, name)
        for op, short in NAMES.items()
        for name in dispatch.BACKENDS
        if short in dispatch.space(name).OPS
    ],
    indirect=["backend"],
)


def conv(ops, case):
    return lambda x, w: ops.task_conv2d(x, w, stride=case.stride, padding=case.kernel // 2)


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


@pytest.mark.usefixtures("one_thread")
@on_all("conv")
@SMALL
def test_conv_to_second_order(backend, case) -> None:
    check(lambda ops: conv(ops, case), cases.conv_inputs(case))


def test_each_side_of_a_filter_is_held_against_the_image_s_own() -> None:
    check(
        lambda ops: lambda x, w: ops.task_conv2d(x, w, padding=0),
        (randn(0, 2, 1, 2, 8, 3), randn(1, 2, 3, 2, 5, 1)),
    )


# Triton has 3×3 filters alone.
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("backend", ["native", "plain", "auto"], indirect=True)
@pytest.mark.parametrize("case", cases.SMALL_SIZED, ids=lambda c: c.name)
def test_conv_of_other_filters_to_second_order(backend, case) -> None:
    check(lambda ops: conv(ops, case), cases.conv_inputs(case))


@pytest.mark.parametrize("backend", ["native", "plain"], indirect=True)
@pytest.mark.parametrize("case", cases.REAL_SIZED, ids=lambda c: c.name)
def test_float32_error_of_other_filters(backend, case) -> None:
    inputs = cases.conv_inputs(case, torch.float32)
    for outputs_of in (value_and_gradients, second_derivatives):
        ours, torchs = errors(lambda ops: conv(ops, case), inputs, outputs_of)
        assert ours <= 2 * torchs + torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("one_thread")
@on_all("norm_act")
@SMALL
@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
def test_norm_act_to_second_order(backend, case, given: bool) -> None:
    z, gain, bias = cases.norm_inputs(case)
    step = torch.arange(case.tasks).flip(0) % 3
    statistics = (z.mean((0, 1, 3, 4)) + 0.1, z.var((0, 1, 3, 4)) * 1.2) if given else None
    check(lambda ops: norm_act(ops, case, step, statistics), (z, gain, bias))


@pytest.mark.usefixtures("one_thread")
@on_all("head")
@SMALL
def test_head_to_second_order(backend, case) -> None:
    *inputs, labels = cases.head_inputs(case)
    check(lambda ops: head(ops, labels), tuple(inputs))


@pytest.mark.usefixtures("one_thread")
@on_all("update")
def test_update_to_second_order(backend) -> None:
    *inputs, sizes = cases.update_inputs(3, (4, 1, 6))
    check(lambda ops: update(ops, sizes), tuple(inputs))


@pytest.mark.usefixtures("one_thread")
@on_all("update")
def test_elementwise_update_to_second_order(backend) -> None:
    check(lambda ops: ops.elementwise_update, cases.elementwise_inputs(3, 11))


@on_all("update")
def test_equal_rates_of_each_number_are_those_of_the_segments(backend) -> None:
    """Bit for bit: constant and frozen, Meta-SGD is MAML."""
    theta, grad, _, sizes = cases.update_inputs(3, (4_000, 1, 60), torch.float32)
    rates = torch.full((len(sizes),), 0.3)
    each = torch.full((sum(sizes),), 0.3)
    run = kernels.backend("update", theta)
    assert torch.equal(run.fwd(theta, grad, each, None), run.fwd(theta, grad, rates, sizes))
    own, segments = run.bwd(theta, grad, each, None), run.bwd(theta, grad, rates, sizes)
    assert torch.equal(own[0], segments[0]) and own[1].shape == theta.shape
    assert torch.equal(own[1], -theta * grad)


@on_all("conv")
def test_conv_to_third_order(backend) -> None:
    case = cases.SMALL[0]

    def third(ops) -> torch.Tensor:
        x, w = (t.requires_grad_() for t in cases.conv_inputs(case))
        y = torch.tanh(ops.task_conv2d(x, w)).pow(3).sum()
        (g,) = torch.autograd.grad(y, w, create_graph=True)
        (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(h.pow(2).sum(), w)[0]

    torch.testing.assert_close(third(kernels), third(reference), rtol=1e-10, atol=1e-12)


@on_all("conv")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own first jvp
@pytest.mark.parametrize("way", ["jvp of jvp", "jacfwd of jacfwd", "jvp of jvp of grad"])
def test_conv_to_second_order_forward_over_forward(backend, way: str) -> None:
    x, w = cases.conv_inputs(cases.SMALL[0])

    def along(f):
        return lambda *inputs: torch.func.jvp(f, inputs, inputs)[1]

    def found(ops):
        if way == "jvp of jvp":
            return along(along(ops.task_conv2d))(x, w)
        if way == "jvp of jvp of grad":
            gradient = torch.func.grad(lambda x, w: ops.task_conv2d(x, w).pow(2).sum())
            return along(along(gradient))(x, w)
        one = x[:1, :1, :, :3, :3]
        jacobian = torch.func.jacfwd(
            torch.func.jacfwd(lambda w: ops.task_conv2d(one, w).pow(2).sum())
        )
        return jacobian(w[:1])

    torch.testing.assert_close(found(kernels), found(reference), rtol=1e-9, atol=1e-10)


def third_derivatives():
    case = cases.SMALL[0]
    z, gain, bias = cases.norm_inputs(case)
    *head_inputs, labels = cases.head_inputs(case)
    *update_inputs, sizes = cases.update_inputs(2, (3, 2))
    return {
        "per_step_batch_norm": (norm_act(kernels, case, 0), (z, gain, bias)),
        "linear_cross_entropy": (head(kernels, labels), tuple(head_inputs)),
        "lslr_update": (update(kernels, sizes), tuple(update_inputs)),
        "elementwise_update": (kernels.elementwise_update, cases.elementwise_inputs(2, 5)),
    }


@pytest.mark.parametrize("constant", [True, False], ids=["fixed-cotangent", "own-cotangent"])
@TWICE
def test_a_third_derivative_raises_and_is_never_wrong(op: str, backend, constant: bool) -> None:
    f, inputs = third_derivatives()[op]
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = f(*inputs)
    first = torch.autograd.grad((y * torch.rand_like(y)).sum(), inputs, create_graph=True)
    power = 1 if constant else 3
    scalar = sum((g * torch.rand_like(g)).pow(power).sum() for g in first if g.requires_grad)
    second = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
    with pytest.raises(RuntimeError, match=f"{op}: the third derivative is not implemented"):
        sum(s.pow(2).sum() for s in second).backward()


class Cut(torch.autograd.Function):
    """The value as it is, of which no gradient comes back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return None


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # of torch's own
@TWICE
def test_a_tangent_without_a_gradient_adds_nothing(op: str, backend) -> None:
    f, inputs = third_derivatives()[op]
    inputs = [t.detach().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(f(*inputs).sum(), inputs)
    with forward_ad.dual_level():
        y, y_dot = forward_ad.unpack_dual(
            f(*(forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs))
        )
        actual = torch.autograd.grad(y.sum() + Cut.apply(y_dot).sum(), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=0)


@on_all("norm_act")
def test_writing_to_what_the_gradient_needs_is_an_error_not_a_wrong_gradient(backend) -> None:
    z, gain, bias = (t.requires_grad_() for t in cases.norm_inputs(cases.SMALL[0]))
    source = 2 * z
    y = norm_act(kernels, cases.SMALL[0], 0)(source, gain, bias)
    (expected,) = torch.autograd.grad(y.sum(), z, retain_graph=True)
    y.sub_(0.5)
    try:
        (actual,) = torch.autograd.grad(y.sum(), z, retain_graph=True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:  # the backend does not need its output
        assert torch.equal(actual, expected)
    source.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@on_all("update")
@pytest.mark.parametrize("each", [False, True])
def test_theta_may_be_written_to_after_its_update(backend, each: bool) -> None:
    theta, grad, rates, sizes = cases.update_inputs(2, (3, 2))
    rates = torch.ones(5).to(rates) if each else rates
    f = kernels.elementwise_update if each else update(kernels, sizes)
    leaves = [t.requires_grad_() for t in (theta, grad, rates)]
    found = []
    for written in (False, True):
        source = theta * 1
        y = f(source, grad, rates)
        if written:
            with torch.no_grad():
                source.zero_()
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        found.append((*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)))
    assert all(map(torch.equal, *found))
    with torch.inference_mode():
        fixed = theta * 1
    assert torch.equal(torch.autograd.grad(f(fixed, grad, rates).pow(3).sum(), grad)[0], first[1])


@on_all("norm_act")
@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
def test_statistics_that_no_gradient_reads_may_be_written_to(backend, given: bool) -> None:
    z, gain, bias = (t.requires_grad_() for t in cases.norm_inputs(cases.SMALL[0]))
    statistics = (torch.zeros_like(gain[0]), torch.ones_like(gain[0])) if given else None
    expected, found = (
        kernels.per_step_batch_norm(z, gain, bias, 1, statistics=statistics) for _ in range(2)
    )
    for moment in found[1 if given else 2 :]:
        moment.mul_(2.0)
    gradients = [torch.autograd.grad(y.pow(2).sum(), z) for y, *_ in (expected, found)]
    assert torch.equal(gradients[0][0], gradients[1][0])


@TWICE
def test_a_graph_is_freed_without_the_garbage_collector(op: str, backend) -> None:
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


@on_all("norm_act")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_batch_norm_is_computed_in_float32(backend, dtype: torch.dtype) -> None:
    case = cases.Case("large", 1, 20, 1, 2, 84)  # sums beyond the range of float16
    z, gain, bias = (t.to(dtype) for t in cases.norm_inputs(case))
    z = z + 3
    y, mean, var = kernels.per_step_batch_norm(z, gain, bias, pool=True)
    exact = reference.per_step_batch_norm(z.double(), gain.double(), bias.double(), pool=True)
    assert y.dtype == dtype and mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=1e-2)
    torch.testing.assert_close(var.double(), exact[2], rtol=1e-5, atol=1e-6)


@on_all("norm_act")
def test_a_zero_gain_pools_the_first_of_each_window(backend) -> None:
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


@on_all("conv", "norm_act")
def test_one_task_does_not_see_the_others(backend) -> None:
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
        max(
            ((a - e).norm() / e.norm().clamp(min=1e-30)).item()
            for a, e in zip(outputs, exact, strict=True)
        )
        for outputs in pairs
    )


def value_and_gradients(f, inputs):
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = f(*leaves)
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, seed)]


def second_derivatives(f, inputs):
    """Of the gradient along a direction of all inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = f(*leaves)
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y.dtype).view_as(y)
    gradient = torch.autograd.grad(y, leaves, seed, create_graph=True)
    along = [(g * torch.cos(t.detach() + 1)).sum() for g, t in zip(gradient, leaves, strict=True)]
    return torch.autograd.grad(sum(along), leaves, materialize_grads=True)


def smooth(case: cases.Case) -> cases.Case:
    """Without the winners and masks of pooling and leaky ReLU, which are piecewise constant."""
    return dataclasses.replace(case, pool=False, negative_slope=1.0)


@on_all("conv", "norm_act")
@REAL
def test_float32_error_is_within_twice_that_of_torch(backend, case) -> None:
    case, single = smooth(case), torch.float32
    for make, inputs in (
        (lambda ops: conv(ops, case), cases.conv_inputs(case, single)),
        (lambda ops: norm_act(ops, case, 0), cases.norm_inputs(case, dtype=single)),
    ):
        ours, torchs = errors(make, inputs, value_and_gradients)
        assert ours <= 2 * torchs + torch.finfo(single).eps


@on_all("norm_act", "update")
@REAL
def test_float32_error_of_second_derivatives(backend, case) -> None:
    case, single = smooth(case), torch.float32
    *update_inputs, sizes = cases.update_inputs(case.tasks, (9 * case.filters**2, 5), single)
    for make, inputs in (
        (lambda ops: norm_act(ops, case, 0), cases.norm_inputs(case, dtype=single)),
        (lambda ops: update(ops, sizes), update_inputs),
    ):
        ours, torchs = errors(make, inputs, second_derivatives)
        assert ours <= 2 * torchs + torch.finfo(single).eps


@on_all("conv", "norm_act", "update")
def test_outputs_are_written_in_full(backend, monkeypatch) -> None:
    case = cases.SMALL[0]
    x, w = cases.conv_inputs(case)
    z, gain, bias = cases.norm_inputs(case)
    rates = torch.tensor([0.1, 0.2], dtype=x.dtype)

    def everything() -> list[torch.Tensor]:
        inputs = [t.detach().requires_grad_() for t in (x, w, gain, bias, rates)]
        y = norm_act(kernels, case, 0)(kernels.task_conv2d(*inputs[:2]), *inputs[2:4])
        y = y.flatten(1)
        y = kernels.lslr_update(y, y.square(), inputs[4], (5, y.shape[1] - 5))
        first = torch.autograd.grad(y.pow(2).sum(), inputs, create_graph=True)
        scalar = sum(g.pow(2).sum() for g in first)
        return [y, *first, *torch.autograd.grad(scalar, inputs)]

    expected, unwritten = everything(), []
    for name in ("empty", "empty_strided"):
        allocate = getattr(torch, name)

        def poisoned(*args, allocate=allocate, **kwargs):
            memory = allocate(*args, **kwargs)
            unwritten.append(memory.fill_(float("nan") if memory.is_floating_point() else -1))
            return unwritten[-1]

        monkeypatch.setattr(torch, name, poisoned)
    assert all(map(torch.equal, everything(), expected)) and unwritten


@on_all("norm_act")
@pytest.mark.parametrize("pool", [True, False])
def test_what_is_infinite_and_not_chosen_has_no_gradient_by_given_statistics(backend, pool) -> None:
    z = randn(0, 2, 2, 3, 6, 6)
    z[0, 0, 0, 0, 0] = -torch.inf  # which no window is won by
    given, one = (torch.zeros(3), torch.ones(3)), torch.ones(1, 3).double()
    given = tuple(s.double() for s in given)
    gradients = []
    for ops in (kernels, reference):
        leaf = z.clone().requires_grad_()
        y, *_ = ops.per_step_batch_norm(leaf, one, 0 * one, pool=pool, statistics=given)
        finite = y.where(y.isfinite(), 0.0)
        gradients.append(torch.autograd.grad(finite.sin().sum(), leaf)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].isfinite().all() or not pool


def test_the_reference_takes_statistics_as_constants_too() -> None:
    z = randn(0, 2, 2, 3, 4, 4).requires_grad_()
    own = z.mean((1, 3, 4)), z.var((1, 3, 4), correction=0)
    one = torch.ones(1, 3).double()
    found = []
    for ops in (kernels, reference):
        y, *_ = ops.per_step_batch_norm(z, one, one, statistics=own)
        found.append(torch.autograd.grad(y.pow(3).sum(), z, retain_graph=True)[0])
    torch.testing.assert_close(*found)
