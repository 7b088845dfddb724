"""The first stage by its patch moments, against convolution and batch norm as ordinary torch."""

import pytest
import torch
from torch.func import jvp, vjp

from kernels import cases, reference
from kernels.plain import norm_act, stem

EPS = 1e-5

# torch.func.jvp itself scripts a decomposition when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def problem(case, given: bool, dtype: torch.dtype = torch.float64):
    """x, w, gain, bias [T, F], and statistics to normalise with."""
    x, w = cases.conv_inputs(case, dtype)
    z, gain, bias = cases.norm_inputs(case, steps=case.tasks, dtype=dtype)
    statistics = (z.mean((1, 3, 4)) + 0.1, z.var((1, 3, 4)) * 1.2) if given else None
    return x, w, gain, bias, statistics


def composed(case, x, statistics):
    """y(w, gain, bias) by the definitions."""

    def y(w, gain, bias):
        z = reference.task_conv2d(x, w, stride=case.stride)
        return reference.per_step_batch_norm(
            z,
            gain,
            bias,
            torch.arange(case.tasks),
            eps=EPS,
            negative_slope=case.negative_slope,
            pool=case.pool,
            statistics=statistics,
        )[0]

    return y


def forward(case, x, w, gain, bias, statistics):
    moments = stem.patches(x, case.stride)
    options = EPS, case.negative_slope, case.pool, statistics
    return stem.fwd(x, moments, w, case.stride, gain, bias, *options)


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("case", cases.SMALL, ids=lambda c: c.name)
def test_value_gradient_and_tangents(case, given: bool) -> None:
    x, w, gain, bias, statistics = problem(case, given)
    f = composed(case, x, statistics)
    y, saved = forward(case, x, w, gain, bias, statistics)
    expected, pullback = vjp(f, w, gain, bias)
    close(y, expected)

    dy, dy_dot, w_dot = (
        torch.randn(t.shape, generator=torch.Generator().manual_seed(i), dtype=t.dtype)
        for i, t in enumerate((y, y, w))
    )
    gradient = stem.bwd(saved, gain, dy)
    for ours, exact in zip(gradient, pullback(dy), strict=True):
        close(ours, exact)

    exact_y_dot = jvp(lambda w: f(w, gain, bias), (w,), (w_dot,))[1]
    exact_gradient_dot = jvp(lambda w, dy: vjp(f, w, gain, bias)[1](dy), (w, dy), (w_dot, dy_dot))[
        1
    ]
    y_dot, tangent = stem.tan_fwd(saved, gain, w_dot)
    close(y_dot, exact_y_dot)
    for ours, exact in zip(
        stem.tan_bwd(saved, tangent, gain, dy, dy_dot), exact_gradient_dot, strict=True
    ):
        close(ours, exact)


def test_the_moments_are_those_of_the_output() -> None:
    case = cases.Case("many-blocks", 2, 19, 3, 4, 9)  # more images than one block unfolds
    x, w, gain, bias, _ = problem(case, False)
    _, saved = forward(case, x, w, gain, bias, None)
    z = reference.task_conv2d(x, w)
    close(saved.mean, z.mean((1, 3, 4)))
    close(saved.var, z.var((1, 3, 4), correction=0))


@pytest.mark.parametrize("name", ["mini-1-support", "omniglot-1"])
def test_float32_statistics_are_as_good_as_batch_norms(name: str) -> None:
    """On images with a large common mean, as photographs have, which cancels in the variance."""
    case = next(c for c in cases.REAL if c.name == name)
    x, w, gain, bias, _ = problem(case, False, torch.float32)
    x = 0.5 * x + 3
    exact = reference.task_conv2d(x.double(), w.double()).var((1, 3, 4), correction=0)
    _, saved = forward(case, x, w, gain[: case.tasks], bias[: case.tasks], None)
    z = reference.task_conv2d(x, w)
    _, plain = norm_act.fwd(z, gain[: case.tasks], bias[: case.tasks], EPS, 1.0, False, None)
    error, limit = ((s.var - exact).norm() / exact.norm() for s in (saved, plain))
    assert error <= 2 * limit + torch.finfo(torch.float32).eps
