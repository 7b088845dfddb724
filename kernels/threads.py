"""How many threads the CPU backends use."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache

import torch

# More threads than cores only wait for one another. Some more are let through: results do not
# depend on their number, and that is tested with 3 threads where there is one core. A thousand,
# such as of OMP_NUM_THREADS meant for another machine, would need the memory of a thousand.
MOST_PER_CORE = 4

_local = threading.local()
_lock, _open, _usual = threading.Lock(), 0, 1  # blocks of `of_torch`, and torch's number outside
_given: ContextVar[int | None] = ContextVar("kernels_threads", default=None)


def threads() -> int:
    """`torch.get_num_threads()`, or what it was outside `only_kernels`; at most `MOST_PER_CORE` for
    each of the cores.
    """
    return min(_given.get() or torch.get_num_threads(), _most())


def cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _most() -> int:
    return MOST_PER_CORE * cores()


def stay_on_one_core() -> None:
    """Has torch run the operations of this thread, of a pool that just began it, on it alone."""
    torch.get_num_threads()  # else its first operation takes the number that others have
    torch.set_num_threads(1)


@contextmanager
def of_torch(count: int | None) -> Iterator[int]:
    """Inside, torch's own operations run on so many threads, or as outside; gives how many that is.

    Torch takes the number of a thread for that of all threads which are born later. One that meets
    other blocks open when it enters its first has the number from before them.
    """
    global _open, _usual
    with _lock:
        before = torch.get_num_threads()
        if not _open:
            _usual = before
        elif not hasattr(_local, "met"):
            before = _usual
        _local.met, _open = True, _open + 1
    torch.set_num_threads(count or before)
    try:
        yield before
    finally:
        with _lock:
            torch.set_num_threads(before)
            _open -= 1


def _unlock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_unlock)


@contextmanager
def only_kernels() -> Iterator[None]:
    """Inside, the kernels keep the caller's number of threads, and torch's own ops run on one, in
    the dtype of their operands.

    An OpenMP thread that helped with a torch op spins on its core for milliseconds, waiting for the
    next one, while the kernels' threads want that core. The caller's autocast would round the few
    products that torch takes, and nothing of what the kernels compute.
    """
    with ExitStack() as stack:
        before = stack.enter_context(of_torch(1))
        stack.callback(_given.reset, _given.set(_given.get() or before))
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
