"""Memory layout and sums that the ops share."""

from collections.abc import Sequence

import torch
from torch import Tensor


def nhwc(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of [T, N, C, H, W] with NHWC memory."""
    _, n, c, h, w = shape
    return n * h * w * c, h * w * c, 1, w * c, c


def solid(x: Tensor) -> Tensor:
    """`x` as it lies in memory: not one whose sign is still to be changed, nor zeros that are
    nowhere.
    """
    if x.is_neg():
        return x.resolve_neg()
    return x.new_zeros(x.shape) if x._is_zerotensor() else x


def whole(x: Tensor | None) -> Tensor | None:
    """In one piece, in the order of its axes."""
    if x is None:
        return None
    return (solid(x) if x.is_neg() or x._is_zerotensor() else x).contiguous()


def channels_last(x: Tensor) -> Tensor:
    """`x` [T, N, C, H, W] with NHWC memory, copied only if it has another layout."""
    x, strides = solid(x), nhwc(x.shape)
    # One channel looks like both layouts; only an explicit stride of 1 makes torch keep NHWC.
    if x.stride() == strides or all(
        a == b
        for a, b, size, dim in zip(x.stride(), strides, x.shape, range(5), strict=True)
        if size > 1 or dim == 2
    ):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def images(x: Tensor | None) -> Tensor | None:
    """[T, N, C, H, W], or filters [T, F, C, R, S], with NHWC memory inside each task; one that all
    tasks share stays one.
    """
    if x is None:
        return None
    x, inside, strides = solid(x), x.stride()[1:], nhwc(x.shape)[1:]
    if inside == strides or all(
        a == b for a, b, size in zip(inside, strides, x.shape[1:], strict=True) if size > 1
    ):
        return x
    return channels_last(x)


def vectors(rows: Tensor | None) -> Tensor | None:
    """[T, P] with contiguous rows; one row that all tasks share stays one."""
    if rows is None:
        return None
    if rows.is_neg() or rows._is_zerotensor():
        rows = solid(rows)
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def empty_images(
    like: Tensor, t: int, n: int, c: int, side: int, dtype: torch.dtype | None = None
) -> Tensor:
    """[T, N, C, side, side], unwritten, with NHWC memory; no view, which autograd would not let the
    caller write to.
    """
    shape, options = (t, n, c, side, side), {"dtype": dtype or like.dtype, "device": like.device}
    return torch.empty_strided(shape, nhwc(shape), **options)


def total(*terms: Tensor | None) -> Tensor | None:
    present = [t for t in terms if t is not None]
    if not present:
        return None
    result = present[0]
    for term in present[1:]:
        result = result + term
    return result


def stack(tasks: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, without the copy for a single task."""
    return tasks[0].unsqueeze(0) if len(tasks) == 1 else torch.stack(list(tasks))
