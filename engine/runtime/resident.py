"""Episodes gathered on a device from a class bank that lies there, by index.

Everything is a launch on the current stream: nothing waits for the device, so that a captured
iteration can begin with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.episodes import Draw, Episode, EpisodeSampler


class Feed:
    """Tasks of one shape: their indices are copied into the same place before each iteration."""

    def __init__(self, sampler: EpisodeSampler, bank: Tensor, tasks: int):
        # bank: uint8 [M, H, W, C] on the device
        device, samples = bank.device, (sampler.shots, sampler.targets)
        self._samples, self._shape = samples, bank.shape[1:]
        height, width, channels = self._shape
        self._pixels = bank.view(-1, channels)  # [M · H · W, C]
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
        first, turns = self._index[..., :-1], self._index[..., -1]
        places = self._places[turns].unsqueeze(2)  # [T, ways, 1, H · W]
        pixels = self._pixels[first.unsqueeze(3) + places]  # [T, ways, samples, H · W, C]
        images = (self._images(part) for part in pixels.split(self._samples, 2))
        (support, target), (support_y, target_y) = images, self._labels
        return Episode(support, support_y, target, target_y)

    def _images(self, pixels: Tensor) -> Tensor:
        """float32 [T, ways · samples, C, H, W] of bytes [T, ways, samples, H · W, C]"""
        tasks, ways, samples = pixels.shape[:3]
        height, width, channels = self._shape
        x = pixels.view(tasks, ways, samples, height, width * channels)
        x = torch.mul(x, self._scale).add_(self._shift)
        return x.view(tasks, ways * samples, height, width, channels).permute(0, 1, 4, 2, 3)
