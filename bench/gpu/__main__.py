"""Checks, tunes, times and trains on a GPU, and writes one JSON and one Markdown report.

    python -m bench.gpu [--name NAME] [--part PART] [--quick] [--device cuda|cpu] [--minutes M]

Everything is saved as it is found, in one folder (--out): NAME.json and NAME.md, the launch table
tuned.json, trainings in NAME/, and what Triton compiled in triton/. The same command continues with
what is missing, on another machine too if the folder is carried there, and after --limit minutes
begins nothing new.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from engine.commandline import Parser
from engine.errors import UserError, say
from engine.runs.interrupt import Interrupt, answered

# In the order that a first call of ten minutes wants: does it run, is it right, how fast is it, and
# where does the time go; then everything else.
PARTS = (
    "environment", "compile", "passes", "bits", "alone", "profile", "kernels", "gradients", "ops",
    "tune", "iterations", "networks", "peers", "memory", "training",
)  # fmt: skip
INSTALL = """\
The CUDA and native modules, built before it where there is no network:
  python -m pip install --no-build-isolation --no-deps -e .
"""
# Seconds of a call that a part takes at most, unless it is asked for alone: the next call goes on.
SHARES = {"tune": 100.0}
# In a checkout: what the README is made from, and the table that every launch follows.
RESULTS, TABLE = "bench/results/gpu", "kernels/triton/tuned.json"


def flags(argv: list[str]) -> dict[str, Any]:
    parser = Parser(
        prog="python -m bench.gpu",
        description=__doc__.split("\n\n")[0],
        epilog=INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--name", metavar="NAME", help="of the results (default: the GPU's)")
    add("--part", metavar="PART", help=f"repeat this one alone, of {', '.join(PARTS)}")
    add("--quick", action="store_true", default=False, help="fewer and smaller cases")
    add("--device", metavar="cuda|cpu", default="cuda", help="cpu: a dry run")
    add("--minutes", type=float, metavar="M", default=6.0, help="of training in this call")
    add("--limit", type=float, metavar="M", default=9.0, help="of this call, about")
    add("--data", metavar="PATH", default=None, help="Omniglot (default: datasets/omniglot)")
    add("--out", type=Path, metavar="PATH", default=None, help="of it all (default: runs/gpu)")
    # What this process says to the one that goes on after it.
    add("--after-loss", action="store_true", default=False, help=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    for name, known in (("part", PARTS), ("device", ("cuda", "cpu"))):
        if given.get(name, known[0]) not in known:
            raise UserError(f"--{name} is {given[name]!r}: choose one of {', '.join(known)}")
    for name in ("minutes", "limit"):
        if not 0 <= given[name] < 1e6:
            raise UserError(f"--{name} is {given[name]}: give minutes, 0 or more")
    if given.get("name") == "tuned":
        raise UserError("--name is 'tuned': so is the launch table's file; give another one")
    if not Path(given.get("name") or "x").name == (given.get("name") or "x"):
        raise UserError(f"--name is {given['name']!r}: give the name of a file, without a folder")
    return given


def run(argv: list[str], interrupt: Interrupt) -> None:
    began, given = time.monotonic(), flags(argv)

    import torch

    from bench import results
    from bench.gpu import launch_table, report
    from bench.gpu.progress import Lost, Progress, Request

    interrupt.phase = "unwind"
    if given["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; --device cpu makes a dry run")
    device = torch.device(given["device"])
    name = given.get("name") or _default_name(device)
    folder = given["out"] or results.ROOT / "runs" / "gpu"
    progress = Progress(
        folder / f"{name}.json", {"name": name, "device": device.type, "quick": given["quick"]}
    )
    request = Request(
        name, device, given["quick"], given["minutes"], given["data"], interrupt, progress,
        began + 60 * given["limit"], partial(launch_table.digest, device),
    )  # fmt: skip
    if request.cuda:
        _settle(folder)
    if "part" in given and not given["after_loss"]:
        progress.forget(given["part"])
    try:
        whole = _work(given, request)
    except Lost as lost:
        say(f"{lost}; another process goes on, and comes back to this in the next call")
        _go_on(argv, request.ends)
    finally:
        page = report.write_page(progress)
    for line in report.summary(progress.data):
        say(line)
    say(f"{'done' if whole else 'time is up, the same command continues'}; saved in {page}")
    if request.cuda:
        say(_to_keep(request))


def _to_keep(request) -> str:
    """The files that the repository has of a run."""
    table = f", and tuned.json to {TABLE}" * (request.out / "tuned.json").exists()
    return f"to keep it, copy {request.name}.json and {request.name}.md to {RESULTS}{table}"


def _settle(folder: Path) -> None:
    """Launch table and compiled kernels are in the folder, too."""
    from bench.gpu import launch_table

    launch_table.use(folder / "tuned.json")
    os.environ.setdefault("TRITON_CACHE_DIR", str((folder / "triton").resolve()))


def _work(given: dict[str, Any], request) -> bool:
    """All parts, then the items in which the device was lost in earlier calls, the latest one last,
    so that what stands behind them is reached. Answers whether nothing is left to be continued.
    """
    from bench.gpu.parts import items
    from bench.gpu.progress import work_through

    alone, whole = "part" in given, True
    parts = (given["part"],) if alone else PARTS
    for part in parts:
        share = float("inf") if alone else SHARES.get(part, float("inf"))
        ends = min(time.monotonic() + share, request.ends)
        whole = work_through(part, items(part, request), request, ends) and whole
    for part, name in [] if given["after_loss"] else request.progress.lost():
        if part in parts:
            listed = items(part, request)
            whole = work_through(part, listed, request, request.ends, only=name) and whole
    return whole and (alone or not request.progress.outdated(request.table()))


def _go_on(argv: list[str], ends: float) -> None:
    """Becomes a process with a device of its own, for the time that is left."""
    left = max(0.0, ends - time.monotonic()) / 60
    command = ["-m", "bench.gpu", *argv, "--limit", f"{left:.2f}", "--after-loss"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


def _default_name(device) -> str:
    import torch

    if device.type != "cuda":
        return "dry-run"
    return torch.cuda.get_device_name(device).lower().replace(" ", "-").replace("/", "-")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    again = "stopped; the same command continues"
    return answered(lambda interrupt: run(argv, interrupt), stopped=again)


if __name__ == "__main__":
    sys.exit(main())
