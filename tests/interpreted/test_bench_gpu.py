"""The GPU benchmark reads from a pass by Triton what it chose, and then finds rounding alone."""

from dataclasses import replace

import pytest
import torch

from bench import ops
from bench.cases import Row, reduced
from bench.gpu import checks, tuning
from kernels.triton import launch

CPU = torch.device("cpu")

SMALL = dict(image_size=12, stages=2, filters=4, tasks=1, ways=2, targets=1, steps=1)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_pass_with_its_winners_replayed_is_within_the_budget(precision: str) -> None:
    cfg = replace(reduced(Row.of("omniglot 20w1s").config()), **SMALL, precision=precision)
    found = checks.passes(cfg, "support", "triton", torch.device("cpu"))
    assert found["replayed"] and found["repeats"]
    assert all(part["within"] for part in found["parts"].values()), found["said"]
    errors = [part["error"] for part in found["parts"].values()]
    assert all((error > 1e-5) is (precision == "tf32") for error in errors)


def test_a_bend_that_hangs_on_a_rounding_is_taken_one_way_by_every_launch() -> None:
    """By the forward pass, the way back and their tangents, and by the check of them."""
    tiny = SMALL | dict(image_size=6, filters=2)
    cfg = replace(reduced(Row.of("omniglot 20w1s").config()), **tiny)
    made = checks.problem(cfg, "support", CPU)
    images = made.model.prepare(made.x, 2)
    first = images.loss_and_gradient(made.theta, made.row, made.labels, keep=True).kept.kept.stages[
        0
    ]
    gain, f = made.row[0], cfg.filters
    products = first.x_hat[..., 0] * gain  # of the first filter; its bias changes no x̂
    above = (first.x_hat[..., 0].double() * gain.double() - products > 0).flatten()
    row = made.row.clone()
    row[f] = -products.flatten()[above][0]  # rounded, the sum is 0; it is more
    found = checks.held(made._replace(row=row), "triton")
    assert found["bends"]["rounded"] >= 1 and found["bends"]["apart"] == 0
    # Taken otherwise by either, it is 1e-2; budgets vary too much over so few values.
    assert all(part["error"] < 1e-4 for part in found["parts"].values()), found["said"]


def test_a_launch_is_timed_under_the_name_of_what_configured_it() -> None:
    """Also where two of one kernel have the same options, as of two stages."""
    net = dict(image_size=16, stages=4, filters=4, tasks=1, ways=2, targets=1, steps=1)
    cfg = replace(reduced(Row.of("omniglot 20w1s").config()), **net, precision="tf32")
    parts = ops.passes(cfg, "triton", torch.float32, CPU, "support")
    with torch.no_grad(), tuning.recorded(launch) as groups:
        parts["bwd"]()
        parts["tan"]()
    splits = {g: calls[0].grid[0] for g, calls in groups.items() if g.kernel == "conv_wgrad"}
    assert len(splits) == 6 and len({launch.config(g, CPU)["per_split"] for g in splits}) < 6
    for g, count in splits.items():
        assert count == -(-g.pixels // launch.config(g, CPU)["per_split"]), g
    products = [(g, calls) for g, calls in groups.items() if g.kernel.startswith("conv")]
    assert len(products) == 18
    for g, calls in products:
        assert calls[0].kernel.fn.__name__ == f"{g.kernel}_kernel", g
