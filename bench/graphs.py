"""CUDA graphs: work captured once and then launched as one."""

from collections.abc import Callable

import torch

from engine.runtime import graph

WARM_UPS = 3  # before a capture: allocations, compilation and cuDNN's choices are made in these


def captured(work: Callable[[], object], times: int = 1) -> Callable[[], None]:
    """A call that replays `work`, `times` after each other.

    `work` runs a few times before, and once while it is captured without effect on memory; it may
    not wait for the device. After a capture that failed there is no other: RuntimeError.
    """
    if graph.failed:
        raise RuntimeError("a capture failed before, and this process captures nothing more")
    graph.warm_up(work, torch.device("cuda"), WARM_UPS)
    made = torch.cuda.CUDAGraph()
    with graph.kept_if_failed(made), torch.cuda.graph(made):
        for _ in range(times):
            work()
    return made.replay
