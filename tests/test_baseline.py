"""The baseline that everything is timed against reproduces the reference implementation's files."""

import re

from bench.baselines.loop import Loop
from bench.baselines.outer import BaselineConfig
from tests.golden import Golden, assert_close


def loop_of(golden: Golden) -> Loop:
    config, init = golden.config, golden.groups["init"]
    cfg = BaselineConfig(
        stages=4,
        steps=config["steps"],
        max_pool=config["max_pool"],
        per_step_norm=config["per_step_bn"],
        learned_rates=True,
        second_order=config["second_order"],
        loss_weights=golden.loss_weights if golden.multi_step else None,
        negative_slope=config["negative_slope"],
        norm_eps=config["bn_eps"],
        norm_momentum=config["bn_momentum"],
    )
    return Loop(cfg, *(init[kind] for kind in ("network", "norm", "rates", "stats")))


def test_loop_is_the_reference(golden: Golden):
    loop = loop_of(golden)
    loss, logits = loop.loss(*golden.sets)
    loss.backward()

    assert_close(loss, golden.tensor("loss"), "loss")
    assert_close(logits, golden.tensor("final_target_logits"), "logits")
    for kind, gradients in loop.gradients().items():
        expected = golden.groups["grad"][kind]
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            if not re.fullmatch(r"conv\d+\.bias", name):  # zero up to rounding, as their rates'
                assert_close(gradient, expected[name], f"gradient of {kind} {name}")
    if golden.config["per_step_bn"]:
        for name, expected in golden.groups["stats_after"]["stats"].items():
            assert_close(loop.stats[name], expected, f"statistics {name}")
