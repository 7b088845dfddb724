"""Threads of this process: as many as the system gives.

Where it gives none, at a limit of processes or memory, the work is done all the same, to the same
results.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T, U = TypeVar("T"), TypeVar("U")

MOST = 32  # threads that read files; more wait for the same disk


def started(
    threads: int, name: str, initializer: Callable[[], None] | None = None
) -> tuple[ThreadPoolExecutor | None, int]:
    """A pool whose threads all run, and their number: fewer than asked for, or no pool, where the
    system gives no more.
    """
    while threads > 0:
        pool, go = ThreadPoolExecutor(threads, name, initializer), threading.Event()
        made = 0
        try:
            while made < threads:
                pool.submit(go.wait)  # a pool starts a thread where none is idle
                made += 1
            return pool, threads
        except (RuntimeError, MemoryError) as error:
            told(error)
        finally:
            go.set()
        pool.shutdown()
        threads = made
    return None, 0


def each(function: Callable[[T], U], items: Iterable[T], threads: int = 0) -> list[U]:
    """`function` of each of `items`, in order, by `threads` at once: where they read files, by
    some more than there are cores.
    """
    pool, _ = started(threads or min(MOST, (os.cpu_count() or 1) + 4), "each")
    if pool is None:
        return [function(item) for item in items]
    with pool:
        return list(pool.map(function, items))


@cache
def _tell(reason: str) -> None:
    with contextlib.suppress(OSError):  # the work is done all the same
        print(
            f"mamlpp: the system gives no more threads ({reason}): the same results, later; raise "
            "the limit of processes or memory (ulimit -u, -v), or give --threads 1 --prefetch 0",
            file=sys.stderr,
        )


def told(error: Exception) -> None:
    """Says once that a thread could not be started."""
    _tell(str(error) or type(error).__name__)
