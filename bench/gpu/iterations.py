"""Outer iterations, ours by turns with each of the others, and the memory that they take.

Ours is what a training runs: the captured iteration, its drawing of tasks included. The others run
on one batch that stays on the device; all work on the same device in the same minutes.
"""

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from time import monotonic, perf_counter

import torch

from bench import flops, gate
from bench.cases import Row
from bench.gpu import clock, graph
from bench.gpu.progress import Items, LeftOut, Request, lost
from bench.gpu.rows import GOALS, ROWS, config, precisions
from bench.implementations import IMPLEMENTATIONS, Ours, missing
from bench.worker import Worker

OTHERS = ("loop", "cuDNN graph")
PEERS = ("vmap", "JAX")  # slow, or slow to compile: in a part of their own, second order alone
TURN, ROUNDS = 0.15, 6  # seconds of a turn, and rounds
QUICK_TURN, QUICK_ROUNDS = 0.02, 2
PATIENCE = 240.0  # seconds for JAX to compile


def alone(request: Request) -> Items:
    """The rows that have goals."""
    for row in _rows(request):
        if row in GOALS:
            yield str(row), lambda r=row: _play(r, None, request)


def items(request: Request) -> Items:
    for row in _rows(request):
        if row not in GOALS:
            yield f"{row} alone", lambda r=row: _play(r, None, request)
        for other in OTHERS:
            yield f"{row} {other}", lambda r=row, o=other: _play(r, o, request)


def peers(request: Request) -> Items:
    for other in PEERS:
        for row in _rows(request):
            if row.order == "second":
                yield f"{row} {other}", lambda r=row, o=other: _play(r, o, request)


def _rows(request: Request) -> tuple[Row, ...]:
    return ROWS[:2] if request.quick else ROWS


def _play(row: Row, other: str | None, request: Request) -> dict:
    """Seconds an iteration in each round, by player."""
    release(request.device)
    if other and (reason := missing(other, request.device)):
        raise LeftOut(reason)
    cfg = config(row, precisions(request.device, "tf32")[0], request.quick, request.device)
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        players = _ours(row, request, absent, stack, eager=other is None)
        if other:
            players[other] = _other(row, cfg, other, request, stack)
        turn, rounds = (QUICK_TURN, QUICK_ROUNDS) if request.quick else (TURN, ROUNDS)
        taken = clock.take_turns(players, turn, rounds)
    usual = {name: median(each) for name, each in taken.items()}
    return {
        "row": vars(row),
        "rounds": taken,
        "absent": absent,
        "flops": flops.iteration(cfg).all,
        "said": ", ".join(f"{name} {1e3 * s:,.3f} ms" for name, s in usual.items()),
    }


def _ours(
    row: Row, request: Request, absent: dict[str, str], stack: ExitStack, eager: bool
) -> dict[str, Callable]:
    """Ours in each precision; what is not the same bits as when run eagerly is not timed."""
    players, device = {}, request.device
    for precision in precisions(device, "tf32", "bf16"):
        cfg = config(row, precision, request.quick, device)
        try:
            own = stack.enter_context(graph.Stepping(cfg, device))
            found = graph.bits(cfg, device, 2)
            if not found["same"]:
                raise AssertionError(found["said"])
            players[f"ours, {precision}"] = timed(own.iterations, device)
        except (LeftOut, AssertionError, RuntimeError) as reason:
            if lost(device):
                raise
            absent[f"ours, {precision}"] = str(reason)
        if eager or not players:
            players[f"ours, {precision}, eager"] = timed(
                Ours(cfg, device=device).iterations, device
            )
    return players


def _other(row: Row, cfg, name: str, request: Request, stack: ExitStack) -> Callable:
    """Another implementation, which has passed the gate."""
    device = request.device
    if name == "JAX" and (request.quick or not request.cuda):
        raise LeftOut("it takes minutes to compile; a whole run on a GPU has it")
    ours = Ours(cfg, device=device)
    if name == "JAX":  # in a process of its own: it would take this one's memory
        if monotonic() + PATIENCE > request.ends + 60:
            raise RuntimeError("too late in this call to compile it; the next one tries")
        threads = torch.get_num_threads()
        worker = stack.enter_context(Worker(row, name, threads, PATIENCE, device.type))
        for _ in range(3):  # an Adam step tells a wrong gradient
            try:
                loss = worker.run("iteration").loss
            except TimeoutError as error:
                raise LeftOut(str(error)) from None
            gate.check_single(ours.iteration(), name, loss, rounded=True)
        return lambda count: worker.run(f"iterations {count}").seconds
    gate.check_exact(replace(cfg, precision="fp32"), name, device)
    theirs = IMPLEMENTATIONS[name](cfg, torch.float32, device)
    gate.check_single(ours.iteration(), name, theirs.iteration(), rounded=request.cuda)
    return timed(theirs.iterations, device)


def timed(run: Callable[[int], object], device: torch.device) -> Callable[[int], float]:
    """Seconds of so many iterations, from an idle device to an idle device."""

    def play(count: int) -> float:
        clock.wait(device)
        start = perf_counter()
        run(count)
        clock.wait(device)
        return perf_counter() - start

    return play


def memory(request: Request) -> Items:
    request.need_gpu("this memory")
    for row in _rows(request):
        for name in ("ours, tf32", "ours, bf16", "loop"):
            yield f"{row} {name}", lambda r=row, n=name: _peak(r, n, request)


def _peak(row: Row, name: str, request: Request) -> dict:
    """Bytes above what was there before, of tensors, and of what the allocator took for them."""
    device = request.device
    release(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    precision = name.rpartition(", ")[2] if name.startswith("ours") else "tf32"
    cfg = config(row, precision, request.quick, device)
    with ExitStack() as stack:
        runner = (
            stack.enter_context(graph.Stepping(cfg, device))
            if name.startswith("ours")
            else IMPLEMENTATIONS[name](cfg, torch.float32, device)
        )
        runner.iterations(2)
        clock.wait(device)
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    allocated, reserved = (peak - was for peak, was in zip(peaks, before, strict=True))
    words = f"{allocated / 2**20:,.0f} MiB of tensors, {reserved / 2**20:,.0f} MiB reserved"
    about = {"row": vars(row), "implementation": name}
    return about | {"allocated": allocated, "reserved": reserved, "said": words}


def release(device: torch.device) -> None:
    """What an earlier item left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
