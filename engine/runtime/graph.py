"""Work on a device captured once as a CUDA graph and replayed: the same launches on the same
memory, with no Python between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from engine.errors import say

WARM_UPS = 2  # before a capture: kernels are compiled, constants cached
# Graphs whose capture failed. Torch's allocator may go on asking one of them whether memory is its
# own, so that they live as long as the process, which captures nothing more.
failed: list[torch.cuda.CUDAGraph] = []


def capture(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`body` as one graph, to be called in its place.

    It runs a few times before, so that it must not depend on how often it ran. It reads and writes
    tensors that stay where they are, allocates freely, and never waits for the device. Where that
    cannot be captured, which is said, and on a CPU, what comes back is `body` itself.
    """
    if device.type != "cuda":
        return body
    if failed:
        say("no CUDA graph after one that failed, kernels are launched one by one")
        return body
    warm_up(body, device, WARM_UPS)
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    try:
        # Other threads may go on using CUDA: one of them draws episodes. Where the end of a capture
        # fails, torch does not give the stream back.
        with (
            kept_if_failed(graph),
            torch.cuda.stream(current),
            torch.cuda.graph(graph, stream=_chain(device), capture_error_mode="thread_local"),
        ):
            body()
    except RuntimeError as error:
        # The end of a capture that the body broke fails too, and says only that.
        cause = error.__context__ or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        say(f"no CUDA graph, kernels are launched one by one: {lines[0]}")
        torch.cuda.synchronize(device)
        return body
    return graph.replay


@contextmanager
def kept_if_failed(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Around a capture, from before it begins until after it ended."""
    try:
        yield
    except BaseException:
        failed.append(graph)
        raise


def warm_up(body: Callable[[], object], device: torch.device, times: int) -> None:
    """On a stream of its own, as torch wants it before a capture."""
    side = _side(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(times):
            body()
    torch.cuda.current_stream(device).wait_stream(side)


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """One for all: torch has 32 of them, and a captured body branches to one of those."""
    return torch.cuda.Stream(device)


@cache
def _chain(device: torch.device) -> torch.cuda.Stream:
    """What is captured goes before the work of its branches: its launches keep this priority."""
    return torch.cuda.Stream(device, priority=-1)
