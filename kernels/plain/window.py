"""The 2×2 windows of max pooling, the bend of leaky ReLU, and sums over a channel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(v: Tensor) -> Tensor:
    """[T, C] → [T, 1, C, 1, 1]"""
    return v.view(v.shape[0], 1, v.shape[1], 1, 1)


def channel_sum(x: Tensor) -> Tensor:
    """[T, N, C, h, w] → [T, C]"""
    return x.sum((1, 3, 4))


def pool(
    x_hat: Tensor,  # [T, N, C, H, W], or anything that grows with it
    gain: Tensor,  # [T, C]
) -> tuple[Tensor, Tensor]:  # [T, N, C, h, w], int64 [T·N, C, h, w]
    """Values and indices of the winners of gain·x̂. Affine and activation are monotone, so they
    commute with the maximum up to the sign of the gain; a gain of 0 makes all equal, and the first
    one wins.
    """
    flat = x_hat.flatten(0, 1)
    if all_positive(gain):
        winners, index = F.max_pool2d(flat, 2, return_indices=True)
        return winners.unflatten(0, x_hat.shape[:2]), index
    _, index = F.max_pool2d((x_hat * wide(gain.sign())).flatten(0, 1), 2, return_indices=True)
    return at_winners(x_hat, index), index


def all_positive(gain: Tensor) -> bool:
    """Whether the gains are known to be positive: where reading them does not wait for a device."""
    return gain.device.type == "cpu" and bool((gain > 0).all())


def at_winners(
    dense: Tensor,  # [T, N, C, H, W]
    index: Tensor | None,  # [T·N, C, h, w]; None: no pooling, every value wins
) -> Tensor:  # [T, N, C, h, w]
    if index is None:
        return dense
    values = _rows(dense.flatten(0, 1)).gather(1, _rows(index))
    image = values.unflatten(1, index.shape[2:]).permute(0, 3, 1, 2)
    return image.unflatten(0, dense.shape[:2])


def scatter(
    pooled: Tensor,  # [T, N, C, h, w]
    index: Tensor | None,  # [T·N, C, h, w]
    size: torch.Size,  # T, N, C, H, W
) -> Tensor:
    """Values at their winners, zero elsewhere; a new tensor that the caller may write."""
    if index is None:
        return pooled.clone()
    t, n, c, h, w = size
    # Only the shape and layout of the pooled-over input are read, so it is left unwritten.
    shape = torch.empty((t * n, h, w, c), dtype=pooled.dtype, device=pooled.device)
    dense = torch.ops.aten.max_pool2d_with_indices_backward(
        pooled.flatten(0, 1),
        shape.permute(0, 3, 1, 2),
        [2, 2],
        [2, 2],
        [0, 0],
        [1, 1],
        False,
        index,
    )
    return dense.view(size)


def bend(values: Tensor, y: Tensor, negative_slope: float) -> Tensor:
    """Values times the slope of the leaky ReLU whose output was `y`."""
    if negative_slope == 1.0:
        return values
    return torch.ops.aten.leaky_relu_backward(values, y, negative_slope, True)


def _rows(x: Tensor) -> Tensor:
    """[n, C, h, w] → [n, h·w, C], a view for NHWC memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
