"""Locks on open files, which end with the process that holds them."""

from __future__ import annotations

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
