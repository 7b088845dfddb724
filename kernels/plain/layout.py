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
    x = solid(x)
    # One channel looks like both layouts; only an explicit stride of 1 makes torch keep NHWC.
    tasks, image_set = x.shape[0], nhwc(x.shape)[0]
    if (tasks == 1 or x.stride(0) == image_set) and x.stride(2) == 1 and _nhwc_inside(x):
        return x
    return x.new_empty_strided(x.shape, nhwc(x.shape)).copy_(x)


def images(x: Tensor | None) -> Tensor | None:
    """[T, N, C, H, W], or filters [T, F, C, R, S], with NHWC memory inside each task; one that all
    tasks share stays one.
    """
    if x is None or (_nhwc_inside(x) and not (x.is_neg() or x._is_zerotensor())):
        return x
    x = solid(x)
    return x if _nhwc_inside(x) else channels_last(x)


def _nhwc_inside(x: Tensor) -> bool:
    """Whether each task's images lie so."""
    (_, n, c, h, w), (_, of_n, of_c, of_h, of_w) = x.shape, x.stride()
    return (
        (of_c == 1 or c == 1)
        and (of_w == c or w == 1)
        and (of_h == w * c or h == 1)
        and (of_n == h * w * c or n == 1)
    )


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
