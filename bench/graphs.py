"""CUDA graphs: work captured once and then launched as one."""

from collections.abc import Callable

import torch

from engine.runtime.graph import warm_up

WARM_UPS = 3  # before a capture: allocations, compilation and cuDNN's choices are made in these


def captured(work: Callable[[], object], times: int = 1) -> Callable[[], None]:
    """A call that replays `work`, `times` after each other.

    `work` runs a few times before, and once while it is captured without effect on memory; it may
    not wait for the device.
    """
    warm_up(work, torch.device("cuda"), WARM_UPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph.replay
