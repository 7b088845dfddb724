"""What the public ops refuse, and the backend that dispatch chooses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import kernels
from kernels import cases, native, plain, reference, triton
from kernels.cuda.tensors import images


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


def rows_elsewhere(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, torch.tensor([0], device="meta"))


def normalised(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs[:3], statistics=inputs[3:])


def mixed(x: torch.Tensor, w: torch.Tensor) -> object:
    return kernels.task_conv2d(x, w.double())


def two_segments(*inputs: torch.Tensor) -> object:
    return kernels.lslr_update(*inputs, (2, 2))


def backwards(*inputs: torch.Tensor) -> object:
    return kernels.lslr_update(*inputs, (6, -2))


def strided(stride: object, padding: int):
    return lambda *inputs: kernels.task_conv2d(*inputs, stride=stride, padding=padding)


def sparse(x: torch.Tensor, w: torch.Tensor) -> object:
    return kernels.task_conv2d(x.to_sparse(), w)


def spread_out(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, eps=-1.0)


def sloped_nowhere(*inputs: torch.Tensor) -> object:
    return kernels.per_step_batch_norm(*inputs, negative_slope=float("nan"))


def labelled(dtype: torch.dtype):
    labels = torch.zeros(1, 2, dtype=dtype)
    return lambda *inputs: kernels.linear_cross_entropy(*inputs, labels)


def labelled_as(label: int):
    labels = torch.tensor([[0, label]])
    return lambda *inputs: kernels.linear_cross_entropy(*inputs, labels)


def elsewhere(*inputs: torch.Tensor) -> object:
    labels = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    return kernels.linear_cross_entropy(*inputs, labels)


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (kernels.task_conv2d, ones((2, 3, 4, 5), (1, 2, 3, 3, 3)), r"must be \[T, N, C, H, W\]"),
        (kernels.task_conv2d, ones((2, 1, 4, 5, 5), (2, 2, 3, 3, 3)), "must agree"),
        (kernels.task_conv2d, ones((2, 0, 3, 5, 5), (2, 2, 3, 3, 3)), "empty"),
        (pooled, ones((1, 1, 2, 4, 4), (3, 3), (3, 3)), r"must both be \[K, 2\]"),
        (at_step_3, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "step 3 is outside 0…2"),
        (kernels.task_conv2d, ones((1, 1, 2, 2, 2), (1, 1, 2, 7, 7)), "larger than the padded"),
        (
            kernels.task_conv2d,
            ones((1, 1, 2, 9, 2), (1, 1, 2, 3, 5)),
            r"kernel \[3, 5\] is larger than the padded image \[11, 4\]",
        ),
        (mixed, ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3)), "one dtype and device"),
        (sloped_down, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "negative_slope -0.5 is below 0"),
        (at_rows, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), r"steps \[4\] reach outside 0…2"),
        (
            normalised,
            ones((1, 1, 2, 4, 4), (3, 2), (3, 2), (3,), (3,)),
            "statistics must be a mean",
        ),
        (rows_elsewhere, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "step is on meta and z on cpu"),
        (pooled, ones((1, 1, 2, 1, 4), (3, 2), (3, 2)), "at least 2×2"),
        (labelled(torch.int64), ones((1, 2, 3), (1, 4, 2), (1, 4)), "must be non-empty"),
        (labelled(torch.float32), ones((1, 2, 3), (1, 4, 3), (1, 4)), "labels must be int64"),
        (two_segments, ones((1, 5), (1, 5), (2,)), "the sum of"),
        (two_segments, ones((1, 4), (1, 4), (3,)), "one a segment"),
        (two_segments, ones((0, 4), (0, 4), (2,)), "theta is empty"),
        (backwards, ones((1, 4), (1, 4), (2,)), r"sizes must be ints of 0 or more, got \(6, -2\)"),
        (kernels.task_conv2d, ones((2, 1, 3, 5, 5), (2, 0, 3, 3, 3)), "weight is empty"),
        (strided(0, 1), ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3)), "stride must be an int ≥ 1, got 0"),
        (strided(1, -1), ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3)), "padding must be an int ≥ 0"),
        (strided(1.5, 1), ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3)), "stride must be an int ≥ 1"),
        (sparse, ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3)), "x must be dense"),
        (spread_out, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "eps must be 0 or more, got -1"),
        (sloped_nowhere, ones((1, 1, 2, 4, 4), (3, 2), (3, 2)), "negative_slope nan"),
        (labelled_as(4), ones((1, 2, 3), (1, 4, 3), (1, 4)), "labels must be in 0…3"),
        (labelled_as(-1), ones((1, 2, 3), (1, 4, 3), (1, 4)), "labels must be in 0…3"),
        (elsewhere, ones((1, 2, 3), (1, 4, 3), (1, 4)), "labels are on meta, features on cpu"),
    ],
)
def test_bad_shapes_get_one_clear_error(op, inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(*inputs)


CONV = ones((1, 1, 2, 4, 4), (1, 1, 2, 3, 3))
NORM = ones((1, 1, 2, 4, 4), (3, 2), (3, 2))
HEAD = (*ones((1, 2, 3), (1, 4, 3), (1, 4)), torch.zeros(1, 2, dtype=torch.int64))
UPDATE = (*ones((1, 4), (1, 4), (2,)), (2, 2))
MEAN, VAR = ones((2,), (2,))


@pytest.mark.parametrize(
    ("op", "inputs", "options", "message"),
    [
        (kernels.task_conv2d, (CONV[0].numpy(), CONV[1]), {}, "x must be a tensor, got ndarray"),
        (kernels.task_conv2d, CONV, {"stride": True}, "stride must be an int ≥ 1, got True"),
        (kernels.task_conv2d, CONV, {"padding": None}, "padding must be an int ≥ 0, got None"),
        (kernels.per_step_batch_norm, (None, *NORM[1:]), {}, "z must be a tensor, got NoneType"),
        (kernels.per_step_batch_norm, NORM, {"eps": None}, "eps must be a number, got None"),
        (kernels.per_step_batch_norm, NORM, {"negative_slope": "a"}, "must be a number, got 'a'"),
        (kernels.per_step_batch_norm, NORM, {"pool": 2}, "pool must be True or False, got 2"),
        (kernels.per_step_batch_norm, NORM, {"pool": None}, "pool must be True or False, got None"),
        (
            kernels.per_step_batch_norm,
            NORM,
            {"step": torch.tensor([1]).to_sparse()},
            "step must be dense",
        ),
        (kernels.per_step_batch_norm, NORM, {"statistics": 5}, r"statistics must be .* \['int'\]"),
        (
            kernels.per_step_batch_norm,
            NORM,
            {"statistics": (MEAN.numpy(), VAR.numpy())},
            r"statistics must be .* got \['ndarray', 'ndarray'\]",
        ),
        (
            kernels.per_step_batch_norm,
            NORM,
            {"statistics": (MEAN.to_sparse(), VAR)},
            "statistics must be dense",
        ),
        (
            kernels.per_step_batch_norm,
            NORM,
            {"statistics": (MEAN.to("meta"), VAR)},
            "statistics are on meta, without values",
        ),
        (
            kernels.linear_cross_entropy,
            (*HEAD[:2], None, HEAD[3]),
            {},
            "bias must be a tensor, got NoneType",
        ),
        (
            kernels.linear_cross_entropy,
            (*HEAD[:3], [[0, 1]]),
            {},
            "labels must be a tensor",
        ),
        (
            kernels.linear_cross_entropy,
            (*HEAD[:3], HEAD[3].to_sparse()),
            {},
            "labels must be dense",
        ),
        (kernels.lslr_update, (UPDATE[0], None, *UPDATE[2:]), {}, "grad must be a tensor"),
        (kernels.lslr_update, (*UPDATE[:3], (2.0, 2.0)), {}, r"must be ints .* got \(2.0, 2.0\)"),
        (kernels.lslr_update, (*UPDATE[:3], 4), {}, "sizes must be ints of 0 or more, got 4"),
        (kernels.elementwise_update, (*UPDATE[:2], None), {}, "rates must be a tensor"),
    ],
)
def test_operands_of_another_kind_get_one_clear_error(op, inputs, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(*inputs, **options)


def test_ints_of_another_library_are_ints() -> None:
    two = np.int64(2)
    assert kernels.task_conv2d(*CONV, stride=two, padding=np.int64(1)).shape == (1, 1, 1, 2, 2)
    assert kernels.per_step_batch_norm(*NORM, two)[0].shape == NORM[0].shape
    assert kernels.lslr_update(*UPDATE[:3], np.array([2, 2])).shape == UPDATE[0].shape


def test_dispatch_never_falls_back_from_an_explicit_request(monkeypatch) -> None:
    x, w = cases.conv_inputs(cases.SMALL[0])
    with kernels.use("plain"):
        kernels.task_conv2d(x, w)
    with pytest.raises(kernels.BackendError, match="'cuda12' is not known"), kernels.use("cuda12"):
        pass
    monkeypatch.setenv("KERNELS_BACKEND", "nonesuch")
    with pytest.raises(
        kernels.BackendError,
        match="'nonesuch' is not known; use one of auto, native, triton, cuda, plain",
    ):
        kernels.task_conv2d(x, w)
    table = subprocess.run([sys.executable, "-m", "kernels"], capture_output=True, text=True)
    assert table.returncode == 2 and table.stdout == ""
    assert table.stderr.startswith("error: backend 'nonesuch' is not known")
    monkeypatch.delenv("KERNELS_BACKEND")
    with pytest.raises(kernels.BackendError, match="not a floating-point type"):
        kernels.task_conv2d(x.long(), w.long())


# Of images, filters, and the arguments of the convolution: what the native one leaves to others.
OTHER_GEOMETRIES = [
    ((2, 1, 1, 3, 4), (2, 2, 1, 3, 3), {}),
    ((2, 1, 1, 3, 3), (2, 1, 1, 5, 5), {"padding": 1}),
    ((1, 1, 1, 3, 3), (1, 1, 1, 1, 1), {"padding": 1}),
    ((1, 1, 1, 4, 4), (1, 1, 1, 2, 2), {"padding": 1}),
    ((2, 1, 1, 3, 3), (2, 2, 1, 1, 3), {}),
    ((2, 1, 1, 4, 4), (2, 2, 1, 3, 3), {"padding": 0}),
    ((1, 2, 2, 5, 5), (1, 1, 2, 3, 3), {"stride": 3}),
]


@pytest.mark.parametrize(("images", "filters", "options"), OTHER_GEOMETRIES)
def test_other_geometries_of_convolution_run_unless_native_is_asked_for(
    images, filters, options
) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True)
        for s in (images, filters)
    ]
    assert gradcheck(lambda x, w: kernels.task_conv2d(x, w, **options), inputs, fast_mode=True)
    assert gradgradcheck(lambda x, w: kernels.task_conv2d(x, w, **options), inputs, fast_mode=True)
    values = [ops.task_conv2d(*inputs, **options) for ops in (kernels, reference)]
    torch.testing.assert_close(*values, rtol=1e-11, atol=1e-12)
    with kernels.use("native"), pytest.raises(kernels.BackendError, match=NATIVE_REFUSES):
        kernels.task_conv2d(*inputs, **options)


# Where the module is not built, that is the reason.
NATIVE_REFUSES = "native (conv|norm_act) takes .*; ask for 'auto'|native: "


def test_other_geometries_of_batch_norm_run_unless_native_is_asked_for() -> None:
    inputs = cases.norm_inputs(cases.SMALL[0])
    inputs = [t.requires_grad_() for t in (inputs[0][..., :4], *inputs[1:])]

    def f(*inputs: torch.Tensor) -> torch.Tensor:
        return kernels.per_step_batch_norm(*inputs, negative_slope=0.1, pool=True)[0]

    assert gradcheck(f, inputs, fast_mode=True) and gradgradcheck(f, inputs, fast_mode=True)
    with kernels.use("native"), pytest.raises(kernels.BackendError, match=NATIVE_REFUSES):
        f(*inputs)


@pytest.mark.parametrize("op", ["conv", "norm_act", "update"])
def test_a_backend_that_is_not_built_is_refused_with_its_reason(op: str, monkeypatch) -> None:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "not built: no compiler")
    x = torch.zeros(1)
    assert kernels.backend(op, x) is getattr(plain, op)
    with kernels.use("native"), pytest.raises(kernels.BackendError, match="no compiler"):
        kernels.backend(op, x)


def test_ops_that_native_leaves_out_say_so() -> None:
    *inputs, labels = cases.head_inputs(cases.SMALL[0])
    with kernels.use("native"), pytest.raises(kernels.BackendError, match="native has no head: "):
        kernels.linear_cross_entropy(*inputs, labels)


def test_ops_that_cuda_leaves_out_say_so() -> None:
    for op in ("passes", "conv", "stem", "head", "lstm", "gather"):
        with kernels.use("cuda"), pytest.raises(kernels.BackendError, match=f"cuda has no {op}: "):
            kernels.backend(op, torch.zeros(1))


def test_the_table_of_backends_prints() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "kernels"], capture_output=True, text=True, check=True
    )
    for op in ("passes", "conv", "norm_act", "stem", "head", "update", "lstm", "gather"):
        assert f"{op:<10} cpu" in run.stdout
    assert native.module is None or "precision of passes on cpu: fp32" in run.stdout


def test_kernels_does_not_import_the_engine() -> None:
    code = "import sys, kernels; sys.exit(any(m.split('.')[0] == 'engine' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_triton_refuses_a_gpu_that_is_not_the_current_one(monkeypatch):
    if triton.reason:
        pytest.skip(triton.reason)
    monkeypatch.setattr(triton, "interpreted", False)
    assert triton.refuses(torch.device("cuda"), torch.float32) is None
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert triton.refuses(torch.device("cuda:0"), torch.float32) is None
    refused = triton.refuses(torch.device("cuda:1"), torch.float32)
    assert refused == "triton runs on the current GPU, not on cuda:1; use torch.cuda.device"


@pytest.mark.parametrize("channels, vector", [(4, 4), (12, 4), (6, 2), (16, 16), (48, 16)])
def test_bytes_of_winners_are_aligned_to_the_vectors_that_read_them(channels, vector):
    """As of a slice of one large buffer, that hooks on saved tensors may give back."""
    shape = 2, 3, 4, 4, channels
    memory = torch.arange(2 * 48 * channels + 1).to(torch.uint8)
    winners = memory[1:].view(shape).permute(0, 1, 4, 2, 3)
    found = images(winners)
    assert torch.equal(found, winners) and found.data_ptr() % vector == 0
