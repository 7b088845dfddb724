"""All that the functions of a backend's single ops give, for random operands of a size."""

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

EPS = 1e-5


def randn(
    seed: int, *shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(device, dtype)


def assert_close(ours, expected, tolerance: float = 1e-11) -> None:
    assert (ours is None) == (expected is None)
    if ours is not None:
        assert ours.shape == expected.shape and ours.dtype == expected.dtype
        limit = tolerance * expected.abs().max().clamp(min=1.0)
        assert (ours - expected).abs().max() <= limit


def given(every: bool, *dots: Tensor) -> Iterable[tuple[Tensor | None, ...]]:
    """Directions, each of them given or not; or all of them."""
    return product(*((None, dot) for dot in dots)) if every else [dots]


def conv_results(
    conv, size, stride: int, dtype=torch.float64, every: bool = True, kernel: int = 3
) -> list[Tensor | None]:
    """All that the functions give; for `every` choice of directions."""
    t, n, c, f, side = size
    out, padding = (side - 1) // stride + 1, kernel // 2
    x, x_dot = (randn(i, t, n, c, side, side, dtype=dtype) for i in (0, 1))
    w, w_dot = (randn(i, t, f, c, kernel, kernel, dtype=dtype) for i in (2, 3))
    dz, dz_dot = (randn(i, t, n, f, out, out, dtype=dtype) for i in (4, 5))
    results = [conv.fwd(x, w, stride, padding)]
    for need in ((True, True), (True, False), (False, True)):
        results += conv.bwd(dz, x, w, stride, padding, need)
    for a, b, g in given(every, x_dot, w_dot, dz_dot):
        results.append(conv.tan_fwd(x, w, a, b, stride, padding))
        for need in ((True, True), (False, True)):
            results += conv.tan_bwd(dz, g, x, w, a, b, stride, padding, need)
    return results


def norm_results(
    norm_act, size, slope, pooled, running, dtype=torch.float64, every: bool = True, device="cpu"
) -> list[Tensor | None]:
    t, n, _, c, side = size
    small, like = side // 2 if pooled else side, {"dtype": dtype, "device": device}
    z, z_dot = (randn(i, t, n, c, side, side, **like) for i in (0, 1))
    gain, bias, gain_dot, bias_dot = (randn(i, t, c, **like) for i in (2, 3, 4, 5))
    gain[0, 0] = 0.0
    dy, dy_dot = (randn(i, t, n, c, small, small, **like) for i in (6, 7))
    statistics = (randn(8, t, c, **like), 1 + randn(9, t, c, **like) ** 2)
    y, saved = norm_act.fwd(z, gain, bias, EPS, slope, pooled, statistics if running else None)
    results = [y, saved.mean, saved.var, *norm_act.bwd(saved, gain, dy)]
    for a, b, g, d in given(every, z_dot, gain_dot, bias_dot, dy_dot):
        y_dot, tangent = norm_act.tan_fwd(saved, gain, a, b, g)
        results += [y_dot, *norm_act.tan_bwd(saved, tangent, gain, dy, d, b)]
    return results


def update_results(
    update, tasks: int, sizes, dtype=torch.float64, device="cpu", each: bool = False
) -> list[Tensor | None]:
    """`each`: number has its own rate."""
    p, like = sum(sizes), {"dtype": dtype, "device": device}
    theta, grad, theta_dot, grad_dot = (randn(i, tasks, p, **like) for i in range(4))
    rates, rates_dot = (randn(i, p if each else len(sizes), **like) for i in (4, 5))
    sizes = None if each else sizes
    shared = theta[:1].expand(tasks, -1)
    results = [update.fwd(a, grad, rates, sizes) for a in (theta, shared, theta.mT.contiguous().mT)]
    results += update.bwd(theta, grad, rates, sizes)
    weighted, none = (randn(6, **like), grad_dot), (None, None, None)
    for terms in given(True, theta, theta_dot, weighted):
        for own in (rates, None) if terms != none else ():
            carry, product = (None if term is None else term.clone() for term in terms[:2])
            *found, parts = update.reverse(carry, product, terms[2], grad, own, sizes)
            results += [*found, update.of_rates(parts, sizes)]
    for a, b, r in given(True, theta_dot, grad_dot, rates_dot):
        results.append(update.tan_fwd(grad, rates, a, b, r, sizes))
        results += update.tan_bwd(theta, b, r, sizes)
    return results


def largest_error(ours, plains, exact) -> tuple[float, float]:
    """Relative to the scale of each result: of ours in float32, and of plain's."""
    errors = [(0.0, 0.0)]
    for a, p, e in zip(ours, plains, exact, strict=True):
        if e is not None and e.norm():
            errors.append(tuple(((t - e).norm() / e.norm()).item() for t in (a, p)))
    return tuple(map(max, zip(*errors, strict=True)))


def with_infinite_sums(norm_act, pooled: bool) -> list[Tensor]:
    """dz, and with the direction y_dot and dz_dot, all finite, by given statistics and gradients
    whose sums with x̂ leave float32.
    """
    z = randn(0, 2, 3, 5, 6, 6, dtype=torch.float32)
    z[0, 0, 1, 2, 2] = 1e36
    gain, bias, mean, var = 1 + randn(1, 4, 2, 5, dtype=torch.float32).square()
    y, saved = norm_act.fwd(z, gain, bias, EPS, 0.01, pooled, (mean, var))
    dy = torch.full_like(y, 1e3)
    y_dot, tangent = norm_act.tan_fwd(saved, gain, torch.ones_like(z), gain)
    dz, dgain, _ = norm_act.bwd(saved, gain, dy)
    assert dgain[0, 1] == torch.inf
    return [dz, y_dot, norm_act.tan_bwd(saved, tangent, gain, dy, dy, gain)[0]]
