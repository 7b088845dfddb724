"""Outer iterations as a device runs them, on a CPU that stands in: the same states as on the host,
nothing that a capture forbids, nothing that moves or grows.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import graph
from engine.config import Config
from engine.data import load
from engine.episodes import EpisodeSampler

CPU = torch.device("cpu")


class Capturable(TorchDispatchMode):
    """Raises where a CUDA graph could not be captured: the host reads a value, or makes one."""

    READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "lift_fresh"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.READS, f"{name} waits for the device or copies from the host"
        return func(*args, **kwargs or {})


@pytest.fixture
def captures(monkeypatch) -> list:
    """Stands in for the capture: warm-ups, then each replay the body again, guarded."""
    made = []

    def capture(body, device):
        for _ in range(graph.WARM_UPS):
            body()

        def replay() -> None:
            with Capturable():
                body()

        made.append(replay)
        return replay

    monkeypatch.setattr(graph, "capture", capture)
    return made


def config(**explicit) -> Config:
    small = dict(image_size=14, channels=1, filters=4, stages=2, ways=3, shots=1, targets=2)
    schedule = dict(steps=2, epochs=3, iterations=3, tasks=2, msl_epochs=1, first_order_epochs=2)
    return Config.of("maml++", "mini", **small | schedule | explicit)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load("mini", None, image_size=14, channels=1, cache=cache)


def sampler(cfg: Config, dataset, part: str = "train") -> EpisodeSampler:
    return EpisodeSampler(
        dataset, part, ways=cfg.ways, shots=cfg.shots, targets=cfg.targets, seed=0,
        rotations=cfg.rotations,
    )  # fmt: skip


def tensors(state) -> list[torch.Tensor]:
    return [tensor for group in state[:-1] for tensor in group]
