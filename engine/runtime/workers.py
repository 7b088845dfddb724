"""The tasks of an episode over the cores of a CPU, and an allocator that keeps what it got.

The operations of one task are too small to share between cores: the barriers cost more than they
save. So each worker thread takes whole tasks and runs their operations alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch

import kernels
from engine.episodes import Episode, each, mapped
from engine.models.randomness import drawing
from kernels import pools
from kernels.threads import of_torch, stay_on_one_core

if TYPE_CHECKING:
    from engine.models.interface import Model

T = TypeVar("T")


def over_blocks(
    function: Callable[[Episode], T],
    episode: Episode,
    model: Model,
    keeps: bool = False,
    *,
    single: bool = False,
    key: Callable[[int], tuple[int, ...]] | None = None,
) -> list[T]:
    """`over_tasks`, in blocks and threads that suit the model, or each task by itself (`single`);
    `keeps` if its passes are kept for tangents.

    `key` of a block's first task names the random numbers that a model draws in it, so that they
    depend neither on the tasks before nor on who computes these.
    """
    with model.during(episode, keeps):
        block, parallel = model.task_block(episode, keeps), model.parallel(episode)
        block = 1 if single else block
        if key is not None and model.random:
            return _keyed(function, episode, block or episode.tasks, key)
        return over_tasks(function, episode, block, parallel, model.spreads)


def _keyed(
    function: Callable[[Episode], T],
    episode: Episode,
    block: int,
    key: Callable[[int], tuple[int, ...]],
) -> list[T]:
    """One after the other: the generators are the process's."""
    found = []
    for first in range(0, episode.tasks, block):
        of_block = episode.slice(first, first + block)
        x = each(of_block.support_x)[0]
        like = next(iter(x.values())) if isinstance(x, dict) else x
        with drawing(like, *key(first)):
            found.append(function(of_block))
    return found


def over_tasks(
    function: Callable[[Episode], T],
    episode: Episode,
    block: int | None = None,
    parallel: bool = True,
    spreads: bool = True,
) -> list[T]:
    """`function` of each block of so many tasks (`None`: of all), in task order.

    Single tasks on a CPU run at once, as many as there are threads, on one core each; those left
    over, too few for every thread, run one after the other on all of them, and so do larger blocks,
    and tasks on a GPU: threads would use other streams than their caller's.
    Where work does not spread (`spreads`) over cores to the same bits, every block has one core.
    """
    if block is None:
        return [function(episode)]
    tasks, count = episode.tasks, kernels.threads()
    blocks = [episode.slice(start, start + block) for start in range(0, tasks, block)]
    few = spreads and (block > 1 or len(blocks) < count)
    if count == 1 or few or not parallel or not _on_cpu(episode):
        return [function(one) for one in blocks]
    pool, count = _pool(count)
    together = blocks if pool else []
    if pool and spreads:
        together = blocks[: len(blocks) // count * count]
    # A worker sees the caller's choice of backend, which a context variable holds, and autocast,
    # which is a setting of the thread.
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    calls = [(copy_context(), autocast, function, one) for one in together]
    results = list(pool.map(_run, calls)) if pool else []
    with contextlib.nullcontext() if spreads else of_torch(1):
        return results + [function(one) for one in blocks[len(together) :]]


def _on_cpu(episode: Episode) -> bool:
    tensors: list[torch.Tensor] = []
    mapped(tensors.append, episode.support_x)
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _run(call: tuple) -> object:
    context, (enabled, dtype), function, episode = call
    with torch.autocast("cpu", dtype, enabled):
        return context.run(function, episode)


@cache
def _pool(count: int) -> tuple[ThreadPoolExecutor | None, int]:
    return pools.started(count, "task", stay_on_one_core)


# Threads do not come along to the child of a fork, which would wait for them for ever.
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def keep_freed_memory() -> None:
    """Have the C allocator reuse freed memory instead of returning it to the system, process-wide.

    An activation of a target set is freed and asked for again within milliseconds; glibc would
    return it and fault it in anew each time, page by page, for longer than it takes to compute.
    Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    mallopt(arena_max, 1)  # a thread's own arena hands out large blocks by mmap only
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
