"""Whole passes and the meta-gradient through them: against the same composed of plain ops in
float64, by an error budget.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from engine import unroll
from engine.models.backbone import Backbone
from engine.models.interface import Moments, Params
from kernels import reference, triton
from kernels.check.oracle import weights
from kernels.triton import passes
from tests.ops import randn
from tests.passes import (
    Problem,
    Results,
    away_from_ties,
    budget,
    composed,
    composed_features,
    error,
    fused,
    fused_features,
    named,
)
from tests.slow import chosen
from tests.test_adjoint import random_problem

UNIT = torch.finfo(torch.float32).eps


def triton_pass(made: Problem) -> Results:
    return fused(triton.passes, made)


# The network, its images and tasks, and the statistics: odd sides and even ones, both ways to halve
# them, a stage without the moments of patches, more pixels, images and filters than one program
# does.
CASES = {
    "pool-odd": (Backbone(1, 9, 5, 2, 4), 3, 1, None),
    "pool-each": (Backbone(3, 6, 4, 2, 3, negative_slope=0.0), 2, 2, "each"),
    "three-stages": (Backbone(2, 8, 18, 3, 17, negative_slope=1.0), 2, 1, "shared"),
    "many-channels": (Backbone(5, 5, 3, 1, 2), 3, 1, None),
    "many-images": (Backbone(1, 2, 3, 1, 2), 66, 1, None),
    "many-images-mean": (Backbone(1, 3, 3, 1, 2, "stride"), 66, 1, None),
    "many-filters": (Backbone(1, 4, 66, 1, 3), 2, 1, None),
    "stride": (Backbone(2, 7, 5, 2, 3, "stride"), 2, 1, None),
    "stride-each": (Backbone(1, 6, 4, 1, 3, "stride"), 3, 2, "each"),
    "stride-pixel": (Backbone(1, 3, 34, 2, 3, "stride"), 17, 1, None),
}
EVERY_DAY = "pool-odd", "stride", "pool-each", "many-images", "stride-each"


@pytest.mark.parametrize("case", chosen(CASES, EVERY_DAY))
def test_error_is_within_budget(case) -> None:
    model, images, tasks, given = case
    made = away_from_ties(model, images, tasks, given)
    exact, allowed = budget(made, units=4)
    ours = triton_pass(made)
    for name, value in named(model, ours).items():
        assert error(value, exact[name]) <= allowed[name], name
    plain, precise = composed(made), composed(made.to(torch.float64))
    for name in ("loss", "logits", "mean", "var"):
        ours_of_it, torchs, e = (getattr(r, name) for r in (ours, plain, precise))
        assert error(ours_of_it, e) <= 2 * error(torchs, e) + 4 * UNIT, name


@pytest.mark.parametrize("case", chosen(CASES, EVERY_DAY[:2]))
def test_error_of_features_and_their_pullback_is_within_budget(case) -> None:
    model, images, tasks, given = case
    made = away_from_ties(model, images, tasks, given)
    ours, plain = fused_features(triton.passes, made), composed_features(made)
    exact = composed_features(made.to(torch.float64))
    for name, a, p, e in zip(exact._fields, ours, plain, exact, strict=True):
        assert a.shape == e.shape and error(a, e) <= 2 * error(p, e) + 4 * UNIT, name


@pytest.mark.parametrize("mean", [0.0, 0.92], ids=["centred", "bright"])
def test_moments_of_patches(mean: float) -> None:
    """Of several parts of several tiles; a batch norm sees them as variances along filters."""
    x = (0.27 * randn(0, 2, 3, 28, 28, 2) + mean).float()
    ours = passes.patches(x, "ieee")
    d = 18

    def covariance(x: Tensor) -> Tensor:
        rows = F.unfold(x.flatten(0, 1).permute(0, 3, 1, 2), 3, padding=1)
        rows = rows.unflatten(0, (2, 3)).transpose(1, 2).flatten(2)
        rows = rows - rows.mean(2, keepdim=True)
        return rows @ rows.mT / rows.shape[2]

    exact, plain = covariance(x.double()), covariance(x)
    assert not ours.cov[:, d:].any() and not ours.mean[:, d:].any()
    assert error(ours.cov[:, :d, :d], exact) <= 2 * error(plain, exact) + UNIT
    bordered = F.pad(x, (0, 0, 1, 1, 1, 1))
    patches = bordered.unfold(2, 3, 1).unfold(3, 3, 1).double().mean((1, 2, 3)).flatten(1)
    assert (ours.mean + ours.pivot)[:, :d].sub(patches).abs().max() <= 4 * UNIT * (1 + mean)


def test_statistics_of_a_stem_are_those_of_what_its_products_take() -> None:
    """In TF32: of images less their mean, and filters, of 10 bits of mantissa."""
    made = away_from_ties(Backbone(3, 12, 5, 2, 3), 3, 1, None).to(torch.float32)
    net = made.model.net._replace(precision="tf32")
    images = passes.prepare(net, made.x)
    found = passes.run(images, made.theta, made.row)
    w = weights(net, made.theta)[0][0]
    x = images.x[0].permute(0, 3, 1, 2)
    assert torch.equal(x, to_tf32(x)) and not torch.equal(w, to_tf32(w))
    pivot = images.patches.pivot[:, :27].view(1, 3, 3, 3)
    for filters, same in ((to_tf32(w), True), (w, False)):
        z = F.conv2d(x.double(), filters.double())
        lost = F.conv2d(pivot.double(), filters.double())
        moments = (z + lost).mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
        for ours, own in zip((found.mean, found.var), moments, strict=True):
            assert (error(ours[0, :5], own) < 1e-6) is same


def to_tf32(values: Tensor) -> Tensor:
    return ((values.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def cast(values, dtype: torch.dtype):
    """Parameters, an episode or moments with all but their labels in a dtype."""
    if values is None:
        return None
    fields = values._asdict() if isinstance(values, tuple) else vars(values)
    changed = {n: v.to(dtype) if v.is_floating_point() else v for n, v in fields.items()}
    return type(values)(**changed)


@pytest.mark.parametrize(
    ("model", "second_order", "use_running"),
    [(Backbone(1, 8, 4, 2, 3), True, False), (Backbone(2, 5, 3, 2, 3, "stride"), False, True)],
    ids=["second", "first-running"],
)
def test_the_meta_gradient(model: Backbone, second_order: bool, use_running: bool) -> None:
    params, episode, running = random_problem(model, 2, 2, 2)
    running = running if use_running else None
    singles = [cast(v, torch.float32) for v in (params, episode, running)]

    def arguments(dtype: torch.dtype) -> tuple:
        params, episode, running = (cast(v, dtype) for v in singles)
        return model, params, episode, [0.4, 0.6], second_order, running

    exact = unroll.total([unroll.autograd(*arguments(torch.float64), ops=reference)])
    ours = unroll.total([unroll.adjoint(*arguments(torch.float32))])
    with kernels.use("plain"):
        plain = unroll.total([unroll.adjoint(*arguments(torch.float32))])
    results = ([r.loss, r.logits, *r.gradient, *r.moments] for r in (ours, plain, exact))
    names = "loss", "logits", *Params._fields, *Moments._fields
    for name, a, p, e in zip(names, *results, strict=True):
        assert error(p, e) < 1e-4, f"{name}: another winner in float32, choose another seed"
        assert error(a, e) <= 2 * error(p, e) + 8 * UNIT, name
    assert ours.rows == exact.rows
