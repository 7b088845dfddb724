"""The backbone as data: layer sizes, initial parameters, and the loss over flat parameter buffers.

Conv 3×3 → per-step batch norm → leaky ReLU → 2×2 max pool (or stride 2 in the convolution),
`stages` times, then a linear classifier (paper §5; Vinyals et al. 2016). Convolutions have no bias:
batch norm removes it, its gradient is 0.

It is a `Model` of `engine.models.interface`. Its passes are in `engine.models.passes`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import kernels
from engine.episodes import Episode
from engine.models.flat import Flat
from engine.models.interface import Inputs, Moments, Params
from engine.models.passes import prepare


@dataclass(frozen=True)
class Backbone(Flat):
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

    @property
    def norm_widths(self) -> tuple[int, ...]:
        return (self.filters,) * self.stages

    @property
    def norm_sides(self) -> tuple[int, ...]:
        return self.image_sizes[:-1] if self.pool else self.image_sizes[1:]

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

    def features(self, x: Tensor) -> Tensor:
        """[T, N, F, h, w] → [T, N, D]: all values, or with stride-2 stages each filter's mean."""
        return x.flatten(2) if self.pool else x.mean((3, 4))

    def prepare(self, x: Tensor, passes: int) -> Inputs:  # [T, N, C, H, W]
        """Images that `passes` passes will read, as these read them best."""
        return prepare(self, x, passes)

    def parallel(self, episode: Episode) -> bool:
        return True

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
