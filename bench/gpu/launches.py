"""What a GPU was given to do: launches, and the time between them, from torch's profiler."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from bench.gpu.progress import LeftOut

NAME = 100  # letters: torch's go on for lines


class Work(NamedTuple):
    """One thing that the device did."""

    name: str
    start: float  # microseconds
    end: float


class Launches(NamedTuple):
    kernels: int
    copies: int  # of memory, and settings of it
    span: float  # microseconds from the first one's start to the last one's end
    busy: float  # of these at least one was under way
    longest_gap: float
    by_name: dict[str, tuple[int, float]]  # kernels, and microseconds of all; the longest first


def count(done: Iterable[Work]) -> Launches:
    """Work on several streams may overlap: a gap is where none of them does anything."""
    done = sorted(done, key=lambda work: work.start)
    if not done:
        raise LeftOut("the profiler saw no work of the device")
    kernels = [work for work in done if not work.name.lower().startswith(("memcpy", "memset"))]
    by_name: dict[str, tuple[int, float]] = {}
    for work in kernels:
        name = work.name[:NAME]
        number, took = by_name.get(name, (0, 0.0))
        by_name[name] = number + 1, took + work.end - work.start
    busy, longest, reached = 0.0, 0.0, done[0].start
    for work in done:
        longest = max(longest, work.start - reached)
        busy += max(0.0, work.end - max(work.start, reached))
        reached = max(reached, work.end)
    return Launches(
        len(kernels),
        len(done) - len(kernels),
        reached - done[0].start,
        busy,
        longest,
        dict(sorted(by_name.items(), key=lambda each: -each[1][1])),
    )


def profiled(call: Callable[[], object]) -> Launches:
    """Of a call that has run before. A graph's kernels count as they run in its replay."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return count(
        Work(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    )
