"""Meta-gradients of the reference implementation, reproduced in float64 through both unrolls."""

import pytest
import torch

import kernels
from engine import averages, meta, unroll
from engine.config import Config
from engine.episodes import Episode
from engine.models.interface import Moments
from kernels import reference
from tests.golden import Golden, assert_close, model_of, params_of


def config_of(golden: Golden) -> Config:
    c = golden.config
    return Config.of(
        "maml++",
        "folder",
        steps=c["steps"],
        msl_epochs=c["msl_epochs"],
        stages=4,
        norm_momentum=c["bn_momentum"],
    )


def running(golden: Golden, group: str) -> Moments:
    """Running statistics without the conv bias, which the reference's means contain."""
    stats, network = golden.groups[group]["stats"], golden.groups["init"]["network"]
    means = [stats[f"norm{s}.mean"] - network[f"conv{s}.bias"] for s in range(4)]
    return Moments(torch.cat(means, 1), torch.cat([stats[f"norm{s}.var"] for s in range(4)], 1))


def adjoint(*args):
    return unroll.adjoint(*args)


def composed(*args):
    with kernels.use("plain"):
        return unroll.adjoint(*args)


def autograd(*args):
    return unroll.autograd(*args)


def autograd_reference(*args):
    return unroll.autograd(*args, ops=reference)


@pytest.mark.parametrize("differentiate", [adjoint, composed, autograd, autograd_reference])
def test_meta_gradient(golden: Golden, differentiate) -> None:
    c, model = golden.config, model_of(golden)
    episode = Episode(*golden.sets)
    weights = [w / c["tasks"] for w in golden.loss_weights]
    block = differentiate(model, params_of(golden, "init"), episode, weights, c["second_order"])
    result = unroll.total([block])
    expected = params_of(golden, "grad")
    assert_close(result.loss, golden.tensor("loss"), "loss")
    assert_close(result.logits, golden.tensor("final_target_logits"), "logits")
    parts = (model.weights(p.theta.unsqueeze(0)) for p in (result.gradient, expected))
    for name, a, e in zip(model.shapes, *parts, strict=True):
        assert_close(a, e, name)
    for kind in ("norm", "rates"):
        for a, e in zip(getattr(result.gradient, kind), getattr(expected, kind), strict=True):
            assert_close(a, e, kind)
    accuracy = (result.logits.argmax(2) == episode.target_y).double().mean().item()
    assert accuracy == pytest.approx(golden.arrays["accuracy"].item(), abs=1e-6)
    if c["per_step_bn"]:
        after = averages.update(
            running(golden, "init"), result.rows, result.moments, c["bn_momentum"]
        )
        for name, a, e in zip(Moments._fields, after, running(golden, "stats_after"), strict=True):
            assert_close(a, e, f"running {name}")


def test_loss_weights_follow_the_reference(golden: Golden) -> None:
    ours = meta.loss_weights(golden.config["epoch"], config_of(golden))
    assert ours == pytest.approx(golden.loss_weights, rel=1e-6)
