"""The first stage by its patch moments, against convolution and batch norm as ordinary torch."""

import pytest
import torch
from torch.func import jvp, vjp

from kernels import cases, reference
from kernels.plain import conv, norm_act, stem, window

EPS = 1e-5
POOLED = [case for case in cases.SMALL if case.pool]

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
        z = reference.task_conv2d(x, w)
        return reference.per_step_batch_norm(
            z,
            gain,
            bias,
            torch.arange(case.tasks),
            eps=EPS,
            negative_slope=case.negative_slope,
            pool=True,
            statistics=statistics,
        )[0]

    return y


def forward(case, x, w, gain, bias, statistics):
    moments = stem.patches(x)
    return stem.fwd(x, moments, w, gain, bias, EPS, case.negative_slope, statistics)


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("given", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("case", POOLED, ids=lambda c: c.name)
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


@pytest.mark.parametrize(("shift", "budget"), [(0.0, 2), (0.3, 8)], ids=["balanced", "shifted"])
@pytest.mark.parametrize(("spread", "mean"), [(1.0, 0.0), (0.27, 0.92)], ids=["centred", "bright"])
@pytest.mark.parametrize("name", ["mini-1-support", "omniglot-1"])
def test_float32_error(name: str, spread: float, mean: float, shift: float, budget: int) -> None:
    """Against convolution and batch norm with the same winners.

    The filters' gradient is Σδ·patch − s₁·m − …, where a δ with a mean far from 0 cancels on bright
    images: such a gradient has the wider budget. A cross-entropy's has a mean near 0.
    """
    case = next(c for c in cases.REAL if c.name == name)
    x, w, gain, bias, _ = problem(case, False, torch.float32)
    x = spread * x + mean
    _, saved = forward(case, x, w, gain, bias, None)
    dy = torch.randn(saved.y.shape, generator=torch.Generator().manual_seed(0)) + shift

    def composed_with_winners_of_stem(x, w, gain, bias, dy):
        z = conv.fwd(x, w, 1, 1)
        _, kept = norm_act.fwd(z, gain, bias, EPS, 1.0, False, None)
        x_hat = window.at_winners(kept.x_hat, saved.index)
        y = window.wide(gain) * x_hat + window.wide(bias)
        kept = kept._replace(
            index=saved.index, x_hat=x_hat, y=saved.y.to(y), negative_slope=case.negative_slope
        )
        dz, d_gain, d_bias = norm_act.bwd(kept, gain, dy)
        return y, conv.bwd(dz, x, w, 1, 1, (False, True))[1], d_gain, d_bias

    inputs = x, w, gain, bias, dy
    exact = composed_with_winners_of_stem(*(t.double() for t in inputs))
    plain = composed_with_winners_of_stem(*inputs)
    y = window.wide(gain) * saved.x_hat + window.wide(bias)
    ours = y, *stem.bwd(saved, gain, dy)
    for a, p, e, factor in zip(ours, plain, exact, (2, budget, 2, 2), strict=True):
        error, limit = ((t - e).norm() / e.norm() for t in (a, p))
        assert error <= factor * limit + torch.finfo(torch.float32).eps
