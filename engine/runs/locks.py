"""What file systems have under other names, or not at all: locks on open files, which end with
the process that holds them, and folders that can be synced.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    def lock(descriptor: int) -> bool:
        """Takes the file for this process; False when another one has it."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:

    def lock(descriptor: int) -> bool:
        """Takes the file for this process; False when another one has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where folders can be opened at all: Windows has none."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
