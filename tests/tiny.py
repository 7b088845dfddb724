"""A data set and a run so small that a whole training takes about as long as importing torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--dataset folder --image-size 16 --filters 4 --stages 3 --steps 2 --tasks 2 --targets 2 "
    "--ways 3 --epochs 3 --iterations 4 --eval-tasks 4 "
    "--ensemble 2 --log-every 1 --threads 1 --device cpu --no-report"
).split()
RATE = "--inner-rate", "0.4"  # of methods that have one


def make_images(folder: Path, seed: int = 0, classes: int = 6) -> Path:
    """``<split>/<class>/<n>.png``: colour noise around one mean per class."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for c in range(classes):
            place = folder / split / f"{split}{c}"
            place.mkdir(parents=True)
            mean = rng.uniform(60, 190, size=(1, 1, 3))
            for n in range(6):
                noise = mean + rng.normal(0, 40, size=(16, 16, 3))
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(place / f"{n}.png")
    return folder


def flags(images: Path, run: Path, *more: object) -> list[str]:
    """Of engine.train; a later flag wins over an earlier one."""
    more = [*map(str, more)]
    method = METHODS[more[more.index("--method") + 1]] if "--method" in more else METHODS["maml++"]
    rate = () if "inner_rate" in method.ignored({}) else RATE
    places = {"--data": images, "--cache": images.parent / "cache", "--run": run}
    argv = [*FLAGS, *rate, *(str(word) for place in places.items() for word in place), *more]
    return without_rate(argv) if "--init" in more and not method.by_rate else argv


def without_rate(argv: list[str]) -> list[str]:
    """For a run that takes the rates of other weights."""
    if "--inner-rate" not in argv:
        return argv
    i = argv.index("--inner-rate")
    return without_rate(argv[:i] + argv[i + 2 :])


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}


def start(module: str, *argv: object, **options) -> subprocess.Popen:
    """The command line as a process of its own, with both streams piped."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, "-m", module, *map(str, argv)]
    return subprocess.Popen(command, text=True, env=environment(), **pipes)


def finish(process: subprocess.Popen, timeout: float = 60) -> tuple[int, str, str]:
    """Exit code, stdout, stderr. Kills the process, and fails, when it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def call(module: str, *argv: object, **options) -> tuple[int, str, str]:
    return finish(start(module, *argv, **options))


def here(module, argv, capsys) -> tuple[int, str, str]:
    """As `call`, of a command line's module, without a process, whose start takes seconds."""
    capsys.readouterr()
    return module.main([*map(str, argv)]), *capsys.readouterr()


def wait_for(process, words: str) -> None:
    """Reads stdout up to the first line with these words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} never came: {process.stderr.read()}")


def one_line(err: str, *words: str) -> None:
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def timeless(rows: list[dict]) -> list[dict]:
    """Of a log, but for what differs between two runs that are the same: times and memory."""
    other = ("seconds", "memory")
    return [{k: v for k, v in row.items() if not any(word in k for word in other)} for row in rows]


def tensors(value) -> list[torch.Tensor]:
    """Of nested dicts, lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value
    entries = entries if isinstance(value, (dict, list, tuple)) else ()
    return [tensor for entry in entries for tensor in tensors(entry)]


def same(a, b) -> bool:
    """Whether every tensor is equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 256 KiB, or the test is skipped."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    refused = os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode
    if refused:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
