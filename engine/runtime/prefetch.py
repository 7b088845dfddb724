"""What comes next, made by a thread while the last is worked on."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from kernels.pools import told

T = TypeVar("T")


def prefetch(make: Callable[[int], T], iterations: Iterable[int], depth: int = 2) -> Iterator[T]:
    """What ``make`` makes of each of ``iterations``, in order, up to ``depth`` of them ahead, by a
    thread.

    0: none ahead, no thread; so, too, where none can be started. An exception of ``make`` or of
    ``iterations`` is raised here. Closing the iterator ends the thread. The child of a fork, which
    the thread is not in, makes an iterator of its own: this one raises RuntimeError there.
    """
    if depth == 0:
        yield from map(make, iterations)
        return
    owner = os.getpid()
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(made: T | None, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                ready.put((made, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for t in iterations:
                if not put(make(t)):
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        told(error)
        yield from map(make, iterations)
        return
    try:
        while (item := _received(ready, owner))[0] is not None:
            yield item[0]
        if item[1] is not None:
            raise item[1]
    finally:
        closed.set()
        thread.join()


def _received(ready: queue.Queue[T], owner: int) -> T:
    if os.getpid() != owner:
        raise RuntimeError(
            f"prefetch: its thread is of process {owner}, not of its fork {os.getpid()}; make the "
            "iterator in the process that reads it"
        )
    return ready.get()
