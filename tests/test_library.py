"""The ops of `torch.ops.mamlpp`: torch's own checks, tensors without values, and autocast."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels import reference
from kernels.dispatch import BackendError
from tests.ops import randn
from tests.surroundings import Wrapped
from tests.test_elsewhere import CASES

LABELS = torch.tensor([[0, 3, 1], [2, 2, 0]])
HEAD_LABELS = torch.tensor([[0, 2], [1, 1]])
OPTIONS = {
    "conv": ("task_conv2d", (), (2, 1)),
    "any_conv": ("task_conv2d", (), (1, 0)),
    "norm": ("per_step_batch_norm", (None, None), (1e-5, 0.1, True)),
    "norm_by_task": (
        "per_step_batch_norm",
        (randn(8, 2, 2), 1 + randn(9, 2, 2) ** 2),
        (1e-5, 1.0, False),
    ),
    "head": ("linear_cross_entropy", (HEAD_LABELS,), ()),
    "update": ("lslr_update", (), ([4, 1, 2],)),
    "elementwise": ("lslr_update", (), (None,)),
}
TWICE = [name for name in OPTIONS if "conv" not in name]


def operands(name: str) -> tuple:
    inputs = CASES[name].inputs()
    if "norm" in name:
        inputs = inputs[0], inputs[1][:2], inputs[2][:2]  # a row a task
    if name == "any_conv":
        inputs = inputs[0], inputs[1][..., :2]
    return tuple(t.detach().requires_grad_() for t in inputs)


def checked(op: str, *arguments) -> None:
    torch.library.opcheck(getattr(torch.ops.mamlpp, op).default, arguments)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_torch_finds_nothing_wrong_with_an_op(name: str) -> None:
    op, constants, options = OPTIONS[name]
    checked(op, *operands(name), *constants, *options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TWICE)
def test_torch_finds_nothing_wrong_with_the_ops_of_its_derivatives(name: str) -> None:
    op, constants, options = OPTIONS[name]
    inputs = operands(name)
    y = getattr(torch.ops.mamlpp, op)(*inputs, *constants, *options)
    y = y[0] if isinstance(y, tuple) else y
    dy, dy_dot = randn(1, *y.shape), randn(2, *y.shape)
    dots = tuple(randn(3 + i, *t.shape) for i, t in enumerate(inputs))
    fixed = tuple(t.detach() for t in inputs)  # what has no third derivative needs no gradient
    checked(f"{op}_grad", dy.requires_grad_(), *inputs, *constants, *options)
    checked(f"{op}_dot", *inputs, *constants, *dots, *options)
    checked(f"{op}_grad_dot", dy.detach(), dy_dot, *fixed, *constants, *dots, *options)
    some = dots[0], *[None] * (len(dots) - 1)
    checked(f"{op}_grad_dot", dy.detach(), None, *fixed, *constants, *some, *options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["conv", "any_conv"])
def test_torch_finds_nothing_wrong_with_the_ops_of_a_convolutions_gradients(name: str) -> None:
    (x, w), options = operands(name), OPTIONS[name][2]
    dz = torch.randn_like(kernels.task_conv2d(x, w, stride=options[0], padding=options[1]))
    checked("task_conv2d_input_grad", dz.requires_grad_(), w, x, *options)
    checked("task_conv2d_weight_grad", dz, x, w, *options)


@pytest.mark.parametrize("name", OPTIONS)
def test_tensors_without_values_have_the_shapes_and_strides_of_those_with(name: str) -> None:
    inputs = CASES[name].inputs()
    y = CASES[name].make(kernels)(*inputs)
    if "task" in name or name == "head":  # its rows, statistics and labels are real tensors
        pytest.skip("it has constants of its own")
    meta = CASES[name].make(kernels)(*(t.to("meta") for t in inputs))
    with FakeTensorMode() as mode:
        fake = CASES[name].make(kernels)(*map(mode.from_tensor, inputs))
    for t in (meta, fake):
        assert (t.shape, t.dtype, t.stride()) == (y.shape, y.dtype, y.stride())


@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_statistics_without_memory_of_their_own_are_given_all_the_same(backend: str) -> None:
    z, gain, bias = CASES["norm"].inputs()
    given = randn(8, 2), 1 + randn(9, 2) ** 2
    wanted = reference.per_step_batch_norm(z, gain, bias, 1, statistics=given)[0]
    with kernels.use(backend):
        found = kernels.per_step_batch_norm(z, gain, bias, 1, statistics=tuple(map(Wrapped, given)))
    torch.testing.assert_close(found[0].inner, wanted)


def test_a_third_derivative_of_a_compiled_op_raises() -> None:
    op, constants, options = OPTIONS["norm"]
    inputs = operands("norm")
    y = getattr(torch.ops.mamlpp, op)(*inputs, *constants, *options)[0]
    first = torch.autograd.grad(y.pow(2).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(first[0].pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="the third derivative is not implemented"):
        second[0].pow(2).sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forward_derivative_of_a_forward_derivative_raises() -> None:
    case = CASES["norm"]
    inputs = case.inputs()

    def once(*a):
        return torch.func.jvp(case.make(kernels), a, inputs)[1]

    with pytest.raises(RuntimeError, match="a forward derivative of a forward derivative"):
        torch.func.jvp(once, inputs, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_the_dtypes_that_torchs_own_ops_give(dtype: torch.dtype) -> None:
    x, w = (randn(i, 2, 3, 4, 8, 8, dtype=torch.float32)[..., :s, :s] for i, s in ((0, 8), (1, 3)))
    gain, bias = torch.ones(3, 3), torch.zeros(3, 3)
    h, hw, hb = (randn(2 + i, *s).float() for i, s in enumerate(((2, 3, 5), (2, 4, 5), (2, 4))))
    with torch.autocast("cpu", dtype):
        z = kernels.task_conv2d(x, w)
        assert z.dtype == F.conv2d(x[0], w[0], padding=1).dtype == dtype
        y, mean, _ = kernels.per_step_batch_norm(z, gain, bias, 1, negative_slope=0.1, pool=True)
        assert y.dtype == dtype and mean.dtype == torch.float32
        loss, logits = kernels.linear_cross_entropy(h.to(dtype), hw, hb, LABELS)
        expected = F.cross_entropy(F.linear(h[0], hw[0], hb[0]), LABELS[0])
        assert loss.dtype == logits.dtype == expected.dtype == torch.float32
        assert kernels.lslr_update(hb, hb.to(dtype), torch.ones(1), (4,)).dtype == torch.float32
    exact = torch.stack(
        [F.conv2d(a.double(), b.double(), padding=1) for a, b in zip(x, w, strict=True)]
    )
    assert (z.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()
    torch.testing.assert_close(loss[0], expected.float(), rtol=2e-2, atol=2e-2)


def network(ops, x, w, gain, bias, hw, hb):
    z = ops.task_conv2d(x, w)
    a, _, _ = ops.per_step_batch_norm(z, gain, bias, 1, negative_slope=0.1, pool=True)
    return ops.linear_cross_entropy(a.flatten(2), hw, hb, LABELS)[0].sum()


def test_autocast_to_second_order_is_as_good_as_its_dtype() -> None:
    shapes = (2, 3, 2, 6, 6), (2, 3, 2, 3, 3), (3, 3), (3, 3), (2, 4, 27), (2, 4)
    values = [randn(i, *s, dtype=torch.float32) * 0.5 for i, s in enumerate(shapes)]
    values[2] = values[2] + 1

    def second(ops, values, inside: bool):
        inputs = [copy.copy(v).detach().requires_grad_() for v in values]
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            first = torch.autograd.grad(network(ops, *inputs), inputs[1], create_graph=True)[0]
            return torch.autograd.grad(first.pow(2).sum(), inputs[1])[0]

    exact = second(reference, [v.double() for v in values], False)
    torchs = (second(reference, values, True) - exact).norm()
    for backend in ("auto", "plain"):
        with kernels.use(backend):
            found = second(kernels, values, True)
        assert found.dtype == torch.float32
        assert (found - exact).norm() <= 2 * torchs


def test_autocast_leaves_what_has_no_floating_point() -> None:
    x, w = torch.ones(1, 1, 1, 4, 4), torch.ones(1, 1, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.complex64, torch.int64, torch.bool):
            with pytest.raises(BackendError, match="is not a floating-point type"):
                kernels.task_conv2d(x.to(dtype), w.to(dtype))
        with pytest.raises(BackendError, match="int64 is not a floating-point type"):
            whole = torch.ones(1, 2, dtype=torch.int64)
            kernels.elementwise_update(whole, whole, whole[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own
def test_a_step_from_the_end_is_an_error_in_compiled_code_too() -> None:
    z, rows = randn(0, 2, 3, 4, 5, 5).float(), torch.ones(3, 4)
    made = torch.compile(lambda *o: kernels.per_step_batch_norm(*o)[0], dynamic=False)
    torch.testing.assert_close(
        made(z, rows, rows, torch.tensor([0, 2])), kernels.per_step_batch_norm(z, rows, rows)[0]
    )
    with pytest.raises(RuntimeError, match="out of bounds"):
        made(z, rows, rows, torch.tensor([0, -1]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_ints_and_numbers_that_vary_are_compiled_in_one_graph() -> None:
    torch._dynamo.reset()
    z, rows = randn(0, 2, 3, 4, 6, 6), randn(1, 3, 4)
    options = {"backend": "aot_eager", "fullgraph": True}

    def norm(step, eps, pool):
        return kernels.per_step_batch_norm(z, rows, rows, step, eps=eps, pool=pool)[0]

    def update(width, sizes):
        return kernels.lslr_update(z.flatten(1)[:, :width], z.flatten(1)[:, :width], rates, sizes)

    def conv(stride, padding):
        return kernels.task_conv2d(z, z[:, :1, :, :3, :3], stride=stride, padding=padding)

    rates = randn(2, 2)
    for f, calls in (
        (norm, ((0, 1e-5, False), (1, 1e-3, False), (2, 1e-2, True))),
        (update, ((5, (2, 3)), (6, (3, 3)), (7, (2, 5)))),
        (conv, ((1, 1), (2, 1), (3, 0))),
    ):
        made = torch.compile(f, **options)
        for call in calls:
            torch.testing.assert_close(made(*call), f(*call))
