"""How a picture becomes what a network sees: the same in training and for pictures of one's own.

A picture is brought to uint8 [size, size, channels], and a network sees
``(value * scale - mean) / std`` of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data import omniglot
from engine.data.images import decoded, fit, to_array
from engine.errors import UserError

_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation over ImageNet
_GREY = (0.449,), (0.226,)  # their means


@dataclass(frozen=True)
class Preparation:
    size: int
    channels: int
    binary: bool  # ink 0 and paper 1, as Omniglot, and not 0 to 255
    scale: float
    mean: tuple[float, ...]  # per channel, as std
    std: tuple[float, ...]

    @classmethod
    def of(cls, kind: str, size: int, channels: int) -> Preparation:
        """That of a kind of data, one of config.DATASETS."""
        if kind == "omniglot":
            return cls(size, channels, True, 1.0, (0.0,) * channels, (1.0,) * channels)
        return cls(size, channels, False, 1 / 255, *(_RGB if channels == 3 else _GREY))

    @classmethod
    def from_dict(cls, packed: dict[str, Any], size: int, channels: int) -> Preparation:
        """The inverse of ``to_dict``. Raises UserError when it is of other channels."""
        mean, std = tuple(packed["mean"]), tuple(packed["std"])
        if not len(mean) == len(std) == channels:
            raise UserError(
                f"the checkpoint normalises {len(mean)} and {len(std)} channels, its network takes "
                f"{channels}; it is damaged: give another"
            )
        return cls(size, channels, packed["binary"], packed["scale"], mean, std)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it beside its configuration."""
        return {
            "binary": self.binary,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """uint8 [size, size, channels] of the image in a file. Raises Unreadable."""
        return decoded(data, where, self.array)

    def array(self, image: Image.Image) -> np.ndarray:
        """uint8 [size, size, channels] of an image of 8 bits."""
        if not self.binary:
            return to_array(image, self.size, self.channels)
        return np.repeat(omniglot.drawing(image, self.size)[..., None], self.channels, axis=-1)

    def fit(
        self,
        images: np.ndarray,  # uint8 [N, H, W, 1 or 3]
    ) -> np.ndarray:  # uint8 [N, size, size, channels]
        if not self.binary:
            return fit(images, self.size, self.channels)
        grey = images.shape[-1] == 1
        return np.stack([self.array(Image.fromarray(i[..., 0] if grey else i)) for i in images])

    def seen(
        self,
        images: np.ndarray,  # uint8 [N, H, W, C]
    ) -> Tensor:  # float32 [N, C, H, W], NHWC in memory
        """What the network sees of them, to the bit what it saw in training."""
        std = np.array(self.std)
        x = np.multiply(images, (self.scale / std).astype(np.float32), dtype=np.float32)
        x += (-np.array(self.mean) / std).astype(np.float32)
        return torch.from_numpy(x).permute(0, 3, 1, 2)
