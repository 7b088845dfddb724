"""One implementation of one row in a process of its own, and the client that commands it.

    python -m bench.worker '["mini 5w1s", "MAML++", "second", 5, "MSL", 2]' ours 2 cpu

makes it ready with two threads, then reads commands from stdin, one a line, until it is closed
(a row of four values is a `ModuleRow`):

    iteration     runs one outer iteration, answers {"seconds": ..., "loss": ...}
    iterations N  runs so many, answers the seconds of all of them and the last one's loss
    evaluation    adapts to the tasks and classifies their targets, answers the same
    peak          answers the bytes by which the peak memory exceeds what the imports left

Between commands it sleeps in the read. The process is what the implementation's user would have:
the engine sets its C allocator as its command line does, the others keep the system's settings; of
a `ModuleRow` both are set as the engine would.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.cases import Row
from bench.implementations import load, made
from bench.modules import ModuleRow
from bench.results import ROOT
from engine.runtime.workers import keep_freed_memory

STATUS = Path("/proc/self/status")
REST = 0.02  # seconds; OpenMP's threads spin for up to 10 ms after their last work, measured


class Run(NamedTuple):
    """What a worker says of one outer iteration or evaluation."""

    seconds: float
    loss: float


class Worker:
    """A context manager: the process starts at once, alone, and ends with the block.

    Its stderr is this process's. A command that it does not live to answer raises RuntimeError, one
    that it does not answer within `patience` seconds TimeoutError; `None` waits.
    """

    def __init__(
        self,
        row: Row | ModuleRow,
        implementation: str,
        threads: int,
        patience: float | None = None,
        device: str = "cpu",
    ):
        self.name, self.patience = f"worker {row} {implementation}", patience
        arguments = json.dumps([*vars(row).values()]), implementation, str(threads), device
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | _jax_on(device),
            start_new_session=True,  # Ctrl-C is for the client, which ends the worker
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind, value, trace) -> None:
        if kind is not None:
            self.process.kill()  # instead of waiting for its iteration to end
        self.process.__exit__(kind, value, trace)

    def run(self, command: str) -> Run:
        return Run(**self._ask(command))

    def peak(self) -> int:
        return self._ask("peak")

    def _ask(self, command: str) -> Any:
        try:
            self.process.stdin.write(f"{command}\n".encode())
            if not select.select([self.process.stdout], [], [], self.patience)[0]:
                self.process.kill()
                raise TimeoutError(f"{self.name}: no answer in {self.patience:.0f} s")
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            code = self.process.wait()
            raise RuntimeError(f"{self.name} died, asked for {command!r}, exit code {code}")
        return json.loads(answer)


def _jax_on(device: str) -> dict[str, str]:
    """It takes its devices, and three quarters of a GPU's memory, by these alone."""
    return {"JAX_PLATFORMS": device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def peak_bytes() -> int:
    """Peak resident size of this process. Linux's own figure is taken where there is one, because
    ru_maxrss also counts the process that this one was forked from."""
    if STATUS.is_file():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(row: str, implementation: str, threads: str, device: str):
    limit_threads(implementation, int(threads))
    go_first_when_memory_ends()
    load(implementation)
    before = peak_bytes()
    values = json.loads(row)
    kind = ModuleRow if len(values) == 4 else Row
    of = kind(*values)
    keeps = of.keeps if kind is ModuleRow else implementation.startswith("ours")
    if keeps:
        keep_freed_memory()
    runner = made(of, implementation, torch.float32, device)

    def timed(work, *arguments: int) -> dict:
        start = time.perf_counter()
        loss = work(*arguments)
        elapsed = time.perf_counter() - start
        time.sleep(REST)  # the others' turn begins when this process is quiet
        return {"seconds": elapsed, "loss": loss}

    commands = {
        "iteration": lambda: timed(runner.iteration),
        "iterations": lambda count: timed(runner.iterations, int(count)),
        "evaluation": lambda: timed(runner.evaluation),
        "peak": lambda: peak_bytes() - before,
    }
    for line in sys.stdin:
        name, *arguments = line.split()
        print(json.dumps(commands[name](*arguments)), flush=True)


def go_first_when_memory_ends() -> None:
    """The system is to end this process then, not the benchmark or a neighbour."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_threads(implementation: str, count: int) -> None:
    """XLA has no number of threads to set; it starts one for each processor it may run on."""
    torch.set_num_threads(count)
    if implementation == "JAX" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


if __name__ == "__main__":
    main(*sys.argv[1:])
