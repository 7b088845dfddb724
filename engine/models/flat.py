"""What the networks have in common whose passes are kernels': parameters in flat buffers, and batch
norms whose statistics lie side by side.
"""

import math
from contextlib import AbstractContextManager
from functools import cached_property

from torch import Tensor

import kernels
from engine.episodes import Episode
from engine.models import buffers
from engine.models.interface import Moments, Params


class Flat:
    """Of a `Model` of `engine.models.interface` for images [T, N, C, H, W] all that follows from
    these three, which a network has:
    """

    shapes: dict[str, tuple[int, ...]]  # of every adapted tensor, in the order of the flat buffer
    norm_widths: tuple[int, ...]  # channels of every normalisation
    norm_sides: tuple[int, ...]  # of the images that each is of

    random = False
    spreads = True

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes.values())

    @property
    def stat_width(self) -> int:
        return sum(self.norm_widths)

    def bessel(self, x: Tensor, like: Tensor) -> Tensor:  # [T, N, C, H, W]
        """n / (n − 1) for the n values behind each statistic of a pass over `x` [S]: biased →
        unbiased variance.
        """
        counts = tuple(x.shape[1] * side * side for side in self.norm_sides)
        return buffers.bessel(counts, self.norm_widths, like.dtype, like.device)

    def weights(self, theta: Tensor) -> list[Tensor]:
        """The tensors [T, *shape] as views of the flat buffers [T, P]."""
        return buffers.views(theta, tuple(self.shapes.values()), self.sizes)

    flat = staticmethod(buffers.flat)

    def given(self, statistics: Moments | None, tasks: int) -> list[tuple[Tensor, Tensor] | None]:
        """Statistics to normalise by, of each normalisation [T, C]; `None` each for the batch's
        own.
        """
        if statistics is None:
            return [None] * len(self.norm_widths)
        parts = (m.expand(tasks, -1).split(self.norm_widths, 1) for m in statistics)
        return list(zip(*parts, strict=True))

    def tied(self, gradient: Params) -> Params:
        return gradient

    def during(self, episode: Episode, keeps: bool) -> AbstractContextManager[None]:
        return kernels.only_kernels()
