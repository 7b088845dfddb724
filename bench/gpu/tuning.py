"""Chooses blocks, warps and stages of the Triton launches, and writes them where the kernels look
(`bench.gpu.launch_table`).

The launches of a pass are recorded once with what configured them; each is then replayed alone in a
graph of many, under the default and under its neighbours. All that the benchmark knows of
`kernels.triton.launch` and of how the passes launch is in this file.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import NamedTuple
from unittest.mock import patch

import torch

from bench import ops
from bench.cases import Row
from bench.gpu import checks, clock, progress
from bench.gpu.checks import rows_of_networks
from bench.gpu.compiling import PACKAGE, compile_all, kernels_as
from bench.gpu.progress import Items, LeftOut, Request, lost
from bench.gpu.rows import config

BETTER = 0.97  # of the default's time: less is within what two measurements differ by
PRECISIONS = ("tf32", "bf16")  # that training runs in
ROUNDS = 2  # of neighbours, each of the best so far


class Call(NamedTuple):
    """One launch: kernel[grid](*arguments, **options)."""

    kernel: object
    grid: tuple
    arguments: tuple
    options: dict

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.options)


class Asked(NamedTuple):
    """A question for the options of a launch, and the answer."""

    geometry: object
    options: dict


def items(request: Request) -> Items:
    request.need_gpu("the launch table")
    try:
        launch = import_module("kernels.triton.launch")
    except ImportError as error:
        raise LeftOut(f"no kernels.triton.launch: {error}") from None
    for precision in PRECISIONS:
        for row in rows_of_networks(request):
            for which in ("target", "support"):
                run = passes(row, precision, which, request)
                for geometry in worthwhile(launch, run, request.device):
                    arguments = launch, geometry, run, request.device
                    yield launch.key(geometry), lambda a=arguments: tune(*a)
    yield from _checks(request)


def _checks(request: Request) -> Items:
    """Of the passes by the new table."""
    for precision in PRECISIONS:
        for row in rows_of_networks(request):
            for which in ("target", "support"):
                cfg = config(row, precision, request.quick, request.device)
                arguments = cfg, which, "triton", request.device
                name = f"passes triton {precision} {row.case} {which}, tuned"
                yield name, lambda a=arguments: checks.passes(*a)


def worthwhile(launch, run: Callable[[], None], device: torch.device) -> list:
    """The geometries of a pass whose launches take a hundredth of it or more, the longest first."""
    with recorded(launch) as groups:
        run()
    seconds = {g: _of_calls(calls, device) for g, calls in groups.items()}
    least = sum(seconds.values()) / 100
    return sorted((g for g in groups if seconds[g] >= least), key=lambda g: -seconds[g])


def passes(row: Row, precision: str, which: str, request: Request) -> Callable[[], None]:
    """A call that runs all launches of a pass, and of its tangent where training has one."""
    cfg = config(row, precision, request.quick, request.device)
    parts = ops.passes(cfg, "triton", torch.float32, request.device, which)

    def run() -> None:
        with torch.no_grad():
            parts["bwd"]()
            if which == "support":
                parts["tan"]()

    return run


def tune(launch, geometry, run: Callable[[], None], device: torch.device) -> dict:
    key, best = launch.key(geometry), launch.default(geometry)
    choices, times = launch.candidates(geometry), {}

    def measured(chosen: dict) -> float:
        name = json.dumps(chosen, sort_keys=True)
        if name not in times:
            times[name] = _seconds(launch, geometry, chosen, run, device)
        return times[name]

    first = measured(best)
    for _ in range(ROUNDS):
        tried = neighbours(best, choices)
        compile_all(lambda c: _run_with(launch, key, c, run), tried)
        better = min([best, *tried], key=measured)
        if better == best:
            break
        best = better
    tries, gained = len(times), measured(best) < BETTER * first
    if gained:  # the best of many is so by chance, too: once more, both of them
        times.clear()
        gained = measured(best) < BETTER * measured(launch.default(geometry))
    write(launch, device, key, best if gained else None)
    words = f"{1e6 * first:.1f} µs, best of {tries} {1e6 * measured(best):.1f} µs"
    return {
        "default": first,
        "best": measured(best),
        "config": best if gained else None,
        "tried": tries,
        "said": words + (f": {best}" if gained else ", the default stays"),
    }


def neighbours(chosen: dict, choices: list[dict]) -> list[dict]:
    """Those that differ from it in one value, or in as few as any of them does."""
    apart = [sum(c[name] != chosen[name] for name in chosen) for c in choices]
    least = min((n for n in apart if n), default=0)
    return [c for c, n in zip(choices, apart, strict=True) if n and n == least]


def _run_with(launch, key: str, chosen: dict, run: Callable[[], None]) -> None:
    with launch.trying({key: chosen}):
        run()


def _seconds(launch, geometry, chosen: dict, run, device) -> float:
    """Of the launches of a geometry alone; infinite where these cannot be compiled or run."""
    try:
        with recorded(launch) as groups:
            _run_with(launch, launch.key(geometry), chosen, run)
        return _of_calls(groups[geometry], device)
    except Exception:
        if chosen == launch.default(geometry) or lost(device):
            raise
        return float("inf")


def _of_calls(calls: list[Call], device: torch.device) -> float:
    return clock.of_call(lambda: [call() for call in calls], device)


@contextmanager
def recorded(launch) -> Iterator[dict]:
    """The first launches by each geometry that is asked for inside the block."""
    events: list[Call | Asked] = []
    ask = launch.config

    def asked(geometry, *rest):
        events.append(Asked(geometry, ask(geometry, *rest)))
        return dict(events[-1].options)

    groups: dict = {}
    with ExitStack() as stack:
        stack.enter_context(kernels_as(lambda kernel: _Recorder(kernel, events)))
        for module in [m for name, m in sys.modules.items() if name.startswith(PACKAGE)]:
            for name in [n for n, value in vars(module).items() if value is ask]:
                stack.enter_context(patch.object(module, name, asked))
        yield groups
    groups.update(grouped(events))


def grouped(events: list) -> dict[object, list[Call]]:
    """Launches by the geometry that configured them: the first one asked for whose options they
    have. Those without any, as the sum of the parts that others made, go with all the launches of
    one kernel just before.
    """
    groups: dict[object, list[Call]] = {}
    waiting: list[Asked] = []
    current: list[list[Call]] = []  # of the launches of one kernel that follow one another
    for event in events:
        if isinstance(event, Asked):
            waiting.append(event)
            continue
        own = (a for a in waiting if a.options.items() <= event.options.items())
        if asked := next(own, None):
            waiting.remove(asked)
            if current and current[-1][-1].kernel is not event.kernel:
                current = []
            current.append([event])
            groups.setdefault(asked.geometry, current[-1])
        else:
            for calls in current:
                calls.append(event)
    return groups


class _Recorder:
    """In a kernel's place: notes its launches and makes them."""

    def __init__(self, kernel, events: list):
        self.kernel, self.events = kernel, events

    def __getattr__(self, name: str):
        return getattr(self.kernel, name)

    def __getitem__(self, grid: tuple) -> Callable:
        def launch(*arguments, **options) -> None:
            call = Call(self.kernel, grid, arguments, options)
            self.events.append(call)
            call()

        return launch


def write(launch, device: torch.device, key: str, chosen: dict | None) -> None:
    """Into the table that is read at start; `None` leaves a key to its default."""
    table = json.loads(launch.TUNED.read_text()) if launch.TUNED.exists() else {}
    own = table.setdefault(torch.cuda.get_device_name(device), {})
    own.pop(key, None)
    if chosen is not None:
        own[key] = chosen
    progress.write(launch.TUNED, json.dumps(table, indent=1, sort_keys=True) + "\n")
    launch._tuned.cache_clear()  # what follows in this process runs by the new table
