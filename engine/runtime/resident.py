"""Episodes gathered on a device from a class bank that lies there, by index.

Everything is a launch on the current stream: nothing waits for the device, so that a captured
iteration can begin with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from engine.episodes import Draw, Episode, EpisodeSampler


class Feed:
    """Tasks of one shape: their indices are copied into the same place before each iteration."""

    def __init__(self, sampler: EpisodeSampler, bank: Tensor, tasks: int):
        # bank: uint8 [M, H, W, C] on the device
        device, samples = bank.device, (sampler.shots, sampler.targets)
        self._bank, self._shots = bank, sampler.shots
        height, width = bank.shape[1:3]
        places = torch.arange(height * width, device="cpu").view(height, width)
        turned = [places.rot90(quarter).flatten() for quarter in range(4)]
        # All four, or none where images are not square: their classes are never turned.
        self._places = torch.stack(turned if height == width else turned[:1] * 4).to(device)
        scale, shift = (torch.from_numpy(values) for values in (sampler.scale, sampler.shift))
        self._scale, self._shift = scale.to(device), shift.to(device)
        self._labels = [sampler.labels(tasks, count).to(device) for count in samples]
        # first pixels of images, then quarter turns
        shape = tasks, sampler.ways, sum(samples) + 1
        self._index = torch.zeros(shape, dtype=torch.int64, device=device)

    def staging(self) -> Tensor:
        """Room on the host for one batch's indices, from which a GPU copies while we go on."""
        pin = self._index.is_cuda
        return torch.empty(self._index.shape, dtype=torch.int64, device="cpu", pin_memory=pin)

    def load(self, draw: Draw, staging: Tensor) -> None:
        """Begins to copy indices; `staging` is in use until that is done."""
        torch.mul(torch.from_numpy(draw.rows), self._places.shape[1], out=staging[..., :-1])
        staging[..., -1] = torch.from_numpy(draw.turns)
        self._index.copy_(staging, non_blocking=True)

    def episode(self) -> Episode:
        """The tasks whose indices were loaded last."""
        pixels = self._bank, self._index, self._places, self._scale, self._shift
        support, target = kernels.gather(self._scale).fwd(*pixels, self._shots)
        support_y, target_y = self._labels
        return Episode(support, support_y, target, target_y)
