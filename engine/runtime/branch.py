"""Work beside other work on one device."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


class Branch:
    """Begins after what is under way, runs beside what comes then, and ends where it is joined: a
    stream of its own on a GPU; nothing of the kind on a CPU.

    Until then, whoever uses it holds on to what its work reads.
    """

    def __init__(self, device: torch.device):
        self._stream = _stream(device) if device.type == "cuda" else None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Work begun inside is the branch's."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What comes next comes after the branch."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
