"""The backbone as data: layer sizes, initial parameters, and its passes over flat parameter
buffers.

Conv 3×3 → per-step batch norm → leaky ReLU → 2×2 max pool (or stride 2 in the convolution),
`stages` times, then a linear classifier (paper §5; Vinyals et al. 2016). Convolutions have no bias:
batch norm removes it, its gradient is 0.

`Backbone` implements what `engine.unroll` needs of a model; another model works there if it has the
same methods.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

import kernels


class Params(NamedTuple):
    """Everything that the outer loop learns. One row of `norm` and `rates` a step; a single row of
    `norm` is shared.
    """

    theta: Tensor  # [P] initial network parameters, one flat buffer
    norm: Tensor  # [K or 1, G] batch-norm gains and biases (BNWB)
    rates: Tensor  # [K, L] inner learning rates (LSLR)


class Moments(NamedTuple):
    """Batch statistics of every stage, S = stages · filters."""

    mean: Tensor  # [..., S]
    var: Tensor  # [..., S] biased


class Pass(NamedTuple):
    """A forward and backward pass over one set of images a task."""

    loss: Tensor  # [T]
    logits: Tensor  # [T, N, ways]
    gradient: Tensor  # [T, P]
    norm_gradient: Tensor  # [T, G]
    moments: Moments  # [T, S] each
    kept: tuple | None  # what `tangent` needs


class Images(NamedTuple):
    """One set of images a task, as the passes over it take them."""

    x: Tensor  # [T, N, C, H, W]
    patches: tuple | None  # moments of the first stage's patches, if they pay


class _Stage(NamedTuple):
    x: Tensor  # [T, N, C, H, W] input
    saved: tuple  # of norm_act, or of stem
    dy: Tensor | None = None  # [T, N, F, h, w] gradient of the output
    dz: Tensor | None = None  # [T, N, F, H', W'] gradient of the convolution; stem has none


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
        tensors = []
        for shape in self.shapes.values():
            tensor = torch.zeros(shape, dtype=dtype)
            if len(shape) > 1:
                torch.nn.init.xavier_uniform_(tensor, generator=generator)
            tensors.append(tensor.unsqueeze(0))
        norm = torch.tensor([1.0, 0.0], dtype=dtype).repeat(norm_rows, self.stages)
        rates = torch.full((steps, len(self.shapes)), inner_rate, dtype=dtype)
        return Params(flat(tensors)[0], norm.repeat_interleave(self.filters, 1), rates)

    def bessel(self, images: int) -> Tensor:
        """n / (n − 1) for the n values behind each statistic of `images` images [S]: biased →
        unbiased variance.
        """
        sides = self.image_sizes[:-1] if self.pool else self.image_sizes[1:]
        counts = torch.tensor([images * side * side for side in sides], dtype=torch.float64)
        return (counts / (counts - 1).clamp(min=1)).repeat_interleave(self.filters)

    def weights(self, theta: Tensor) -> list[Tensor]:
        """The tensors [T, *shape] as views of the flat buffers [T, P], where filters are NHWC: the
        convolutions take them as they lie.
        """
        views = []
        for part, shape in zip(theta.split(self.sizes, 1), self.shapes.values(), strict=True):
            if len(shape) == 4:
                f, c, r, s = shape
                views.append(part.view(-1, f, r, s, c).permute(0, 1, 4, 2, 3))
            else:
                views.append(part.view(-1, *shape))
        return views

    def _affine(self, row: Tensor, tasks: int) -> Tensor:
        """[G] → gain and bias of each stage [stages, 2, T, F]"""
        return row.view(self.stages, 2, 1, self.filters).expand(-1, -1, tasks, -1)

    def _given(self, statistics: Moments | None, tasks: int) -> list[tuple[Tensor, Tensor] | None]:
        if statistics is None:
            return [None] * self.stages
        parts = (m.expand(tasks, -1).split(self.filters, 1) for m in statistics)
        return list(zip(*parts, strict=True))

    def _features(self, x: Tensor) -> Tensor:
        """[T, N, F, h, w] → [T, N, D]: all values, or with stride-2 stages each filter's mean."""
        return x.flatten(2) if self.pool else x.mean((3, 4))

    def _features_bwd(self, dh: Tensor) -> Tensor:
        side = self.image_sizes[-1]
        shape = (*dh.shape[:2], self.filters, side, side)
        return dh.view(shape) if self.pool else (dh / side**2)[..., None, None].expand(shape)

    def prepare(
        self,
        x: Tensor,  # [T, N, C, H, W]
        passes: int,
    ) -> Images:
        """Images that `passes` passes will read; from two on, the moments of their patches pay for
        themselves by replacing the first stage's own statistics, where it pools.
        """
        worthwhile = self.pool and passes > 1
        return Images(x, kernels.backend("stem", x).patches(x) if worthwhile else None)

    def _forward(self, weights, row, images, statistics) -> tuple[Tensor, list[_Stage], Moments]:
        conv, norm_act, stem = _ops(images.x, "conv", "norm_act", "stem")
        x, stages = images.x, []
        given = self._given(statistics, len(x))
        options = self.norm_eps, self.negative_slope
        for s, (gain, bias) in enumerate(self._affine(row, len(x))):
            if s == 0 and images.patches is not None:
                y, saved = stem.fwd(x, images.patches, weights[0], gain, bias, *options, given[0])
            else:
                z = conv.fwd(x, weights[s], self.stride, 1)
                y, saved = norm_act.fwd(z, gain, bias, *options, self.pool, given[s])
            stages.append(_Stage(x, saved))
            x = y
        mean, var = (
            torch.cat([getattr(stage.saved, name) for stage in stages], 1)
            for name in Moments._fields
        )
        return self._features(x), stages, Moments(mean, var)

    def predict(
        self,
        theta: Tensor,  # [T, P]
        row: Tensor,  # [G]
        images: Images,
        statistics: Moments | None = None,
    ) -> tuple[Tensor, Moments]:  # logits [T, N, ways], the batch's own moments
        """A forward pass alone. `statistics` normalise instead of the batch's own if given."""
        weights = self.weights(theta)
        h, _, moments = self._forward(weights, row, images, statistics)
        return torch.baddbmm(weights[-1].unsqueeze(1), h, weights[-2].mT), moments

    def loss_and_gradient(
        self,
        theta: Tensor,  # [T, P]
        row: Tensor,  # [G] gains and biases of the step
        images: Images,
        labels: Tensor,  # [T, N]
        statistics: Moments | None = None,
        keep: bool = False,
    ) -> Pass:
        """Mean cross-entropy of each task and its gradient, without autograd; `keep` what `tangent`
        needs.
        """
        conv, norm_act, stem, head = _ops(images.x, "conv", "norm_act", "stem", "head")
        weights = self.weights(theta)
        h, stages, moments = self._forward(weights, row, images, statistics)
        loss, logits, head_saved = head.fwd(h, *weights[-2:], labels)
        dh, dw, dc = head.bwd(head_saved, h, weights[-2], torch.ones_like(loss))
        gradients, norm_gradients = [dw, dc], []
        dy, affine = self._features_bwd(dh), self._affine(row, len(h))
        for s in reversed(range(self.stages)):
            stage = stages[s]._replace(dy=dy)
            if s == 0 and images.patches is not None:
                dw, d_gain, d_bias = stem.bwd(stage.saved, affine[0, 0], dy)
            else:
                dz, d_gain, d_bias = norm_act.bwd(stage.saved, affine[s, 0], dy)
                dy, dw = conv.bwd(dz, stage.x, weights[s], self.stride, 1, need=(s > 0, True))
                stage = stage._replace(dz=dz)
            stages[s] = stage if keep else None
            gradients.insert(0, dw)
            norm_gradients[:0] = d_gain, d_bias
        return Pass(
            loss,
            logits,
            flat(gradients),
            torch.cat(norm_gradients, 1),
            moments,
            (weights, row, stages, h, head_saved) if keep else None,
        )

    def tangent(
        self,
        kept: tuple,
        direction: Tensor,  # [T, P]
    ) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
        """Derivative of (gradient, norm_gradient) along a direction of theta: the Hessian-vector
        product, and by symmetry the gradient of ⟨gradient, direction⟩ in gains and biases (forward
        over reverse).
        """
        weights, row, stages, h, head_saved = kept
        weights_dot = self.weights(direction)
        conv, norm_act, stem, head = _ops(h, "conv", "norm_act", "stem", "head")
        affine, x_dot, forward = self._affine(row, len(h)), None, []
        for s, stage in enumerate(stages):
            if stage.dz is None:
                y_dot, tangent = stem.tan_fwd(stage.saved, affine[0, 0], weights_dot[0])
            else:
                z_dot = conv.tan_fwd(stage.x, weights[s], x_dot, weights_dot[s], self.stride, 1)
                y_dot, tangent = norm_act.tan_fwd(stage.saved, affine[s, 0], z_dot)
            forward.append((x_dot, tangent))
            x_dot = y_dot
        h_dot, (w, w_dot) = self._features(x_dot), (weights[-2], weights_dot[-2])
        _, logits_dot = head.tan_fwd(head_saved, h, w, h_dot, w_dot, weights_dot[-1])
        dh_dot, dw_dot, dc_dot = head.tan_bwd(
            head_saved, logits_dot, h, w, h_dot, w_dot, torch.ones_like(h[:, 0, 0])
        )
        gradients, norm_gradients = [dw_dot, dc_dot], []
        dy_dot = self._features_bwd(dh_dot)
        for s in reversed(range(self.stages)):
            stage, (x_dot, tangent) = stages[s], forward[s]
            arguments = stage.saved, tangent, affine[s, 0], stage.dy, dy_dot
            if stage.dz is None:
                dw_dot, d_gain, d_bias = stem.tan_bwd(*arguments)
            else:
                dz_dot, d_gain, d_bias = norm_act.tan_bwd(*arguments)
                operands = stage.dz, dz_dot, stage.x, weights[s], x_dot, weights_dot[s]
                dy_dot, dw_dot = conv.tan_bwd(*operands, self.stride, 1, need=(s > 0, True))
            gradients.insert(0, dw_dot)
            norm_gradients[:0] = d_gain, d_bias
        return flat(gradients), torch.cat(norm_gradients, 1)

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
        given = self._given(statistics, len(x))
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
        loss, logits = ops.linear_cross_entropy(self._features(x), *weights[-2:], labels)
        return loss, logits, Moments(torch.cat(means, 1), torch.cat(variances, 1))


def flat(tensors: list[Tensor]) -> Tensor:
    """The inverse of `Backbone.weights`: [T, *shape] each → [T, P]."""
    nhwc = (t.permute(0, 1, 3, 4, 2) if t.dim() == 5 else t for t in tensors)
    return torch.cat([t.flatten(1) for t in nhwc], 1)


def _ops(like: Tensor, *names: str) -> list:
    return [kernels.backend(name, like) for name in names]
