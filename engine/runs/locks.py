"""What file systems have under other names, or not at all: locks on open files, which end with
the process that holds them, and folders that can be synced.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    def _lock(descriptor: int, shared: bool = False) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:

    def _lock(descriptor: int, shared: bool = False) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def lock(descriptor: int) -> bool:
    """Takes the file for this process; False when another one has it, and not only for the moment
    in which that asks whether it is ``held``."""
    if _lock(descriptor):
        return True
    time.sleep(0.1)
    return _lock(descriptor)


def held(path: Path) -> bool:
    """Whether a process has the file; it is not written. Raises OSError when it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where folders can be opened at all: Windows has none."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
