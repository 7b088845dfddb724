"""Products in bfloat16: of operands that it holds exactly the same results as in float32, of others
an error budget, and the promises of every pass.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

import kernels
from engine import meta
from engine.config import Config
from engine.errors import UserError
from engine.models.backbone import Backbone
from engine.models.interface import Moments
from engine.runtime.machine import machine
from kernels import native
from kernels.native import passes
from tests.passes import Problem, composed, margins, named, native_pass, problem
from tests.test_meta import config, random_episode

pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")

NARROW = ("bf16x3", "bf16")


@pytest.fixture(params=NARROW)
def precision(request) -> str:
    if reason := passes.refusal(request.param):
        pytest.skip(reason)
    return request.param


def at(precision: str, made: Problem) -> Problem:
    return made._replace(model=replace(made.model, precision=precision))


def on_a_grid(values: torch.Tensor, step: float, most: float) -> torch.Tensor:
    return (values / step).round().clamp(-most / step, most / step) * step


@pytest.mark.parametrize(("side", "filters"), [(12, 5), (13, 16), (21, 33), (14, 64)])
def test_operands_that_bfloat16_holds_give_the_logits_of_float32(side, filters, precision) -> None:
    # A first stage of one channel is float32 always; with μ = 0 and 1/√(σ² + ε) = 1 the cells of
    # the second are multiples of 1/8 that have at most eight bits, and the rounding of the first.
    model = Backbone(1, side, filters, 2, 4, "pool", 0.5, norm_eps=2.0**-17)
    made = problem(model, images=5).to(torch.float32)
    theta = on_a_grid(made.theta, 0.5, 0.5)
    zeros, ones = torch.zeros(model.stat_width), torch.ones(model.stat_width)
    row = torch.stack([ones.view(2, -1), zeros.view(2, -1)], 1).flatten()
    exact = made._replace(
        x=(made.x > 0.5).float(),
        theta=theta,
        row=row,
        statistics=Moments(zeros, ones - 2.0**-17),
    )
    ours, expected = native_pass(at(precision, exact)), native_pass(exact)
    assert expected.mean.abs().max() > 0.1
    for name in ("logits", "mean", "var"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(expected, name), rtol=1e-5, atol=1e-6
        )


# Margins that keep the winners and slopes of float64, and errors in units of the largest value:
# twice those of a direct convolution with such operands (1e-5 to 3e-5, and 5e-3 to 2e-2, measured).
BUDGETS = {"bf16x3": (1e-3, 6e-5), "bf16": (3e-2, 4e-2)}


@cache
def apart(margin: float, channels: int, filters: int) -> Problem:
    model = Backbone(channels, 12, filters, 2, 4)
    tries = (problem(model, 2, 1, seed=seed).to(torch.float32) for seed in range(400))
    return next(p for p in tries if margins(p.to(torch.float64), since=1) > margin)


@pytest.mark.parametrize(("channels", "filters"), [(1, 2), (1, 4), (3, 2), (3, 4)])
def test_error_is_within_budget_where_winners_agree(
    channels: int, filters: int, precision: str
) -> None:
    margin, budget = BUDGETS[precision]
    made = apart(margin, channels, filters)
    exact = named(made.model, composed(made.to(torch.float64)))
    for name, ours in named(made.model, native_pass(at(precision, made))).items():
        error = (ours - exact[name]).abs().max() / exact[name].abs().max()
        assert error <= budget, f"{name}: {error:.1e}"
    rounded = native_pass(at(precision, made)).logits
    assert not torch.equal(rounded, native_pass(made).logits), "nothing was rounded"


MODEL = Backbone(1, 18, 20, 3, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_threads_layout_and_batch_do_not_change_a_bit(
    channels: int, precision: str, threads
) -> None:
    model = replace(MODEL, in_channels=channels)
    made = at(precision, problem(model, 7, 5, "each").to(torch.float32))
    torch.set_num_threads(1)
    together = native_pass(made)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert all(map(torch.equal, native_pass(made), together))
    for t in range(5):
        part = slice(t, t + 1)
        statistics = Moments(*(s[part] for s in made.statistics))
        alone = native_pass(made.of(part)._replace(statistics=statistics))
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("channels", [1, 3])
def test_not_a_number_stays_one(channels: int, where: str, precision: str) -> None:
    made = at(precision, problem(replace(MODEL, in_channels=channels), 3).to(torch.float32))
    head = sum(made.model.sizes[-2:])
    made.theta[0, 0 if where == "first" else -head - 1] = torch.nan  # of that convolution
    results = native_pass(made)
    assert results.loss[0].isnan() and results.loss[1].isfinite()
    assert results.gradient[0].isnan().any() and results.gradient[1].isfinite().all()


def test_meta_iterations_descend_as_in_float32(precision: str) -> None:
    cfg = config(image_size=28, filters=16)
    batch, losses = random_episode(cfg), {}
    for name in ("fp32", precision):
        chosen, state, losses[name] = replace(cfg, precision=name), meta.init_state(cfg), []
        for _ in range(8):
            state, metrics = meta.meta_step(state, batch, chosen)
            losses[name].append(metrics.loss)
    assert losses[precision][-1] < losses[precision][0]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.1)


def test_float64_has_no_products_in_bfloat16(precision: str) -> None:
    with pytest.raises(ValueError, match=f"native passes in {precision} take float32 images"):
        native_pass(at(precision, problem(MODEL)))


@pytest.mark.parametrize("precision", NARROW)
def test_a_processor_without_is_refused(precision: str) -> None:
    x = torch.zeros(1)
    try:
        native.module.limit_isa(native.module.Isa.avx2)
        with pytest.raises(kernels.BackendError, match=f"takes products in {precision} where"):
            kernels.passes(x, precision)
        assert kernels.fastest_precision(x) == "fp32" and kernels.passes(x) is passes
    finally:
        native.module.limit_isa(native.module.Isa.amx)
    with kernels.use("plain"), pytest.raises(kernels.BackendError, match="plain has no passes"):
        kernels.passes(x, precision)


def test_auto_is_as_good_as_float32() -> None:
    found = kernels.fastest_precision(torch.zeros(1))
    assert found == "fp32"  # of what nobody measured
    made = problem(MODEL).to(torch.float32)
    images = replace(MODEL, precision="auto").prepare(made.x, 2)
    assert images.images.net.precision == found


def test_autograd_has_no_products_in_bfloat16() -> None:
    with pytest.raises(UserError, match="--precision is bf16 with --unroll autograd"):
        Config.of(precision="bf16", unroll="autograd")


@pytest.mark.parametrize(("precision", "rounds"), [("fp32", False), ("auto", True)])
def test_composed_passes_in_fp32_switch_tf32_off(precision: str, rounds: bool, monkeypatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    with machine(config(backend="plain", precision=precision, device="cpu")):
        assert cudnn.allow_tf32 == rounds
    assert cudnn.allow_tf32
