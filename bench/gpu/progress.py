"""What a run has found so far: a JSON that is saved after every item, and continued."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import results
from engine.errors import UserError, explained, say
from engine.files import replace_file
from engine.runs.interrupt import Interrupt
from engine.runtime import graph

ALL = "all of it"  # an item in place of those of a part that cannot be listed
# Parts that are measured again when the launch table has changed since; the others say which one
# they were made by.
BY_TABLE = ("bits", "alone", "profile", "ops", "iterations", "peers", "memory")
Items = Iterator[tuple[str, Callable[[], dict]]]  # names, and what measures them


class LeftOut(Exception):
    """Raised by a part or an item that cannot be done here; the message says why, in one line."""


class Lost(Exception):
    """Raised where the device answers nothing any more; only another process can go on."""


class Request(NamedTuple):
    """What was asked for on the command line, as the parts see it."""

    name: str
    device: torch.device
    quick: bool  # fewer and smaller cases
    minutes: float  # of training in this call
    data: str | None  # Omniglot
    interrupt: Interrupt
    progress: "Progress"
    ends: float  # of the call, by the monotonic clock
    table: Callable[[], str]  # digest of the launch table as it is now

    @property
    def out(self) -> Path:
        """The folder of everything that is kept."""
        return self.progress.path.parent

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def need_gpu(self, what: str) -> None:
        if not self.cuda:
            raise LeftOut(f"{what} is a GPU's; this run is on {self.device.type}")


class Progress:
    """`data` is what the JSON holds: how the run was asked for, its calls, and by part and name
    what every item found, or why it was left out or failed.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.data = _loaded(path) if path.is_file() else settings | {"calls": [], "parts": {}}
        for name, value in settings.items():
            if self.data.get(name) != value:
                raise UserError(
                    f"{path} was begun with {name} {self.data.get(name)}, not {value}; ask for the "
                    "same, or give another --name"
                )
        about = results.describe(full=False)
        call = {name: about[name] for name in ("date", "commit", "changed")}
        self.data["calls"].append(call | {"seconds": 0.0})
        self._began = time.monotonic()

    def part(self, part: str) -> dict[str, dict]:
        """What the items of a part found, by name."""
        return self.data["parts"].setdefault(part, {})

    def done(self, part: str, name: str, table: str) -> bool:
        """Items that failed or were cut short are tried again, and those that another launch table
        made slower or faster.
        """
        item = self.part(part).get(name)
        if item is None or "failed" in item or item.get("unfinished"):
            return False
        return not _outdated(part, item, table)

    def outdated(self, table: str) -> bool:
        """Whether anything was measured by another launch table."""
        parts = self.data["parts"].items()
        return any(_outdated(part, item, table) for part, of in parts for item in of.values())

    def lost(self) -> list[tuple[str, str]]:
        """Part and name of the items in which the device was lost, the latest one last."""
        found = [
            (item["call"], part, name)
            for part, items in self.data["parts"].items()
            for name, item in items.items()
            if item.get("lost")
        ]
        return [(part, name) for _, part, name in sorted(found, key=lambda each: each[0])]

    def forget(self, part: str) -> None:
        self.data["parts"].pop(part, None)

    def keep(self, part: str, name: str, item: dict) -> None:
        self.part(part)[name] = item | {"call": len(self.data["calls"]) - 1}
        self.save()

    @contextmanager
    def begun(self, part: str, name: str) -> Iterator[None]:
        """Around the work on an item: a process that is killed in it leaves it as lost."""
        before, mark = self.part(part).get(name), {"failed": "its process was ended", "lost": True}
        self.keep(part, name, mark)
        try:
            yield
        finally:
            if "lost" in self.part(part)[name]:  # what is interrupted may have kept more
                self.part(part).pop(name)
                if before is not None:
                    self.part(part)[name] = before
                self.save()

    def save(self) -> None:
        self.data["calls"][-1]["seconds"] = round(time.monotonic() - self._began, 1)
        write(self.path, json.dumps(self.data, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """So that the file is whole wherever the run is ended."""
    with explained(f"cannot write results to {path.parent}", "make room there, or give --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())


def _loaded(path: Path) -> dict:
    try:
        return results.load(path)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; remove it, or give another --name") from None


def _outdated(part: str, item: dict, table: str) -> bool:
    return part in BY_TABLE and "left_out" not in item and item.get("table") != table


def work_through(
    part: str, items: Items, request: Request, ends: float, only: str | None = None
) -> bool:
    """Does what is missing of a part, each item as long as the clock has not passed `ends`; answers
    whether nothing is left to be continued. With `only` it does the item of that name alone, and
    without it all but those in which the device was lost.

    An item that fails is kept with its reason, and the others go on; but not after an error of the
    device itself, which leaves none of them a chance in this process: that raises Lost.
    """
    progress, whole = request.progress, True
    skipped = {name for lost_in, name in progress.lost() if lost_in == part and name != only}
    if only is None and ALL in skipped:  # its very list loses the device
        return True
    for name, measure in _listed(part, items, request):
        if name in skipped or only not in (None, ALL, name):
            continue
        if progress.done(part, name, request.table()):
            continue
        request.interrupt.check()
        if time.monotonic() > ends:
            return False
        began = time.monotonic()
        with progress.begun(part, name):
            item = _measured(measure)
        item = _kept(part, name, item, request)
        whole = whole and not item.get("unfinished")
        say(f"{part}: {name}, {time.monotonic() - began:.1f} s{_outcome(item)}")
    return whole


def _measured(measure: Callable[[], dict]) -> dict:
    try:
        return measure()
    except LeftOut as reason:
        return {"left_out": str(reason)}
    except Exception as error:
        return _failure(error)


def _kept(part: str, name: str, item: dict, request: Request) -> dict:
    """Keeps an item, as one that failed where it lost the device."""
    if gone := lost(request.device):
        item = {"failed": item.get("failed", gone), "lost": True}
    request.progress.keep(part, name, item | {"table": request.table()})
    if gone:
        say(f"{part}: {name}{_outcome(item)}")
        raise Lost(gone)
    return item


def lost(device: torch.device) -> str | None:
    """Why nothing can be measured in this process any more, as after an address that the device
    could not read; `None` if it can.
    """
    if graph.failed:
        return "a graph could not be captured"
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"the device is lost: {_words(error)}"
    return None


def _listed(part: str, items: Items, request: Request) -> Items:
    """The items; a part that cannot be done here, or that fails to say what it has, has one, which
    says why.
    """
    before = request.progress.part(part).pop(ALL, None)
    try:
        yield from items
        if before is not None:
            request.progress.save()
        return
    except LeftOut as reason:
        item = {"left_out": str(reason)}
    except Exception as error:
        item = _failure(error)
    item = _kept(part, ALL, item, request)
    if item.keys().isdisjoint(before or ()):
        say(f"{part}{_outcome(item)}")


def _failure(error: Exception) -> dict:
    return {"failed": f"{type(error).__name__}: {_words(error)}"}


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _outcome(item: dict) -> str:
    for what, words in (("left_out", "left out"), ("failed", "FAILED")):
        if what in item:
            return f", {words}: {item[what]}"
    return f", {item['said']}" if "said" in item else ""
