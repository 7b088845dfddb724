"""The baseline that everything is timed against reproduces the reference implementation's files."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.baselines.loop import Loop
from bench.baselines.outer import BaselineConfig
from tests.conftest import shared_folder

FILES = sorted(shared_folder("GOLDEN_DIR").glob("*.npz"))
STATISTIC = {"running_mean": "mean", "running_var": "var"}


def our_name(name: str) -> tuple[str, str] | None:
    """(dictionary of Loop, name in it) of one of the file's parameter names."""
    rate = re.fullmatch(r"inner_loop.*\.layer_dict-(\w+?)(?:-conv)?-(\w+)", name)
    if rate:
        return "rates", f"{rate[1]}.{rate[2].replace('weights', 'weight')}"
    layer, rest = name.removeprefix("classifier.layer_dict.").split(".", 1)
    if rest.startswith("norm_layer."):
        tensor = rest.removeprefix("norm_layer.")
        kind = "stats" if tensor in STATISTIC else "norm"
        return kind, f"{layer.replace('conv', 'norm')}.{STATISTIC.get(tensor, tensor)}"
    return "network", f"{layer}.{rest.removeprefix('conv.').replace('weights', 'weight')}"


def read(file: Path):
    """Configuration, arrays, and the groups "init", "grad", "stats_after" under Loop's names."""
    arrays = dict(np.load(file))
    groups = {group: {} for group in ("init", "grad", "stats_after")}
    for key, value in arrays.items():
        group, _, name = key.partition("/")
        if name:
            kind, ours = our_name(name)
            groups[group].setdefault(kind, {})[ours] = torch.from_numpy(value)
    return ast.literal_eval(str(arrays["config"])), arrays, groups


def loop_of(config: dict, arrays: dict, init: dict) -> Loop:
    msl = config["epoch"] < config["msl_epochs"]
    cfg = BaselineConfig(
        stages=4,
        steps=config["steps"],
        max_pool=config["max_pool"],
        per_step_norm=config["per_step_bn"],
        learned_rates=True,
        second_order=config["second_order"],
        loss_weights=tuple(float(w) for w in arrays["loss_weights"]) if msl else None,
        negative_slope=config["negative_slope"],
        norm_eps=config["bn_eps"],
        norm_momentum=config["bn_momentum"],
    )
    order = ["network", "norm", "rates", "stats"]
    return Loop(cfg, *(init[kind] for kind in order))


def assert_close(actual: torch.Tensor, expected, what: str) -> None:
    expected = torch.as_tensor(expected)
    scale = expected.abs().max()
    error = (actual.detach() - expected).abs().max() / scale if scale > 0 else actual.abs().max()
    assert error <= 1e-9, f"{what}: relative error {error:.1e}"


@pytest.mark.skipif(not FILES, reason="no golden files; set GOLDEN_DIR to their folder")
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_loop_is_the_reference(file: Path):
    config, arrays, groups = read(file)
    loop = loop_of(config, arrays, groups["init"])
    sets = [
        torch.from_numpy(arrays[key]).flatten(1, 2)
        for key in ("support_x", "support_y", "target_x", "target_y")
    ]
    loss, logits = loop.loss(sets[0].double(), sets[1], sets[2].double(), sets[3])
    loss.backward()

    assert_close(loss, arrays["loss"], "loss")
    assert_close(logits, arrays["final_target_logits"], "logits")
    for kind in ("network", "norm", "rates"):
        for name, expected in groups["grad"][kind].items():
            if re.fullmatch(r"conv\d+\.bias", name):  # zero up to rounding, as are their rates
                continue
            assert_close(getattr(loop, kind)[name].grad, expected, f"gradient of {kind} {name}")
    if config["per_step_bn"]:
        for name, expected in groups["stats_after"]["stats"].items():
            assert_close(loop.stats[name], expected, f"statistics {name}")
