"""Calls of the native passes by right arguments and those of any other kind or call: each gives
what plain ops give or is refused in one line, and memory is never read past its end.
"""

import dataclasses
import math
import random
import sys
from functools import cache

import pytest
import torch
from torch import Tensor

from engine.models.backbone import Backbone
from engine.models.interface import Moments
from kernels import Net, native
from kernels.native import passes
from tests.passes import (
    Problem,
    Results,
    ToFeatures,
    assert_close,
    composed,
    composed_features,
    d_features,
    problem,
)
from tests.tiny import call

pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")

WRONG = [
    0, -1, -(2**31), 2**31 - 1, 2**31, 2**63, 10**40, True, False, None, 1.0, 0.5, -0.5, math.nan,
    math.inf, 1e300, 1e-320, "fp32", "bf16", "", "__class__", b"", (), [], torch.ones(2),
]  # fmt: skip
BASES = [
    problem(Backbone(3, 9, 5, 2, 4), 3, 2),
    problem(Backbone(3, 9, 5, 2, 4), 3, 2, "each", seed=1),
    problem(Backbone(3, 9, 5, 2, 4), 2, 2, seed=2),
    problem(Backbone(1, 8, 6, 3, 4), 3, 1, "shared", seed=3),
    problem(Backbone(2, 7, 5, 2, 4, "stride"), 3, 2, seed=4),
    problem(Backbone(3, 9, 5, 2, 3), 3, 2, seed=5),
]
CHANGES = [
    lambda t: t.float(),
    lambda t: t.half(),
    lambda t: t.long(),
    lambda t: t.to("meta"),
    lambda t: t[:1],
    lambda t: t[:0],
    lambda t: t[..., 1:],
    lambda t: t.flatten(),
    lambda t: t[None],
    lambda t: torch.stack([t, t], -1)[..., 0],
    lambda t: t[:1].expand(t.shape),
    lambda t: t.flip(-1),
    lambda t: None,
]


class Draw(random.Random):
    """Right arguments mostly."""

    def seldom(self, right, wrong: list):
        return self.choice(wrong) if self.random() < 0.06 else right

    def changed(self, value, fields: dict[str, list]):
        """A named tuple, some of its fields as others'."""
        return value._replace(
            **{name: self.seldom(getattr(value, name), wrong) for name, wrong in fields.items()}
        )

    def tensor(self, right: Tensor) -> Tensor:
        return self.seldom(lambda t: t, CHANGES)(right)


@cache
def images_of(made: Problem) -> passes.Images:
    return passes.prepare(made.model.net, made.x)


@cache
def kept_of(made: Problem) -> passes.Kept:
    run = made.theta, made.row, made.labels, made.statistics, True
    return passes.run(images_of(made), *run).kept


@cache
def features_of(made: Problem) -> passes.KeptFeatures:
    return passes.embed(images_of(made), made.theta, made.row, made.statistics, True).kept


def attempt(draw: Draw) -> tuple[Problem, Results, ToFeatures, Tensor]:
    """The problem solved, as a rule one of `BASES`, its solutions, and what was pulled back."""
    made = draw.choice(BASES)
    net = draw.changed(made.model.net, dict.fromkeys(Net._fields, WRONG))
    made = made._replace(x=draw.tensor(made.x))
    images = passes.prepare(net, made.x)
    others = [*map(images_of, BASES)]
    fields = {name: [getattr(o, name) for o in others] for name in passes.Images._fields}
    fields |= {"dtype": [torch.float32, torch.float16], "device": [torch.device("meta")]}
    fields |= {"count": [0, -1, 1, 2, 4], "blocks": [*fields["blocks"], [], [None] * 2]}
    images = draw.changed(images, fields)
    for other in BASES:  # those of the same sizes, which are as good
        made = made._replace(x=other.x) if images.blocks is images_of(other).blocks else made
    statistics = made.statistics and Moments(*map(draw.tensor, made.statistics))
    made = made._replace(
        theta=draw.tensor(made.theta),
        row=draw.tensor(made.row),
        labels=draw.tensor(made.labels),
        statistics=statistics,
        direction=draw.tensor(made.direction),
    )
    operands = made.theta, made.row, made.labels, statistics, True
    *results, kept = passes.run(images, *operands)
    others = [*map(kept_of, BASES)]
    fields = {name: [getattr(o, name) for o in others] for name in passes.Kept._fields}
    kept = draw.changed(kept, fields)
    results = Results(*results, *passes.tangent(kept, made.direction))
    *found, kept = passes.embed(images, made.theta, made.row, statistics, True)
    others = [*map(features_of, BASES)]
    fields = {name: [getattr(o, name) for o in others] for name in passes.KeptFeatures._fields}
    kept = draw.changed(kept, fields)
    direction = draw.tensor(d_features(found[0]))
    found = ToFeatures(*found, *passes.pullback(kept, direction))
    sizes = dict(negative_slope=net.negative_slope, norm_eps=net.eps)
    return made._replace(model=dataclasses.replace(made.model, **sizes)), results, found, direction


def main(attempts: int) -> None:
    torch.set_num_threads(1)
    answered = 0
    for seed in range(attempts):
        try:
            made, results, found, pulled = attempt(Draw(seed))
        except ValueError as error:
            assert "\n" not in str(error), error
            continue
        if made.theta.dtype == torch.float64:
            assert_close(results, composed(made))
            assert_close(found, composed_features(made, pulled))
        answered += 1
    print(answered)


def test_right_arguments_are_answered_and_others_refused() -> None:
    code, out, err = call("tests.test_native_fuzz", 600)
    assert (code, err) == (0, "")
    assert 100 < int(out) < 500


if __name__ == "__main__":
    main(int(sys.argv[1]))
