"""What ranks tell one another of an iteration: a row of each task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


class Parcel:
    """Tensors of a row a task side by side in one, before each row the signal that its rank has
    got, and room for those of all ranks. Their memory stays where it is, so that graphs write and
    read it.
    """

    def __init__(self, like: Sequence[Tensor], ranks: int):
        tasks = len(like[0])
        self._kinds = [(rows.shape[1:], rows.dtype) for rows in like]
        self._widths = [1, *(rows[0].numel() for rows in like)]
        kind = {"dtype": reduce(torch.promote_types, (rows.dtype for rows in like))}
        self.own = like[0].new_zeros(tasks, sum(self._widths), **kind)
        self.every = like[0].new_zeros(ranks * tasks, sum(self._widths), **kind)

    def pack(self, rows: Sequence[Tensor], signal: Tensor) -> None:
        """A rank's own; `signal` [] is 0 for none."""
        flags = signal.to(self.own.dtype).expand(len(self.own), 1)
        torch.cat([flags, *(r.reshape(len(r), -1) for r in rows)], 1, out=self.own)

    def unpacked(self) -> tuple[Tensor, list[Tensor]]:
        """A signal [] that any rank has got, and the rows of all tasks in order."""
        flags, *found = self.every.split(self._widths, 1)
        # each a tensor of its own: torch sums a view of a wider one in another order
        rows = [
            f.reshape(len(f), *shape).to(dtype).contiguous()
            for f, (shape, dtype) in zip(found, self._kinds, strict=True)
        ]
        return flags.max(), rows
