"""The GPU benchmark reads from a pass by Triton what it chose, and then finds rounding alone."""

from dataclasses import replace

import torch

from bench.cases import Row, reduced
from bench.gpu import checks

SMALL = dict(image_size=12, stages=2, filters=4, tasks=1, ways=2, targets=1, steps=1)


def test_a_pass_with_its_winners_replayed_is_within_the_budget() -> None:
    cfg = replace(reduced(Row.of("omniglot 20w1s").config()), **SMALL)
    found = checks.passes(cfg, "support", "triton", torch.device("cpu"))
    assert found["replayed"] and found["repeats"]
    assert all(part["within"] for part in found["parts"].values())
