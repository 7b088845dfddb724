"""Peak memory of one implementation on one row, in a process of its own.

    python -m bench.memory "mini 5w1s" "MAML++" second 5 ours

prints the bytes by which two outer iterations raise the peak above what the imports left.
"""

import resource
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases import IMPLEMENTATIONS, Row

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Peak resident size of this process. Linux's own figure is taken where there is one, because
    ru_maxrss also counts the process that this one was forked from."""
    if STATUS.is_file():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(row: Row, implementation: str) -> int:
    """Bytes, measured in a new process with this one's number of threads."""
    arguments = [row.case, row.algorithm, row.order, str(row.steps), implementation]
    output = subprocess.run(
        [sys.executable, "-m", "bench.memory", *arguments, str(torch.get_num_threads())],
        cwd=Path(__file__).resolve().parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return int(output)


def main(case: str, algorithm: str, order: str, steps: str, implementation: str, threads: str = ""):
    if threads:
        torch.set_num_threads(int(threads))
    row = Row(case, algorithm, order, int(steps))
    before = peak_bytes()
    runner = IMPLEMENTATIONS[implementation](row.config())
    for _ in range(2):
        runner.iteration()
    print(peak_bytes() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
