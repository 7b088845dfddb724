"""Where a run was made, and the JSON it is kept in."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench import processor
from engine.errors import UserError
from kernels import native

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "bench" / "results"
KINDS = ("peaks", "meta", "modules", "ops", "evaluation", "episodes")  # of what a run measures


def describe(full: bool) -> dict:
    """Machine, commit and versions of this process's measurements."""
    return {
        "command": "pytest bench/ --benchmark-only" + (" --full" if full else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "processor": processor.name(),
        "processor_details": processor.details(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": f"native, {native.module.isa().name}" if native.module else "plain",
        "dense": True,  # the baselines' tensors, as PyTorch lays out new ones; before, as ours
    }


def machine() -> dict:
    """This one, as far as it matters to a training."""
    described, names = describe(full=False), ("processor", "cores", "system", "torch")
    return {name: described[name] for name in names}


def path_of(run: dict) -> Path:
    """A name of its own for every run, so that none overwrites a committed one."""
    kind = "full" if "--full" in run["command"] else "short"
    date = run["date"][:16].replace("-", "").replace(":", "")
    return FOLDER / f"{kind}-{date}-{run['commit'][:8]}.json"


def save(run: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def kept(make: Callable[[], Path]) -> int:
    """The exit code of a command line that keeps a file: says where, or why not."""
    try:
        path = make()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"saved in {path}")
    return 0


def commit(name: str) -> str:
    """The whole name of a commit. Raises UserError when this checkout has none of that name."""
    if found := _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"):
        return found
    raise UserError(f"--commit is {name}: this checkout has no such commit; give one of its own")


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return result.stdout.strip()
