"""Memory layout and sums that the ops share."""

from collections.abc import Sequence

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """`x` [T, N, C, H, W] with NHWC memory, copied only if it has another layout."""
    _, n, c, h, w = x.shape
    stride = (n * h * w * c, h * w * c, 1, w * c, c)
    # One channel looks like both layouts; only an explicit stride of 1 makes torch keep NHWC.
    if all(
        a == b
        for a, b, size, dim in zip(x.stride(), stride, x.shape, range(5), strict=True)
        if size > 1 or dim == 2
    ):
        return x
    return torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)


def images(x: Tensor | None) -> Tensor | None:
    """[T, N, C, H, W], or filters [T, F, C, R, S], with NHWC memory inside each task; one that all
    tasks share stays one.
    """
    if x is None:
        return None
    _, _, c, h, w = x.shape
    strides = zip(x.stride()[1:], (h * w * c, 1, w * c, c), x.shape[1:], strict=True)
    return x if all(a == b for a, b, size in strides if size > 1) else channels_last(x)


def vectors(rows: Tensor | None) -> Tensor | None:
    """[T, P] with contiguous rows; one row that all tasks share stays one."""
    whole = rows is None or rows.stride(1) == 1 or rows.shape[1] == 1
    return rows if whole else rows.contiguous()


def empty_images(
    like: Tensor, t: int, n: int, c: int, side: int, dtype: torch.dtype | None = None
) -> Tensor:
    """[T, N, C, side, side], unwritten, with NHWC memory; no view, which autograd would not let the
    caller write to.
    """
    image = side * side * c
    strides = (n * image, image, 1, side * c, c)
    options = {"dtype": dtype or like.dtype, "device": like.device}
    return torch.empty_strided((t, n, c, side, side), strides, **options)


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
