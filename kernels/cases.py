"""Shapes and inputs of the real networks and of awkward small ones, shared by tests/ and bench/."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One stage of a network on one set of images a task."""

    name: str
    tasks: int
    images: int
    channels: int  # of the convolution's input
    filters: int
    side: int
    stride: int = 1
    pool: bool = True
    negative_slope: float = 0.01
    kernel: int = 3

    @property
    def out_side(self) -> int:
        return (self.side - 1) // self.stride + 1


# For float64 checks to second order: odd sides, one task, ways ≠ channels, every activation and
# downsampling.
SMALL = (
    Case("pool-odd", 2, 2, 2, 3, 5),
    Case("pool-even-relu", 1, 4, 1, 2, 6, negative_slope=0.0),
    Case("stride", 2, 2, 3, 2, 5, stride=2, pool=False, negative_slope=0.2),
    Case("norm-only", 3, 2, 2, 4, 4, pool=False, negative_slope=1.0),
)

# Convolutions of other filters than 3×3.
SMALL_SIZED = (
    Case("pointwise", 2, 3, 2, 3, 3, kernel=1),
    Case("pointwise-stride", 1, 2, 3, 2, 4, stride=2, kernel=1),
    Case("five", 2, 2, 1, 3, 4, kernel=5),
    Case("seven-stride", 1, 2, 1, 2, 5, stride=2, kernel=7),
)

# Stages of the paper's networks, support and target sets.
REAL = (
    Case("mini-1-support", 2, 5, 3, 48, 84),
    Case("mini-2-support", 2, 5, 48, 48, 42),
    Case("mini-3-support", 2, 5, 48, 48, 21),
    Case("mini-4-support", 2, 5, 48, 48, 10),
    Case("omniglot-1", 8, 20, 1, 64, 28),
    Case("omniglot-2", 8, 20, 64, 64, 14),
    Case("omniglot-3", 8, 20, 64, 64, 7),
    Case("omniglot-4", 8, 20, 64, 64, 3),
)

# Shortcuts of ResNet-12, and a larger filter.
REAL_SIZED = (
    Case("resnet12-1", 2, 5, 3, 64, 84, kernel=1),
    Case("resnet12-2", 2, 5, 64, 160, 42, kernel=1),
    Case("resnet12-4", 2, 5, 320, 640, 10, kernel=1),
    Case("resnet12-five", 2, 5, 24, 40, 21, kernel=5),
)


def _randn(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def conv_inputs(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x [T, N, C, H, W] and weights [T, F, C, R, R], scaled to keep unit variance."""
    x = _randn(0, case.tasks, case.images, case.channels, case.side, case.side, dtype=dtype)
    size = case.kernel, case.kernel
    w = _randn(1, case.tasks, case.filters, case.channels, *size, dtype=dtype)
    return x, w / (case.kernel * case.channels**0.5)


def norm_inputs(
    case: Case, steps: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """z [T, N, F, H, W], gains and biases [K, F] with a negative gain."""
    z = _randn(2, case.tasks, case.images, case.filters, case.out_side, case.out_side, dtype=dtype)
    gain = 1 + 0.3 * _randn(3, steps, case.filters, dtype=dtype)
    gain[:, 0] = -0.7
    return z, gain, 0.3 * _randn(4, steps, case.filters, dtype=dtype)


def head_inputs(
    case: Case, ways: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """features [T, N, D], weight [T, ways, D], bias [T, ways], labels [T, N]"""
    width = case.filters * 2
    labels = torch.arange(case.images).remainder(ways).expand(case.tasks, -1)
    return (
        _randn(5, case.tasks, case.images, width, dtype=dtype),
        _randn(6, case.tasks, ways, width, dtype=dtype) / width**0.5,
        _randn(7, case.tasks, ways, dtype=dtype),
        labels,
    )


def update_inputs(
    tasks: int, sizes: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """theta and grad [T, P], rates [L], sizes"""
    theta, grad = (_randn(seed, tasks, sum(sizes), dtype=dtype) for seed in (8, 9))
    return theta, grad, 0.1 + 0.05 * _randn(10, len(sizes), dtype=dtype), sizes


def elementwise_inputs(
    tasks: int, size: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """theta and grad [T, P], rates [P] of either sign"""
    theta, grad, _, _ = update_inputs(tasks, (size,), dtype)
    return theta, grad, 0.1 * _randn(10, size, dtype=dtype)
