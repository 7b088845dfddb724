"""What the public ops refuse, and the backend that dispatch chooses."""

import subprocess
import sys

import pytest
import torch

import kernels
from kernels import cases


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
