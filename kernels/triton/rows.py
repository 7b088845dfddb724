"""Flat buffers [T, P] whose rows begin at multiples of 16 values.

A network's P is what it is (69,509 for mini-ImageNet's), and kernels load 16 bytes at a time only
where the distance of rows is known to be a multiple of that many values.
"""

import torch
from torch import Tensor

from kernels.plain.layout import solid
from kernels.triton.tensors import near

ALIGNMENT = 16  # values: the divisibility that Triton tells from


def new_rows(like: Tensor, tasks: int, width: int) -> Tensor:
    """[tasks, width], unwritten; no view, which autograd would not let the caller write to."""
    step = -(-width // ALIGNMENT) * ALIGNMENT
    return torch.empty_strided((tasks, width), (step, 1), dtype=like.dtype, device=like.device)


def aligned(rows: Tensor) -> Tensor:  # [T, P]
    """The same rows, copied if not aligned or too far apart; one that all tasks share stays one."""
    rows = solid(rows)
    step, unit = rows.stride()
    if unit == 1 and step % ALIGNMENT == 0:
        return near(rows)
    if step == 0:
        return aligned(rows[:1]).expand(rows.shape)
    return new_rows(rows, *rows.shape).copy_(rows)
