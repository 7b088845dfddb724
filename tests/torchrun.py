"""Command lines as the ranks of torchrun, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from engine.runs.checkpoint import load
from tests.slow import slow
from tests.tiny import ROOT, finish, same, timeless

SLOW = slow("many processes, a minute")


def launch(
    module: str,
    *argv: object,
    count: int = 2,
    options: Iterable[object] = ("--standalone",),
    environment: dict[str, str] | None = None,
    **streams: int,
) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", *map(str, options)]
    command = [*torchrun, "--nproc-per-node", str(count), "-m", "--", module, *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
    usual = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    variables = os.environ | usual | (environment or {})
    return subprocess.Popen(command, cwd=ROOT, env=variables, **pipes)


def finished(process: subprocess.Popen, seconds: float) -> tuple[int, str, str]:
    """`finish`, and nothing left over."""
    try:
        return finish(process, seconds)
    finally:
        process.terminate()


def done(process: subprocess.Popen, seconds: float = 120) -> str:
    """What it said on standard output, and that nothing failed."""
    code, out, err = finished(process, seconds)
    assert code == 0, err
    return out


def pids(process: subprocess.Popen) -> dict[int, int]:
    """Of the ranks that are there now."""
    found = {}
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            rank = _environment(pid).get("RANK")
            if rank is not None:
                found[int(rank)] = pid
    return found


def _environment(pid: int) -> dict[str, str]:
    """Of a process; nothing once it has ended."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def told(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


def send(process: subprocess.Popen, rank: int, signum: signal.Signals) -> int:
    """To a rank, whose process is returned."""
    pid = pids(process)[rank]
    os.kill(pid, signum)
    return pid


def assert_same(folder: Path, other: Path) -> None:
    files = sorted(path.name for path in other.glob("*.pt"))
    assert files == sorted(path.name for path in folder.glob("*.pt")) and len(files) > 1
    for name in files:
        mine, theirs = (vars(load(f / name)) for f in (folder, other))
        for field in mine.keys() - {"meters"}:  # seconds
            assert same(mine[field], theirs[field]), (name, field)
    results = [json.loads((f / "result.json").read_text()) for f in (folder, other)]
    assert results[0] == results[1]
    assert rows(folder) == rows(other)


def rows(folder: Path) -> list[dict]:
    """Of the log, but for times."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in timeless([*map(json.loads, lines)]) if row["kind"] != "time"]
