"""How long the memory lives that a branch reads: a stream of a GPU would read what another already
writes to.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.branch import Branch, Mark


class Lifetimes(TorchDispatchMode):
    """What work inside a branch reads of the memory that was made outside, each once."""

    def __init__(self):
        super().__init__()
        self.made, self.read, self.inside = {}, {}, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read, made = tree_leaves((args, kwargs)), func(*args, **kwargs or {})
        for found, leaves in ((self.read, read), (self.made, tree_leaves(made))):
            if self.inside == (found is self.read):
                storages = (t.untyped_storage() for t in leaves if isinstance(t, torch.Tensor))
                found |= {s._cdata: StorageWeakRef(s) for s in storages}
        return made


@contextmanager
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[bool]]]:
    """Of each wait for a mark: of what the branch read until then, and no wait before told of,
    whether it was gone.
    """
    lifetimes, gone = Lifetimes(), []
    begun: dict[bool, list[list[StorageWeakRef]]] = defaultdict(list)  # of a stream
    original, made = Branch.on, Branch.__init__

    def init(self, device: torch.device, later: bool = False) -> None:
        made(self, device, later)
        self.reads = begun[later]

    @contextmanager
    def on(self) -> Iterator[Mark]:
        lifetimes.inside, lifetimes.read = True, {}
        with original(self) as mark:
            yield mark
        lifetimes.inside = False
        # A storage's name is used again when it is gone, as one made and read inside may be.
        read = [r for key, r in lifetimes.read.items() if key in lifetimes.made]
        self.reads.append([reference for reference in read if not reference.expired()])
        mark.wait = partial(wait, self.reads, len(self.reads))

    def wait(reads: list[list[StorageWeakRef]], until: int) -> None:
        """One thing comes after another on a branch."""
        gone.append([reference.expired() for read in reads[:until] for reference in read])
        reads[:until] = [[]] * until

    monkeypatch.setattr(Branch, "__init__", init)
    monkeypatch.setattr(Branch, "on", on)
    with lifetimes:
        yield gone
