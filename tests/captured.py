"""A CPU that stands in for a GPU: captures, what they forbid, and tasks so small that they take no
time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from engine.config import Config
from engine.data import Dataset
from engine.data.bank import ClassBank
from engine.episodes import EpisodeSampler
from engine.runtime import graph
from kernels import head, native
from kernels.plain import window


class Capturable(TorchDispatchMode):
    """Raises where a CUDA graph could not be captured: the host reads a value, or makes one."""

    READS = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
    MADE = {"is_nonzero", "lift_fresh"}  # which torch does not tag
    INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.INDEXED:  # by places, which are there; a mask is counted first
            masks = (i for i in args[1] if i is not None)
            waits = any(i.dtype in (torch.bool, torch.uint8) for i in masks)
        else:
            waits = name in self.MADE or any(tag in func.tags for tag in self.READS)
        assert not waits, f"{name} waits for the device or copies from the host"
        return func(*args, **kwargs or {})


@contextmanager
def captures_stood_in() -> Iterator[list]:
    """Warm-ups, then each replay the body again, guarded; the replays that were made."""
    made = []

    def capture(body, device):
        for _ in range(graph.WARM_UPS):
            body()

        def replay() -> None:
            # A kernel of the CPU reads the learning rate; the plain ops leave it where it is.
            of_cpu = kernels.backend("update", torch.empty(0)) is native.update
            with nullcontext() if of_cpu else Capturable():
                body()

        made.append(replay)
        return replay

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "capture", capture)
        # As on a device. Single tasks would run in other threads, which no guard sees.
        patch.setattr(window, "all_positive", lambda gain: False)
        patch.setattr(head, "_check_labels", lambda labels, ways: None)
        patch.setattr(kernels, "task_block", lambda like, keeps=False: None)
        yield made


def config(**explicit) -> Config:
    small = dict(image_size=14, channels=1, filters=4, stages=2, ways=3, shots=1, targets=2)
    schedule = dict(steps=2, epochs=3, iterations=3, tasks=2, msl_epochs=1, first_order_epochs=2)
    return Config.of("maml++", "mini", **small | schedule | explicit)


def noise() -> Dataset:
    """Classes of 6 images of 14 × 14 in each split."""
    rng = np.random.default_rng(0)
    starts = torch.arange(0, 8 * 6 + 1, 6)
    names = tuple(f"c{c}" for c in range(8))
    banks = {
        split: ClassBank(
            torch.from_numpy(rng.integers(0, 256, (48, 14, 14, 1), np.uint8)), starts, names
        )
        for split in ("train", "val", "test")
    }
    return Dataset("noise", banks, 1 / 255, (0.5,), (0.25,), "noise", None)


def sampler(cfg: Config, data: Dataset) -> EpisodeSampler:
    sizes = {name: getattr(cfg, name) for name in ("ways", "shots", "targets", "rotations")}
    return EpisodeSampler(data, "train", seed=0, **sizes)
