"""CUDA graphs: work captured once and then launched as one."""

from collections.abc import Callable
from functools import cache

import torch

WARM_UPS = 3  # before a capture: allocations, compilation and cuDNN's choices are made in these


def captured(work: Callable[[], object], times: int = 1) -> Callable[[], None]:
    """A call that replays `work`, `times` after each other.

    `work` runs a few times before, and once while it is captured without effect on memory; it may
    not wait for the device.
    """
    stream = _side()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph.replay


@cache
def _side() -> torch.cuda.Stream:
    """One for all: torch has 32 of them, and a measured graph branches to one of those."""
    return torch.cuda.Stream()
