"""The backbone as data: layer sizes, initial parameters, and the loss over flat parameter buffers.

Conv 3×3 → per-step batch norm → leaky ReLU → 2×2 max pool (or stride 2 in the convolution),
`stages` times, then a linear classifier (paper §5; Vinyals et al. 2016). Convolutions have no bias:
batch norm removes it, its gradient is 0.

It is a `Model` of `engine.models.interface`. Its passes are in `engine.models.passes`.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import kernels
from engine.episodes import Episode
from engine.models import buffers
from engine.models.interface import Inputs, Moments, Params
from engine.models.passes import prepare


@dataclass(frozen=True)
class Backbone:
    in_channels: int
    image_size: int
    filters: int
    stages: int
    ways: int
    downsample: str = "pool"
    negative_slope: float = 0.01
    norm_eps: float = 1e-5
    precision: str = "fp32"  # of kernels.PRECISIONS, or auto: what suits the device

    @classmethod
    def of(cls, cfg) -> "Backbone":
        return cls(
            cfg.channels,
            cfg.image_size,
            cfg.filters,
            cfg.stages,
            cfg.ways,
            cfg.downsample,
            cfg.negative_slope,
            cfg.norm_eps,
            cfg.precision,
        )

    @property
    def pool(self) -> bool:
        return self.downsample == "pool"

    @property
    def stride(self) -> int:
        return 1 if self.pool else 2

    @cached_property
    def image_sizes(self) -> tuple[int, ...]:
        """Side of each stage's input, and of the last output."""
        sizes = [self.image_size]
        for _ in range(self.stages):
            sizes.append(sizes[-1] // 2 if self.pool else (sizes[-1] + 1) // 2)
        return tuple(sizes)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every adapted tensor by name, in the order of the flat buffer: the L segments."""
        channels = [self.in_channels] + [self.filters] * self.stages
        shapes = {f"conv{s}.weight": (self.filters, channels[s], 3, 3) for s in range(self.stages)}
        width = self.filters * (self.image_sizes[-1] ** 2 if self.pool else 1)
        return shapes | {"linear.weight": (self.ways, width), "linear.bias": (self.ways,)}

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes.values())

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """Channels of every normalisation."""
        return (self.filters,) * self.stages

    @property
    def stat_width(self) -> int:
        return self.stages * self.filters

    def init(
        self,
        steps: int,
        norm_rows: int,
        inner_rate: float,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Params:
        """Xavier-uniform weights, zero biases, unit gains, equal rates, as the reference
        implementation.
        """
        kind = dict(dtype=dtype, device=generator.device)
        tensors = []
        for shape in self.shapes.values():
            tensor = torch.zeros(shape, **kind)
            if len(shape) > 1:
                torch.nn.init.xavier_uniform_(tensor, generator=generator)
            tensors.append(tensor.unsqueeze(0))
        norm = torch.tensor([1.0, 0.0], **kind).repeat(norm_rows, self.stages)
        rates = torch.full((steps, len(self.shapes)), inner_rate, **kind)
        return Params(self.flat(tensors)[0], norm.repeat_interleave(self.filters, 1), rates)

    def bessel(self, x: Tensor, like: Tensor) -> Tensor:  # [T, N, C, H, W]
        """n / (n − 1) for the n values behind each statistic of a pass over `x` [S]: biased →
        unbiased variance.
        """
        sides = self.image_sizes[:-1] if self.pool else self.image_sizes[1:]
        counts = tuple(x.shape[1] * side * side for side in sides)
        return buffers.bessel(counts, self.norm_widths, like.dtype, like.device)

    def weights(self, theta: Tensor) -> list[Tensor]:
        """The tensors [T, *shape] as views of the flat buffers [T, P]."""
        return buffers.views(theta, tuple(self.shapes.values()), self.sizes)

    flat = staticmethod(buffers.flat)

    @cached_property
    def net(self) -> kernels.Net:
        """The sizes as a backend that runs whole passes takes them."""
        return kernels.Net(
            self.in_channels,
            self.image_size,
            self.filters,
            self.stages,
            self.ways,
            self.pool,
            self.negative_slope,
            self.norm_eps,
        )

    def given(self, statistics: Moments | None, tasks: int) -> list[tuple[Tensor, Tensor] | None]:
        """Statistics to normalise by, of each stage [T, F]; `None` each for the batch's own."""
        if statistics is None:
            return [None] * self.stages
        parts = (m.expand(tasks, -1).split(self.filters, 1) for m in statistics)
        return list(zip(*parts, strict=True))

    def features(self, x: Tensor) -> Tensor:
        """[T, N, F, h, w] → [T, N, D]: all values, or with stride-2 stages each filter's mean."""
        return x.flatten(2) if self.pool else x.mean((3, 4))

    def prepare(self, x: Tensor, passes: int) -> Inputs:  # [T, N, C, H, W]
        """Images that `passes` passes will read, as these read them best."""
        return prepare(self, x, passes)

    def tied(self, gradient: Params) -> Params:
        return gradient

    random = False
    spreads = True

    def parallel(self, episode: Episode) -> bool:
        return True

    def during(self, episode: Episode, keeps: bool) -> AbstractContextManager[None]:
        return kernels.only_kernels()

    def task_block(self, episode: Episode, keeps: bool) -> int | None:
        return kernels.task_block(episode.support_x, keeps)

    def loss(
        self,
        theta: Tensor,  # [T, P]
        row: Tensor,  # [G]
        x: Tensor,  # [T, N, C, H, W]
        labels: Tensor,  # [T, N]
        statistics: Moments | None = None,
        ops=kernels,
    ) -> tuple[Tensor, Tensor, Moments]:  # loss [T], logits [T, N, ways], moments
        """The same loss for autograd to differentiate, by the public ops or by
        `kernels.reference`.
        """
        weights, means, variances = self.weights(theta), [], []
        rows = row.view(self.stages, 2, 1, self.filters)
        given = self.given(statistics, len(x))
        for s in range(self.stages):
            z = ops.task_conv2d(x, weights[s], stride=self.stride)
            x, mean, var = ops.per_step_batch_norm(
                z,
                rows[s, 0],
                rows[s, 1],
                eps=self.norm_eps,
                negative_slope=self.negative_slope,
                pool=self.pool,
                statistics=given[s],
            )
            means.append(mean)
            variances.append(var)
        loss, logits = ops.linear_cross_entropy(self.features(x), *weights[-2:], labels)
        return loss, logits, Moments(torch.cat(means, 1), torch.cat(variances, 1))
