"""The geometry of a pass, and what its launches hand to one another."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels import checks
from kernels.net import Net
from kernels.triton.launch import Geometry, config, merge, padded
from kernels.triton.patches import Patches

# What `operands.dot` calls them.
PRECISIONS = {"fp32": "ieee", "tf32": "tf32", "tf32x3": "tf32x3", "bf16": "bf16"}
HEAD_VALUES = 4096  # of the classifier's weights that a program loads at once
STEM_CHANNELS = 3  # of images whose patches' covariance one program holds


class Stage(NamedTuple):
    """The geometry of one stage, and where its parameters begin."""

    channels: int
    side: int
    dense: int  # side of z
    pooled: int  # side behind the pooling
    theta: int
    stem: bool  # by the moments of its patches


class Plan(NamedTuple):
    net: Net
    tasks: int
    images: int
    stages: tuple[Stage, ...]
    theta_head: int

    @classmethod
    def of(cls, net: Net, tasks: int, images: int) -> "Plan":
        stages, side, channels, theta = [], net.side, net.channels, 0
        for s in range(net.stages):
            dense = side if net.pool else (side + 1) // 2
            pooled = dense // 2 if net.pool else dense
            stem = s == 0 and net.pool and channels <= STEM_CHANNELS
            stages.append(Stage(channels, side, dense, pooled, theta, stem))
            theta += net.filters * 9 * channels
            side, channels = pooled, net.filters
        return cls(net, tasks, images, tuple(stages), theta)

    @property
    def stride(self) -> int:
        return 1 if self.net.pool else 2

    @property
    def precision(self) -> str:
        return PRECISIONS[self.net.precision]

    @property
    def storage(self) -> torch.dtype:
        """Of what the products read: rounded once where they would round it again and again."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def stem_precision(self) -> str:
        """Of the stem's products. Its statistics come from elsewhere, and are those of what TF32
        makes of its images and filters: they are rounded first.
        """
        return "tf32" if self.precision == "bf16" else self.precision

    @property
    def last_pixels(self) -> int:
        return self.stages[-1].pooled ** 2

    def norm_gradient(self, rows: Tensor, s: int) -> tuple[Tensor, Tensor]:
        """Of a stage's gain and bias in rows of gradients [T, G], [F] of each task."""
        f = self.net.filters
        return rows[:, 2 * s * f :], rows[:, (2 * s + 1) * f :]


class Images(NamedTuple):
    """A set of images a task, as the passes read them."""

    plan: Plan
    x: Tensor  # [T, N, H, W, C]; for a stem those of `patches`
    patches: Patches | None
    seal: tuple  # of the above

    @classmethod
    def of(cls, plan: Plan, x: Tensor, patches: Patches | None) -> "Images":
        return cls(plan, x, patches, checks.seal(plan, x, patches))

    @property
    def unbroken(self) -> bool:
        return checks.unbroken(self.seal, self.plan, self.x, self.patches)


class Call(NamedTuple):
    """What the launches of a pass and of its tangent read."""

    images: Images
    theta: Tensor  # [T, P]
    row: Tensor  # [G], or of each task its own [T, G]
    given: tuple[Tensor, Tensor] | None  # statistics [S] or [T, S] each

    @property
    def plan(self) -> Plan:
        return self.images.plan

    @property
    def is_given(self) -> bool:
        """Whether statistics are constants."""
        return self.given is not None

    @property
    def sizes(self) -> tuple:
        """Tasks, images, filters, and what makes a tensor beside those of the pass."""
        plan = self.plan
        return plan.tasks, plan.images, plan.net.filters, self.row.new_empty

    def blocks(
        self,
        kernel: str,
        stage: Stage,
        side: int,
        *,
        dual: bool = False,
        precision: str | None = None,
    ) -> dict[str, int]:
        """Configuration of a launch over images of a side."""
        plan = self.plan
        sizes = plan.images, side, stage.channels, plan.net.filters
        return config(Geometry(kernel, *sizes, precision or plan.precision, dual), self.row.device)

    def map_blocks(self, side: int, dual: bool = False) -> dict[str, int]:
        """The same of a launch without products."""
        _, n, f, _ = self.sizes
        return config(Geometry("normalise", n, side, f, f, dual=dual), self.row.device)

    def merge(self, tiles: int) -> tuple[tuple[int, int], dict[str, int]]:
        """Programs and configuration of a launch that merges the sums of tiles."""
        t, _, f, _ = self.sizes
        return merge(t, tiles, f, self.row.device)

    def head_blocks(self, kernel: str, dual: bool = False) -> dict[str, int]:
        """With room for all ways: a power of two, of a product's side in the gradient."""
        stage, ways = self.plan.stages[-1], padded(self.plan.net.ways)
        own = self.blocks(kernel, stage, stage.pooled, dual=dual, precision="ieee")
        blocks = {"BW": ways} | own
        if kernel == "head":
            blocks["BD"] = min(blocks["BD"], max(16, HEAD_VALUES // ways))
        return blocks

    def out_side(self, s: int) -> int:
        """Of the images that a stage's activation is written to: with a border for the next one."""
        return self.plan.stages[s].pooled + 2 * (s + 1 < self.plan.net.stages)

    def activation(self, s: int) -> Tensor | None:
        """Room for the activation of a stage, or for its direction, as the next one reads it;
        `None` of the last.
        """
        if s + 1 == self.plan.net.stages:
            return None
        return self.bordered(self.plan.stages[s].pooled)

    def bordered(self, side: int) -> Tensor:  # [T, N, side + 2, side + 2, F]
        """Room for images that a convolution reads."""
        t, n, f, new = self.sizes
        return new(t, n, side + 2, side + 2, f, dtype=self.plan.storage)

    def grid(self, side: int, pixels: int, filters: int) -> tuple[int, int, int]:
        """Programs for images of a side, so many pixels and filters each."""
        t, n, f, _ = self.sizes
        return triton.cdiv(n * side**2, pixels), t, triton.cdiv(f, filters)

    def affine(self, s: int) -> tuple[Tensor, Tensor]:
        """Where gain and bias of a stage begin, [F] each, those of tasks `row_step` apart."""
        f = self.plan.net.filters
        return self.row[..., 2 * s * f :], self.row[..., (2 * s + 1) * f :]

    @property
    def row_step(self) -> int:
        return self.row.stride(0) if self.row.dim() == 2 else 0

    def statistics(self, s: int) -> tuple[Tensor, Tensor, int]:
        """Those given of a stage, and from one task's to the next."""
        if self.given is None:
            return self.row, self.row, 0
        mean, var = (g[..., s * self.plan.net.filters :] for g in self.given)
        return mean, var, mean.stride(0) if mean.dim() == 2 else 0


class StageKept(NamedTuple):
    z: Tensor | None  # [T, N, H, W, F]; the stem has none
    x_hat: Tensor  # [T, N, h, w, F]
    winners: Tensor  # uint8 [T, N, h, w, F]; without pooling not written
    coef: Tensor  # [T, 8, F]
    rstd: Tensor  # [T, F]
    p: Tensor | None  # [T, N, h + 2, w + 2, F] the activation between zeros; not of the last stage
    delta: Tensor | None = None  # [T, N, h, w, F]
    sums: Tensor | None = None  # [T, 2, F] Σδ, Σδx̂
    dz: Tensor | None = None  # [T, N, H + 2, W + 2, F] between zeros; the stem has none


class Head(NamedTuple):
    """What `launches.head_bwd` reads; of features of one pixel it writes it, in one launch."""

    logits: Tensor  # [T, N, ways]
    softmax: Tensor  # [T, N, ways]
    residual: Tensor  # [T, N, ways] (softmax − one-hot) / N
    losses: Tensor  # [T, N]

    @property
    def read(self) -> tuple[Tensor, Tensor]:
        """By a tangent."""
        return self.softmax, self.residual


class Dot(NamedTuple):
    """Directions of what a stage keeps."""

    z: Tensor | None
    x_hat: Tensor
    q: Tensor  # [T, F] mean of x̂·z_dot
    p: Tensor | None
    delta: Tensor | None = None
    dz: Tensor | None = None


class Kept(NamedTuple):
    call: Call
    stages: list[StageKept]
    projected: Tensor | None  # [T, KP, F] the stem's covariance times its filters
    outer: Tensor | None  # [T, KP, F] the stem's Σ δ·patch
    turned: Tensor | None  # [T, stages − 1, F, 9, F] the filters as `dgrad` reads them
    head: Head
    seal: tuple  # of the above

    @classmethod
    def of(cls, call: Call, *kept) -> "Kept":
        return cls(call, *kept, checks.seal(*cls._read(call, kept)))

    @property
    def unbroken(self) -> bool:
        call, *kept, seal = self
        return call.images.unbroken and checks.unbroken(seal, *self._read(call, kept))

    @staticmethod
    def _read(call: Call, kept) -> tuple:
        """What a tangent reads, the tensors of the caller one by one."""
        parts = (p for part in kept for p in (part.read if isinstance(part, Head) else [part]))
        return call, call.theta, call.row, *(call.given or ()), *parts


class KeptFeatures(NamedTuple):
    """Of a pass that stopped there."""

    call: Call
    stages: list[StageKept]
    projected: Tensor | None  # [T, KP, F] the stem's covariance times its filters
    seal: tuple  # of the above

    @classmethod
    def of(cls, call: Call, *kept) -> "KeptFeatures":
        return cls(call, *kept, checks.seal(*Kept._read(call, kept)))

    @property
    def unbroken(self) -> bool:
        call, *kept, seal = self
        return call.images.unbroken and checks.unbroken(seal, *Kept._read(call, kept))
