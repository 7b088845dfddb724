"""Compiles the Triton kernels of all passes beforehand, side by side on the processor's cores.

Triton keeps what it compiled on disk; a later run only loads it. The threads compile and launch
nothing: two that launch a kernel for the first time at once may meet it half loaded.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch

from bench import ops
from bench.cases import Row
from bench.gpu.checks import passes_here, rows_of_networks
from bench.gpu.progress import Items, LeftOut, Request
from bench.gpu.rows import config

MOST = 16  # threads
PACKAGE = "kernels.triton."  # whose modules launch, each kernel under a name of its own


def items(request: Request) -> Items:
    request.need_gpu("what Triton compiles")
    precisions = [p for p, backend in passes_here(request.device) if backend == "triton"]
    if not precisions:
        raise LeftOut("no precision of the passes runs by Triton here; see python -m kernels")
    yield "passes", lambda: _all(precisions, request)


def _all(precisions: list[str], request: Request) -> dict:
    wanted = [
        (row, precision, which)
        for precision in precisions
        for row in rows_of_networks(request)
        for which in ("support", "target")
    ]
    began = time.monotonic()
    failed = compile_all(lambda each: _run(*each, request), wanted)
    seconds = time.monotonic() - began
    words = f"{len(wanted)} passes in {seconds:.0f} s of {os.cpu_count()} cores"
    if failed:
        raise RuntimeError(f"{len(failed)} of {words} failed, the first: {failed[0]}")
    return {"passes": len(wanted), "seconds": seconds, "said": words}


def compile_all(run: Callable, each: Iterable) -> list[Exception]:
    """`run` of each at once, for what it compiles: nothing is launched, so that its results are
    anything. Answers what went wrong, which the same work meets again when it counts.
    """

    def attempt(one) -> Exception | None:
        try:
            run(one)
        except Exception as error:
            return error
        return None

    with kernels_as(_Compiled), ThreadPoolExecutor(min(MOST, os.cpu_count() or 1)) as pool:
        return [error for error in pool.map(attempt, each) if error is not None]


@contextmanager
def kernels_as(stand_in: Callable[[object], object]) -> Iterator[None]:
    """Inside the block every kernel of the package is what `stand_in` makes of it."""
    with ExitStack() as stack:
        for module in [m for name, m in sys.modules.items() if name.startswith(PACKAGE)]:
            for name, value in [*vars(module).items()]:
                if name.endswith("_kernel"):
                    stack.enter_context(patch.object(module, name, stand_in(value)))
        yield


class _Compiled:
    """In a kernel's place: compiles what a launch with the same arguments would run, without it."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getattr__(self, name: str):
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple) -> Callable:
        return partial(self.kernel.warmup, grid=grid)


def _run(row: Row, precision: str, which: str, request: Request) -> None:
    cfg = config(row, precision, request.quick, request.device)
    calls = ops.passes(cfg, "triton", torch.float32, request.device, which)
    with torch.no_grad():
        for call in calls.values():
            call()
