"""The files of the image cache: banks, and what is left of writers that were killed.

    <label>-<place>-<content>.bank          one data set in one size
    <label>-<place>-<content>.bank.….tmp    the same while it is written, locked by its writer

A bank goes when a newer one of its place is written, or when it has not been used for long. Nobody
needs the file once it is open, so that it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.runs.locks import lock

_UNUSED = 90 * 86400.0  # seconds
# The second form is of before there were places.
_BANK = re.compile(r"[a-z-]+-([0-9a-f]{12}-)?[0-9a-f]{20}\.bank")
_LEFT = re.compile(_BANK.pattern + r"\.[0-9a-f]{32}\.tmp")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside ``path``, locked, and its name; removed unless it was renamed."""
    while True:
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        with open(temporary, "xb") as file:
            if not (_lock(file) and temporary.exists()):
                continue  # somebody, who clears up, was faster
            try:
                yield file, temporary
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        return


def _lock(file: BinaryIO) -> bool:
    try:
        return lock(file.fileno())
    except OSError:  # a file system without locks, on which nobody clears up either
        return True


def shelve(path: Path) -> None:
    """Clears up around a bank that was just written."""
    label_and_place = path.name.rpartition("-")[0]
    for file in path.parent.iterdir():
        superseded = file.name.startswith(f"{label_and_place}-") and file != path
        if _BANK.fullmatch(file.name) and (superseded or _age(file) > _UNUSED):
            _remove(file)
    remove_leftovers(path.parent)


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes what writers left that are no more; returns it."""
    removed = []
    for file in folder.iterdir():
        if not _LEFT.fullmatch(file.name):
            continue
        with contextlib.suppress(OSError):
            with open(file, "r+b") as left:
                if lock(left.fileno()):
                    file.unlink()
                    removed.append(file)
    return removed


def banks(folder: Path) -> list[Path]:
    """Those in a cache folder, by name; none when there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _BANK.fullmatch(file.name))


def clear(folder: Path) -> list[Path]:
    """Removes every bank and leftover; returns what is gone."""
    gone = [file for file in banks(folder) if _remove(file)]
    return gone + (remove_leftovers(folder) if folder.is_dir() else [])


def _age(file: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - file.stat().st_mtime
    return 0.0


def _remove(file: Path) -> bool:
    with contextlib.suppress(OSError):
        file.unlink()
        return True
    return False
