"""Random problems for whole passes of the backbone, and their results natively and composed of
plain ops.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine.models.backbone import Backbone
from engine.models.interface import Moments
from engine.models.passes import Composed
from kernels import native


class Problem(NamedTuple):
    model: Backbone
    x: Tensor  # [T, N, C, H, W]
    theta: Tensor  # [T, P]
    row: Tensor  # [G]
    labels: Tensor  # [T, N]
    statistics: Moments | None
    direction: Tensor  # [T, P]

    def to(self, dtype: torch.dtype) -> "Problem":
        statistics = self.statistics and Moments(*(s.to(dtype) for s in self.statistics))
        changed = {name: getattr(self, name).to(dtype) for name in ("x", "theta", "row")}
        changed |= {"direction": self.direction.to(dtype), "statistics": statistics}
        return self._replace(**changed)

    def of(self, tasks: slice) -> "Problem":
        """Some of its tasks."""
        changed = {
            name: getattr(self, name)[tasks] for name in ("x", "theta", "labels", "direction")
        }
        return self._replace(**changed)


class Results(NamedTuple):
    loss: Tensor
    logits: Tensor
    gradient: Tensor
    norm_gradient: Tensor
    mean: Tensor
    var: Tensor
    product: Tensor  # the tangent of the two gradients
    norm_product: Tensor


def problem(
    model: Backbone,
    images: int = 3,
    tasks: int = 2,
    given: str | None = None,  # statistics "shared" by the tasks, of "each", or the batch's own
    seed: int = 0,
) -> Problem:
    """In float64, with a gain of zero and a negative one where there is more than one."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    side, width = model.image_size, model.stat_width
    x = 0.5 + randn(tasks, images, side, side, model.in_channels).permute(0, 1, 4, 2, 3)
    fan_in = torch.cat(
        [
            torch.full((size,), 9.0 * shape[1] if len(shape) == 4 else float(shape[-1]))
            for size, shape in zip(model.sizes, model.shapes.values(), strict=True)
        ]
    )
    theta, direction = (randn(tasks, sum(model.sizes)) / fan_in.sqrt() for _ in range(2))
    row = (torch.tensor([[1.0], [0.0]]) + 0.3 * randn(model.stages, 2, model.filters)).double()
    if model.filters > 1:
        row[0, 0, 0] = 0.0
        row[-1, 0, 1] = -0.7
    labels = torch.randint(model.ways, (tasks, images), generator=g)
    shape = (width,) if given == "shared" else (tasks, width)
    statistics = Moments(0.1 * randn(*shape), 1 + 0.2 * randn(*shape).abs()) if given else None
    return Problem(model, x, theta, row.flatten(), labels, statistics, direction)


def native_pass(p: Problem) -> Results:
    return fused(native.passes, p)


def fused(backend, p: Problem) -> Results:
    """By a backend of whole passes."""
    images = backend.prepare(p.model.net._replace(precision=p.model.precision), p.x)
    *results, kept = backend.run(images, p.theta, p.row, p.labels, p.statistics, True)
    return Results(*results, *backend.tangent(kept, p.direction))


class ToFeatures(NamedTuple):
    """Of a pass that stops at the features, and its pullback."""

    features: Tensor
    mean: Tensor
    var: Tensor
    gradient: Tensor
    norm_gradient: Tensor


def fused_features(backend, p: Problem) -> ToFeatures:
    """By a backend of whole passes."""
    images = backend.prepare(p.model.net._replace(precision=p.model.precision), p.x)
    *found, kept = backend.embed(images, p.theta, p.row, p.statistics, True)
    return ToFeatures(*found, *backend.pullback(kept, d_features(found[0])))


def composed_features(p: Problem, direction: Tensor | None = None) -> ToFeatures:
    with kernels.use("plain"):
        images = Composed(p.model, p.x, None)
        h, moments, kept = images.embed(p.theta, p.row, p.statistics, True)
        return ToFeatures(
            h, *moments, *kept.pullback(d_features(h) if direction is None else direction)
        )


def d_features(features: Tensor) -> Tensor:
    """A gradient of theirs."""
    g = torch.Generator().manual_seed(7)
    return torch.randn(features.shape, generator=g, dtype=torch.float64).to(features.dtype)


def composed(p: Problem) -> Results:
    with kernels.use("plain"):
        images = Composed(p.model, p.x, None)
        result = images.loss_and_gradient(p.theta, p.row, p.labels, p.statistics, True)
        product, norm_product = result.kept.tangent(p.direction)
    *results, moments, _ = result
    return Results(*results, *moments, product, norm_product)


def assert_close(
    ours: Results | ToFeatures, expected: Results | ToFeatures, tolerance: float = 1e-10
) -> None:
    for name, a, e in zip(expected._fields, ours, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype, name
        limit = tolerance * e.abs().max().clamp(min=1e-3)
        assert (a - e).abs().max() <= limit, f"{name}: {(a - e).abs().max() / limit:.1e} × limit"


def margins(made: Problem, since: int = 0) -> float:
    """The least distance from a tie in a pooling window and from the bend of the activation, of
    values of the order of 1, behind stage `since` and those that follow it.
    """
    with kernels.use("plain"):
        images = Composed(made.model, made.x, None)
        operands = made.theta, made.row, made.labels, made.statistics
        stages = images.loss_and_gradient(*operands, True).kept.stages
    least = []
    rows = made.row.view(made.model.stages, 2, 1, 1, -1, 1, 1)
    for stage, (gain, bias) in list(zip(stages, rows, strict=True))[since:]:
        saved = stage.saved
        side = saved.centred.shape[-1] // 2 * 2
        z = (gain * saved.rstd[:, None, :, None, None] * saved.centred)[..., :side, :side]
        first, second = z.unfold(3, 2, 2).unfold(4, 2, 2).flatten(5).topk(2).values.unbind(5)
        tie = (first - second)[:, :, gain.flatten() != 0]
        least += [tie.min().item(), (first + bias).abs().min().item()]
    return min(least)


def away_from_ties(
    model: Backbone, images: int, tasks: int = 1, given: str | None = None
) -> Problem:
    """In float32, with the same winners and slopes in every precision: the first seed that gives
    margins of 25 units of rounding.
    """
    tries = (problem(model, images, tasks, given, seed).to(torch.float32) for seed in range(2, 40))
    return next(made for made in tries if margins(made.to(torch.float64)) > 3e-6)


def budget(made: Problem, units: int = 1) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The exact results, and what error float32 ones may have: four times that of plain torch
    (Winograd's 4×4 tiles have 2.4 times that of direct sums) and some units of rounding.
    """
    exact = named(made.model, composed(made.to(torch.float64)))
    plain = named(made.model, composed(made))
    rounding = units * torch.finfo(torch.float32).eps
    return exact, {name: 4 * error(plain[name], e) + rounding for name, e in exact.items()}


def error(ours: Tensor, exact: Tensor) -> float:
    return ((ours - exact).abs().max() / exact.abs().max()).item()


def on_a_grid(values: Tensor, step: float) -> Tensor:
    return (values / step).round() * step


def often_equal(model: Backbone, images: int, seed: int = 0) -> Problem:
    """Of values that are multiples of powers of two, and μ = 0, 1/√(σ² + ε) = 1: exact in any order
    of summation, and often equal. For ε = 2⁻¹⁷, three stages and six filters.
    """
    made = problem(model, images, tasks=1, seed=seed)
    mean = torch.zeros(model.stat_width, dtype=torch.float64)
    row = on_a_grid(made.row, 0.25).view(3, 2, 6)
    row[:, 0] = torch.tensor([1.0, -1.0, 0.0, 2.0, -2.0, 0.5], dtype=torch.float64)
    return made._replace(
        x=(made.x > 0.5).double(),
        theta=on_a_grid(made.theta, 0.25),
        row=row.flatten(),
        statistics=Moments(mean, 1 - 2.0**-17 + mean),
    )


def named(model: Backbone, results: Results) -> dict[str, Tensor]:
    """The gradient and the tangent, layer by layer."""
    *filters, linear, bias = model.sizes
    parts = {"norm_gradient": results.norm_gradient, "norm_product": results.norm_product}
    for name in ("gradient", "product"):
        layers = getattr(results, name).split((*filters, linear + bias), 1)
        parts |= {f"{name} of layer {i}": layer for i, layer in enumerate(layers)}
    return parts
