"""Kills trainings, at any moment and in the middle of their writing, and looks at what is left.

    python -m tests.kills 100
    python -m tests.kills 100 --ranks 2        a random one of the ranks of torchrun

Runs are trained over and over, each until it is done, whatever kills it; a quarter of the kills
comes while the images are decoded into the cache, another while files are written. An evaluation
runs beside every other one. Nothing may be lost: after each kill every file of the run is whole,
and what a run ends with equals, bit for bit, what one that nothing touched ends with. Nothing may
be left over, neither in the run's folder nor in the cache, nor a process. What ranks end with
equals what one process ends with.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from engine.runs import checkpoint
from tests.tiny import flags, make_images, same, start, timeless
from tests.torchrun import launch, pids

LONGEST = 120.0  # seconds of one process: longer ones hang
# What a process may be killed at, each of them in turn: after some time, or as soon as such a file
# is there.
MOMENTS = ("any", "any", ".*.pt.*.tmp", "cache/*.tmp")
NOWHERE = {"stdout": -3, "stderr": -3}  # subprocess.DEVNULL
PATIENCE = 30.0  # seconds in which all ranks end after one


class Killed:
    """Trainings of one configuration in folders below ``place``."""

    def __init__(self, place: Path, seed: int = 0, ranks: int = 1):
        self.place, self.random, self.ranks = place, random.Random(seed), ranks
        self.images, self.cache = make_images(place / "images"), place / "cache"
        self.kills = dict.fromkeys(MOMENTS, 0)
        self.moments = []  # that come next
        self.finished = 0
        self.reference = self._folder()
        seconds = self._seconds(start(*self._command(self.reference), **NOWHERE))
        if ranks == 1:
            self.life = seconds

    def run(self, kills: int, told: Callable[[str], None] = lambda line: None) -> None:
        """Goes on until so many processes were killed and the last run is done."""
        while sum(self.kills.values()) < kills:
            folder = self._folder()
            while not self._survived(folder, kills):
                self._look(folder)
                told(f"{sum(self.kills.values())} kills, {self.finished} runs finished")
            self._compare(folder)
            self.finished += 1

    @cached_property
    def life(self) -> float:
        """Seconds of a run that nothing kills."""
        return self._seconds(self._start(self._folder()))

    def _seconds(self, process) -> float:
        began = time.monotonic()
        assert process.wait(LONGEST) == 0
        return time.monotonic() - began

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place)) / "run"

    def _command(self, folder: Path) -> list[str]:
        more = "--ensemble", 2, "--tasks", 2 * self.ranks
        return ["engine.train", *flags(self.images, folder, *more)]

    def _start(self, folder: Path):
        if self.ranks == 1:
            return start(*self._command(folder), **NOWHERE)
        options = "--standalone", "--monitor-interval", 0.1
        return launch(*self._command(folder), count=self.ranks, options=options, **NOWHERE)

    def _kill(self, process) -> bool:
        """Whether a process was there, or a rank of it, and ended by this."""
        if self.ranks == 1:
            process.kill()
            return process.wait() == -9
        found = pids(process)
        if not found:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.random.choice([*found.values()]), signal.SIGKILL)
        failed = process.wait(PATIENCE) != 0
        left = [pid for pid in found.values() if Path(f"/proc/{pid}").exists()]
        assert not left, f"ranks {left} outlived torchrun"
        return failed

    def _survived(self, folder: Path, most: int) -> bool:
        """Whether a process, of a run that may have begun, reached the end of the run."""
        done = sum(self.kills.values())
        self.moments = self.moments or self.random.sample(MOMENTS, len(MOMENTS))
        moment = self.moments.pop()
        if moment.startswith("cache"):
            shutil.rmtree(self.cache)
        until = self.random.uniform(0, 1.1 * self.life) if moment == "any" else LONGEST
        process = self._start(folder)
        beside = self._evaluation(folder) if done % 2 else None
        try:
            if done < most and self._reached(process, folder, moment, until):
                self.kills[moment] += self._kill(process)
            code = process.wait(LONGEST)
            assert code in (0, -9 if self.ranks == 1 else 1), f"exit code {code}"
            return code == 0
        finally:
            process.kill()
            if beside is not None:
                beside.kill()
                beside.wait()

    def _evaluation(self, folder: Path):
        more = ("--data", self.images, "--cache", self.cache)
        return start("engine.evaluate", folder, *more, **NOWHERE)

    def _reached(self, process, folder: Path, moment: str, until: float) -> bool:
        """Waits for the moment, so many seconds; False when the process ended before."""
        ends = time.monotonic() + until
        while process.poll() is None and time.monotonic() < ends:
            if moment != "any" and self._is_there(folder, moment):
                time.sleep(self.random.uniform(0, 0.003))
                return True
            time.sleep(0.0005 if moment != "any" else 0.005)
        assert moment == "any" or process.poll() is not None, "the process hangs"
        return process.poll() is None

    def _is_there(self, folder: Path, moment: str) -> bool:
        where, _, pattern = moment.rpartition("/")
        return next((self.cache if where else folder).glob(pattern), None) is not None

    def _look(self, folder: Path) -> None:
        """Every file under a final name is whole, and what latest.pt names is there."""
        for file in folder.glob("*.pt"):
            found = checkpoint.load(file)
            if file.name == checkpoint.LATEST:
                for epoch, _ in found.best:
                    checkpoint.load(checkpoint.epoch_file(folder, epoch))
        for name in (checkpoint.CONFIG, checkpoint.RESULT):
            if (folder / name).exists():
                json.loads((folder / name).read_text())

    def _compare(self, folder: Path) -> None:
        """Of a run that is done: the same files, bits, rows and results as of one left alone."""
        names = sorted(file.name for file in folder.iterdir())
        assert names == sorted(file.name for file in self.reference.iterdir()), names
        for file in self.reference.glob("*.pt"):
            ours, theirs = checkpoint.load(folder / file.name), checkpoint.load(file)
            assert same(ours.state, theirs.state) and ours.best == theirs.best, file.name
        assert _result(folder) == _result(self.reference)
        assert _rows(folder) == _rows(self.reference)
        assert [file.suffix for file in self.cache.iterdir() if "folder" in file.name] == [".bank"]
        shutil.rmtree(folder.parent)


def _result(folder: Path) -> dict:
    return json.loads((folder / checkpoint.RESULT).read_text())


def _rows(folder: Path) -> list[dict]:
    return timeless([*map(json.loads, (folder / checkpoint.LOG).read_text().splitlines())])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--ranks", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        killed = Killed(Path(place), asked.kills, asked.ranks)
        killed.run(asked.kills, told=lambda line: print(line, flush=True))
    print(f"{killed.kills} kills, {killed.finished} runs: nothing lost, nothing left over")


if __name__ == "__main__":
    main()
