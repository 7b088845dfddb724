"""ResNet-12, the second network of few-shot learning: four blocks of three convolutions, a 1×1
shortcut and a 2×2 max pool, then the mean over the image and a linear classifier (Mishra et al.
2018; TADAM, Oreshkin et al. 2018, §4; widths of 64 to 640 as in Lee et al. 2019, §4).

A block is maxpool(leaky_relu(norm(conv(u)) + norm(shortcut(x)))), u being x after two of conv 3×3 →
per-step batch norm → leaky ReLU. There is no DropBlock, and no bias before a norm.

It is a `Model` of `engine.models.interface`. Its passes are in `engine.models.residual`.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from engine.episodes import Episode
from engine.errors import UserError
from engine.models.flat import Flat
from engine.models.interface import Inputs, Moments, Params
from engine.models.residual import UNITS, Images
from kernels import dispatch

WIDTHS = (64, 160, 320, 640)


@dataclass(frozen=True)
class ResNet12(Flat):
    """Raises UserError for images that its pools would leave nothing of."""

    in_channels: int
    image_size: int
    ways: int
    widths: tuple[int, ...] = WIDTHS  # of the blocks
    negative_slope: float = 0.1
    norm_eps: float = 1e-5

    @classmethod
    def of(cls, cfg) -> "ResNet12":
        return cls(
            cfg.channels,
            cfg.image_size,
            cfg.ways,
            tuple(map(int, cfg.widths.split(","))),
            cfg.negative_slope,
            cfg.norm_eps,
        )

    def __post_init__(self) -> None:
        least = 2 ** len(self.widths)
        if self.image_size < least:
            raise UserError(
                f"image size is {self.image_size}: ResNet-12 halves it {len(self.widths)} times "
                f"and takes {least} or more"
            )

    @cached_property
    def image_sizes(self) -> tuple[int, ...]:
        """Side of each block's input, and of the last output."""
        return tuple(self.image_size // 2**b for b in range(len(self.widths) + 1))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every adapted tensor by name, in the order of the flat buffer: the L segments."""
        shapes, channels = {}, self.in_channels
        for b, width in enumerate(self.widths):
            inputs, sizes = (channels, width, width, channels), (3, 3, 3, 1)
            for unit, c, size in zip(UNITS, inputs, sizes, strict=True):
                shapes[f"block{b}.{unit}.weight"] = (width, c, size, size)
            channels = width
        return shapes | {"linear.weight": (self.ways, channels), "linear.bias": (self.ways,)}

    @cached_property
    def norm_widths(self) -> tuple[int, ...]:
        return tuple(width for width in self.widths for _ in UNITS)

    @cached_property
    def norm_sides(self) -> tuple[int, ...]:
        return tuple(side for side in self.image_sizes[:-1] for _ in UNITS)

    def init(
        self,
        steps: int,
        norm_rows: int,
        inner_rate: float,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Params:
        """Normal filters by He et al. 2015 over what leaves them, a Xavier-uniform classifier, zero
        biases, unit gains, equal rates.
        """
        kind = dict(dtype=dtype, device=generator.device)
        tensors = []
        for shape in self.shapes.values():
            tensor = torch.zeros(shape, **kind)
            if len(shape) == 4:
                torch.nn.init.kaiming_normal_(
                    tensor, self.negative_slope, "fan_out", "leaky_relu", generator
                )
            elif len(shape) == 2:
                torch.nn.init.xavier_uniform_(tensor, generator=generator)
            tensors.append(tensor.unsqueeze(0))
        norm = torch.cat([torch.tensor([1.0, 0.0], **kind).repeat_interleave(width)
                          for width in self.norm_widths])  # fmt: skip
        rates = torch.full((steps, len(self.shapes)), inner_rate, **kind)
        return Params(self.flat(tensors)[0], norm.repeat(norm_rows, 1), rates)

    def affine(self, row: Tensor) -> list[tuple[Tensor, Tensor]]:
        """[G] → gain and bias of each normalisation, [1, C] each."""
        rows = row.split([2 * width for width in self.norm_widths])
        return [tuple(part.view(2, 1, -1)) for part in rows]

    def prepare(self, x: Tensor, passes: int) -> Inputs:  # [T, N, C, H, W]
        return Images(self, x)

    def parallel(self, episode: Episode) -> bool:
        """Plain convolutions take one core, so that tasks should run at once. Other ones share the
        images of a task over the threads.
        """
        return dispatch.choose("conv", torch.device("cpu"), torch.float32)[0] == "plain"

    def task_block(self, episode: Episode, keeps: bool) -> int | None:
        """Tasks of a call are held at once, and a task has gigabytes: as few as keep all threads
        busy, where two of them find enough to share in its images. A GPU wants all.
        """
        if episode.support_x.device.type != "cpu":
            return None
        return 1 if self.parallel(episode) else max(1, kernels.threads() // 2)

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
        parts = list(
            zip(weights[:-2], self.affine(row), self.given(statistics, len(x)), strict=True)
        )

        def unit(x: Tensor, at: int, slope: float) -> Tensor:
            weight, (gain, bias), given = parts[at]
            z = ops.task_conv2d(x, weight, padding=weight.shape[-1] // 2)
            options = dict(eps=self.norm_eps, negative_slope=slope, statistics=given)
            y, mean, var = ops.per_step_batch_norm(z, gain, bias, **options)
            means.append(mean)
            variances.append(var)
            return y

        for at in range(0, len(parts), len(UNITS)):
            u = x
            for k, slope in enumerate((self.negative_slope, self.negative_slope, 1.0)):
                u = unit(u, at + k, slope)
            y = F.leaky_relu(u + unit(x, at + 3, 1.0), self.negative_slope)
            x = F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        loss, logits = ops.linear_cross_entropy(x.mean((3, 4)), *weights[-2:], labels)
        return loss, logits, Moments(torch.cat(means, 1), torch.cat(variances, 1))
