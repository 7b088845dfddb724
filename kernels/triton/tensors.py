"""Tensors as the kernels take them: they trust the addresses, so that shapes are checked here."""

import math
from collections.abc import Collection

from torch import Tensor

from kernels import checks
from kernels.triton import refuses


def expect(
    op: str,
    like: Tensor,
    optional: Collection[str] = (),  # operands that may be None
    **operands: tuple[Tensor | None, tuple[int, ...]],
) -> None:
    """ValueError unless the kernels run where `like` is, and every operand is there and has its
    shape, and the dtype and device of `like`.
    """
    if reason := refuses(like.device, like.dtype):
        raise ValueError(f"{reason}; convert the input or use the plain backend")
    checks.expect(f"triton {op}", like, optional, **operands)


LARGEST = 2**31  # values that 32-bit numbers, as the kernels use, reach the end of
GRID = 65_535  # programs along the second and third axis of a launch


def near(rows: Tensor | None) -> Tensor | None:  # [T, ...]
    """`rows`, copied in the same order of axes where a task begins further off than the kernels
    count.
    """
    if rows is None or (len(rows) - 1) * rows.stride(0) + rows[:1].numel() <= LARGEST:
        return rows
    return rows.clone()


def countable(op: str, *shapes: tuple[int, ...]) -> None:  # [T, ...]
    """ValueError for tensors that the kernels do not reach the end of."""
    if (tasks := max(shape[0] for shape in shapes)) > GRID:
        raise ValueError(
            f"triton {op}: {tasks} tasks, its launches take up to {GRID}; use fewer in a call"
        )
    largest = max(shapes, key=math.prod)
    if math.prod(largest) >= LARGEST:
        raise ValueError(
            f"triton {op}: {list(largest)} are {math.prod(largest)} values, its kernels count to "
            f"{LARGEST - 1}; use fewer tasks or images in a call"
        )
