"""Sums over pixels that several programs share: each leaves a part, and one launch adds the parts
of several sums in order.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import SPLITS
from kernels.triton.rows import ALIGNMENT
from kernels.triton.tensors import countable


@triton.jit(do_not_specialize=["out_step"])
def add_splits_kernel(
    part,  # segments [T, splits, size]
    table,  # int64 [blocks, 5]: segment's start in part, splits, size, first value, first in out
    out,  # [T, …], rows `out_step` apart
    out_step,
    ALIGNED: tl.constexpr, BS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Σ over the splits of each segment, `BS` of them loaded at once. ALIGNED: of addresses that
    `ALIGNMENT` values divide.
    """
    row, task = table + 5 * tl.program_id(0), tl.program_id(1)
    start = tl.load(row)
    splits, size = tl.load(row + 1).to(tl.int32), tl.load(row + 2).to(tl.int32)
    first, to = tl.load(row + 3).to(tl.int32), tl.load(row + 4).to(tl.int32)
    if ALIGNED:
        start, size = tl.multiple_of(start, 16), tl.multiple_of(size, 16)
        first, to = tl.multiple_of(first, 16), tl.multiple_of(to, 16)
        out_step = tl.multiple_of(out_step, 16)
    i = first + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, splits, BS):
        s = begin + tl.arange(0, BS)
        at = part + start + (task * splits + s)[:, None] * size + i[None, :]
        values = tl.load(at, mask=(s < splits)[:, None] & (i < size)[None, :], other=0.0)
        total += tl.sum(values, 0)
    tl.store(out + task * out_step + to + i, total, mask=i < size)


class Segment(NamedTuple):
    """One of the sums."""

    splits: int
    size: int
    to: int = 0  # its first value in the rows of the results

    def values(self, tasks: int) -> int:
        """Of its parts of all tasks."""
        return tasks * self.splits * self.size


class Parts(NamedTuple):
    """Room for the parts of several sums of each task."""

    tasks: int
    segments: tuple[Segment, ...]
    buffer: Tensor  # flat: [T, splits, size] of each segment

    @classmethod
    def of(cls, like: Tensor, tasks: int, *segments: Segment) -> Parts:
        values = sum(s.values(tasks) for s in segments)
        countable("sums", *((tasks, s.splits, s.size) for s in segments))
        return cls(tasks, segments, torch.empty(values, dtype=like.dtype, device=like.device))

    def segment(self, index: int) -> Tensor:
        """[T, splits, size]"""
        values = self.buffer.split([s.values(self.tasks) for s in self.segments])[index]
        return values.view(self.tasks, *self.segments[index][:2])

    def add(self, out: Tensor, step: int) -> None:
        """The sums, into rows of `out`, `step` apart."""
        table = _table(self.segments, self.tasks, out.device)
        sizes = [step, *(n for s in self.segments for n in (s.size, s.to))]
        add_splits_kernel[(len(table), self.tasks)](
            self.buffer, table, out, step,
            ALIGNED=all(n % ALIGNMENT == 0 for n in sizes), **SPLITS,
        )  # fmt: skip


@cache
def _table(segments: tuple[Segment, ...], tasks: int, device: torch.device) -> Tensor:
    """A row a program. Made by the first call, which must not be under capture: it comes from the
    host.
    """
    rows, start = [], 0
    for s in segments:
        firsts = range(0, s.size, SPLITS["BLOCK"])
        rows += [(start, s.splits, s.size, first, s.to) for first in firsts]
        start += s.values(tasks)
    return torch.tensor(rows, dtype=torch.int64, device=device)
