"""Meta-gradients of the reference implementation, reproduced in float64 through both unrolls."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels
from engine import meta, unroll
from engine.config import Config
from engine.episodes import Episode
from engine.model import Backbone, Params
from engine.passes import Moments
from kernels import reference
from tests.conftest import shared_folder

FOLDER = shared_folder("GOLDEN_DIR")
FILES = sorted(FOLDER.glob("*.npz"))
CLASSIFIER, RATES = (
    "classifier.layer_dict.",
    "inner_loop_optimizer.names_learning_rates_dict.layer_dict-",
)


class Golden:
    """One file, in this project's terms."""

    def __init__(self, path: Path):
        self.arrays = np.load(path)
        self.config = c = ast.literal_eval(str(self.arrays["config"]))
        self.model = Backbone(
            c["in_channels"],
            c["image"],
            c["filters"],
            4,
            c["ways"],
            "pool" if c["max_pool"] else "stride",
            c["negative_slope"],
            c["bn_eps"],
        )
        self.cfg = Config.of(
            "maml++",
            "folder",
            steps=c["steps"],
            msl_epochs=c["msl_epochs"],
            stages=4,
            norm_momentum=c["bn_momentum"],
        )
        self.params = self.read("init", steps=c["steps"])
        images = (self.tensor(f"{s}_x").flatten(1, 2) for s in ("support", "target"))
        labels = (torch.from_numpy(self.arrays[f"{s}_y"]).flatten(1) for s in ("support", "target"))
        support_x, target_x = images
        support_y, target_y = labels
        self.episode = Episode(support_x, support_y, target_x, target_y)

    @property
    def loss_weights(self) -> list[float]:
        """As the reference used them: it rounds its weights to float32."""
        if self.config["epoch"] < self.config["msl_epochs"]:
            return self.arrays["loss_weights"].tolist()
        return [0.0] * (self.config["steps"] - 1) + [1.0]

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key]).double()

    def stages(self, kind: str, name: str) -> list[torch.Tensor]:
        return [self.tensor(f"{kind}/{CLASSIFIER}conv{s}.{name}") for s in range(4)]

    def read(self, kind: str, steps: int) -> Params:
        """Parameters, or their gradients, in the engine's flat layout; conv biases have none
        here.
        """
        linear = [self.tensor(f"{kind}/{CLASSIFIER}linear.{n}") for n in ("weights", "bias")]
        tensors = self.stages(kind, "conv.weight") + linear
        gains, biases = (self.stages(kind, f"norm_layer.{n}") for n in ("weight", "bias"))
        norm = torch.cat(
            [
                t.reshape(-1, self.config["filters"])
                for p in zip(gains, biases, strict=False)
                for t in p
            ],
            1,
        )
        names = [f"conv{s}-conv-weight" for s in range(4)] + ["linear-weights", "linear-bias"]
        rates = [self.tensor(f"{kind}/{RATES}{name}")[:steps] for name in names]
        return Params(
            Backbone.flat([t.unsqueeze(0) for t in tensors])[0], norm, torch.stack(rates, 1)
        )

    def running(self, kind: str) -> Moments:
        """Running statistics without the conv bias, which the reference's means contain."""
        bias = self.stages("init", "conv.bias")
        mean = [
            m - b for m, b in zip(self.stages(kind, "norm_layer.running_mean"), bias, strict=False)
        ]
        return Moments(
            torch.cat(mean, 1), torch.cat(self.stages(kind, "norm_layer.running_var"), 1)
        )


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    scale = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= 1e-9 * scale, f"{what}: off by {error:.2e}, largest entry {scale:.2e}"


@pytest.fixture(params=FILES or [None], ids=lambda f: f.stem if f else "none")
def golden(request) -> Golden:
    if request.param is None:
        pytest.skip(f"no golden files in {FOLDER}; set GOLDEN_DIR")
    return Golden(request.param)


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
    c, tasks = golden.config, golden.config["tasks"]
    result = differentiate(
        golden.model,
        golden.params,
        golden.episode,
        [w / tasks for w in golden.loss_weights],
        c["second_order"],
    )
    expected = golden.read("grad", steps=c["steps"])
    assert_close(result.loss, golden.tensor("loss"), "loss")
    assert_close(result.logits, golden.tensor("final_target_logits"), "logits")
    names = list(golden.model.shapes)
    for name, a, e in zip(
        names,
        *(golden.model.weights(p.theta.unsqueeze(0)) for p in (result.gradient, expected)),
        strict=False,
    ):
        assert_close(a, e, name)
    for kind in ("norm", "rates"):
        for column in range(getattr(expected, kind).shape[0]):
            assert_close(
                getattr(result.gradient, kind)[column], getattr(expected, kind)[column], kind
            )
    accuracy = (result.logits.argmax(2) == golden.episode.target_y).double().mean().item()
    assert accuracy == pytest.approx(golden.arrays["accuracy"].item(), abs=1e-6)
    if c["per_step_bn"]:
        running = golden.running("init")
        after = meta.update_running(running, result.rows, result.moments, c["bn_momentum"])
        for name, a, e in zip(Moments._fields, after, golden.running("stats_after"), strict=False):
            assert_close(a, e, f"running {name}")


def test_loss_weights_follow_the_reference(golden: Golden) -> None:
    ours = meta.loss_weights(golden.config["epoch"], golden.cfg)
    assert ours == pytest.approx(golden.loss_weights, rel=1e-6)
