"""One implementation of one row in a process of its own, and the client that commands it.

    python -m bench.worker "mini 5w1s" "MAML++" second 5 ours 2

makes it ready with two threads, then reads commands from stdin, one a line, until it is closed:

    iteration   runs one outer iteration, answers {"seconds": ..., "loss": ...}
    peak        answers the bytes by which the peak memory exceeds what the imports left

Between commands it sleeps in the read. The process is what the implementation's user would have:
the engine sets its C allocator as its command line does, the loop keeps the system's settings.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.cases import IMPLEMENTATIONS, Row
from bench.results import ROOT
from engine.workers import keep_freed_memory

STATUS = Path("/proc/self/status")
REST = 0.02  # seconds; OpenMP's threads spin for up to 10 ms after their last work, measured


class Iteration(NamedTuple):
    """What a worker says of one outer iteration."""

    seconds: float
    loss: float


class Worker:
    """A context manager: the process starts at once, alone, and ends with the block.

    Its stderr is this process's. A command that it does not live to answer raises RuntimeError.
    """

    def __init__(self, row: Row, implementation: str, threads: int):
        self.name = f"worker {row} {implementation}"
        arguments = [*map(str, vars(row).values()), implementation, str(threads)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the client, which ends the worker
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind, value, trace) -> None:
        if kind is not None:
            self.process.kill()  # instead of waiting for its iteration to end
        self.process.__exit__(kind, value, trace)

    def iteration(self) -> Iteration:
        return Iteration(**self._ask("iteration"))

    def peak(self) -> int:
        return self._ask("peak")

    def _ask(self, command: str) -> Any:
        try:
            self.process.stdin.write(f"{command}\n".encode())
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            code = self.process.wait()
            raise RuntimeError(f"{self.name} died, asked for {command!r}, exit code {code}")
        return json.loads(answer)


def peak_bytes() -> int:
    """Peak resident size of this process. Linux's own figure is taken where there is one, because
    ru_maxrss also counts the process that this one was forked from."""
    if STATUS.is_file():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(case: str, algorithm: str, order: str, steps: str, implementation: str, threads: str):
    before = peak_bytes()
    torch.set_num_threads(int(threads))
    if implementation == "ours":
        keep_freed_memory()
    runner = IMPLEMENTATIONS[implementation](Row(case, algorithm, order, int(steps)).config())

    def iteration() -> dict:
        start = time.perf_counter()
        loss = runner.iteration()
        elapsed = time.perf_counter() - start
        time.sleep(REST)  # the other's turn begins when this process is quiet
        return {"seconds": elapsed, "loss": loss}

    commands = {"iteration": iteration, "peak": lambda: peak_bytes() - before}
    for line in sys.stdin:
        print(json.dumps(commands[line.strip()]()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
