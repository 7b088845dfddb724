"""Work beside other work on one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


class Mark:
    """The end of some work."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None
        self._device: torch.device | None = None

    def set(self, stream: torch.cuda.Stream) -> None:
        """What is under way there is the end of it."""
        self._event, self._device = stream.record_event(), stream.device

    def wait(self) -> None:
        """What comes next comes after it."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)


class Branch:
    """Work begun on it comes after what is under way, and runs beside what comes then: on a stream
    of its own on a GPU; nothing of the kind on a CPU.

    Until its mark is waited for, whoever uses it holds on to what the work reads; and no work is
    begun here after something that was made here is given up. `later`: of low priority, so that
    what a captured iteration goes on with comes first (its stream has a higher one).
    """

    def __init__(self, device: torch.device, later: bool = False):
        gpu = device.type == "cuda"
        self._stream = _beside(torch.cuda.current_stream(device), later) if gpu else None

    @contextmanager
    def on(self) -> Iterator[Mark]:
        """Work begun inside is the branch's; the mark of its end."""
        mark = Mark()
        if self._stream is None:
            yield mark
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield mark
        mark.set(self._stream)


@cache
def _beside(stream: torch.cuda.Stream, later: bool) -> torch.cuda.Stream:
    """One stream for what branches from another, so that branches of branches differ, too."""
    return torch.cuda.Stream(stream.device, priority=0 if later else stream.priority)
