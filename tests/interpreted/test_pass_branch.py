"""What a pass has run beside it reads memory that is there, and is as it was, until its end is
waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from triton.runtime.interpreter import GridExecutor

from engine.models.backbone import Backbone
from kernels.branch import Branch, Mark
from kernels.triton import launches, passes
from tests.passes import fused, problem

# And their convolutions whose filters' gradients are launches of their own: a stem's is none.
MODELS = {
    "pool": (Backbone(1, 9, 3, 3, 3), 2),
    "stride": (Backbone(2, 9, 3, 3, 3, "stride"), 3),
}


class Used(NamedTuple):
    """A tensor of a launch, which is not held."""

    storage: StorageWeakRef
    place: tuple  # offset, sizes, strides
    values: Tensor | None  # as they were; None: the launch writes them

    @classmethod
    def of(cls, tensor: Tensor, read: bool) -> Used:
        place = tensor.storage_offset(), tensor.shape, tensor.stride()
        values = tensor.clone() if read else None
        return cls(StorageWeakRef(tensor.untyped_storage()), place, values)

    def fate(self) -> str:
        if self.storage.expired():
            return "freed"
        if self.values is None:
            return "there"
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        found = torch.empty(0, dtype=self.values.dtype).set_(storage, *self.place)
        return "there" if torch.equal(found, self.values) else "overwritten"


class Watched(Branch):
    launched: list[Used] | None = None  # inside a branch
    joined: list[list[str]] = []  # what became of the tensors of each, by the time of its end

    @contextmanager
    def on(self) -> Iterator[Mark]:
        Watched.launched = used = []
        with super().on() as mark:
            yield mark
        Watched.launched = None
        mark.wait = lambda: self.joined.append([each.fate() for each in used])


@pytest.fixture
def joined(monkeypatch) -> list[list[str]]:
    launch = GridExecutor.__call__

    def seen(self, *args, **kwargs) -> None:
        if Watched.launched is not None:
            *read, written = (a for a in args if isinstance(a, Tensor))
            Watched.launched += [*(Used.of(a, True) for a in read), Used.of(written, False)]
        launch(self, *args, **kwargs)

    monkeypatch.setattr(Watched, "joined", [])
    monkeypatch.setattr(launches, "Branch", Watched)
    monkeypatch.setattr(GridExecutor, "__call__", seen)
    return Watched.joined


@pytest.mark.parametrize(("model", "filters"), MODELS.values(), ids=MODELS)
def test_what_is_beside_a_pass_stays_until_it_is_waited_for(model, filters, joined) -> None:
    """A stream of a GPU would read memory that another already writes to."""
    fused(passes, problem(model, 2, 1).to(torch.float32))
    # Of the gradient, then of its tangent: filters, and turned ones; image and dz with their
    # directions, and the sums' parts, and behind the last one these, a table, and the sums.
    once = [2, *[5] * (filters - 1), 5 + 3]
    assert joined == [["there"] * count for count in 2 * once]
