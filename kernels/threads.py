"""How many threads the CPU backends use."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_given: ContextVar[int | None] = ContextVar("kernels_threads", default=None)


def threads() -> int:
    """`torch.get_num_threads()`, or what it was outside `only_kernels`."""
    return _given.get() or torch.get_num_threads()


@contextmanager
def only_kernels() -> Iterator[None]:
    """Inside, the kernels keep the caller's number of threads, and torch's own ops run on one.

    An OpenMP thread that helped with a torch op spins on its core for milliseconds, waiting for the
    next one, while the kernels' threads want that core.
    """
    count = torch.get_num_threads()
    token = _given.set(threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _given.reset(token)
