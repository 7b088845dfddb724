"""The backbone's sizes, for a backend that runs whole passes of it, and what a pass gives."""

from typing import NamedTuple

from torch import Tensor


class Net(NamedTuple):
    """`stages` of conv 3×3 → batch norm → leaky ReLU → 2×2 max pool, or with a stride of 2
    instead of the pooling, then a linear classifier.
    """

    channels: int
    side: int
    filters: int
    stages: int
    ways: int
    pool: bool
    negative_slope: float
    eps: float
    precision: str = "fp32"  # of kernels.PRECISIONS, of the convolutions' products of float32 data


class Embedded(NamedTuple):
    """Of a pass that stops at the features."""

    features: Tensor  # [T, N, D]
    mean: Tensor  # [T, S] of the batch
    var: Tensor  # [T, S] biased
    kept: tuple | None  # what `pullback` needs, the backend's own


class Result(NamedTuple):
    loss: Tensor | None  # [T]
    logits: Tensor  # [T, N, ways]
    gradient: Tensor | None  # [T, P]
    norm_gradient: Tensor | None  # [T, G]
    mean: Tensor  # [T, S] of the batch
    var: Tensor  # [T, S] biased
    kept: tuple | None  # what `tangent` needs, the backend's own
