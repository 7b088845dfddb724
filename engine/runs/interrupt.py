"""Ctrl-C, SIGTERM and a closed terminal: finish what is under way, then stop.

Imports nothing heavy, so that a command line can answer from its first moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from engine.errors import (
    Diverged,
    UserError,
    complain,
    discard,
    is_out_of_memory,
    open_streams,
    printable,
)

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = tuple(s for s in (signal.SIGINT, signal.SIGTERM, HANGUP) if s is not None)
OURS = ("engine", "bench")  # packages whose modules are command lines
_RANK = int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None  # by torchrun
SCRIPT = "mamlpp"  # that an install puts beside Python
MISTAKES = UserError, Diverged, MemoryError, RuntimeError  # what ``failed`` tells


class Stopped(BaseException):
    """Unwinds the program after a signal. Not an Exception: no handler of errors may swallow it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.code = 128 + signum  # what a shell reports for a process ended by the signal
        self.name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


class Interrupt:
    """Context that answers the first signal by its phase; a second signal exits at once, but for
    SIGHUP: a closed terminal sends it by the shell and, when that ends, by the system.

    ``exit``: the process ends at once (an exception inside the import of an extension module can
    be lost, or crash it). ``unwind``: Stopped is raised where the program stands. ``finish``: the
    signal is noted, and Stopped is raised by the next ``check``.

    Only a process that was started as one of our command lines is ours to end. In any other
    program, such as a notebook, ``exit`` is as ``unwind``, and a second signal raises
    KeyboardInterrupt where the program stands. In a thread that is not the main one Python lets
    nobody handle signals: there this does nothing, and the program's own handlers stay.
    """

    def __init__(self):
        self.phase = "exit"
        self._received: int | None = None

    def __enter__(self) -> Interrupt:
        self._ends, self._terminals = _is_command(), [s for s in (1, 2) if os.isatty(s)]
        before = {s: signal.getsignal(s) for s in SIGNALS}
        if before.get(HANGUP) == signal.SIG_IGN:  # nohup
            del before[HANGUP]
        if threading.current_thread() is not threading.main_thread():
            before = {}
        # None: a handler that is not Python's, and could not be put back.
        self._before = {s: handler for s, handler in before.items() if handler is not None}
        for signum in self._before:
            signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def received(self) -> int:
        """The number of the signal that has arrived; 0: none."""
        return self._received or 0

    def check(self) -> None:
        """Raises Stopped if a signal has arrived."""
        if self._received is not None:
            raise Stopped(self._received)

    def _handle(self, signum: int, frame: object) -> None:
        stopped, first = Stopped(signum), self._received is None
        for stream in self._terminals:
            if not os.isatty(stream):  # closed: a line there would be an error
                discard(stream)
        if not first and (signum == HANGUP or _RANK is not None):
            return  # torchrun sends its own after the terminal's, and ends who does not stop
        self._received = signum
        if first and (self.phase == "unwind" or self.phase == "exit" and not self._ends):
            raise stopped
        if first and self.phase == "finish":
            if _RANK:
                return
            _say(f"{stopped.name}: finishing this iteration, then saving; Ctrl-C now stops at once")
            return
        saved = "the last checkpoint is whole" if self.phase == "finish" else "nothing was written"
        _say(f"{stopped.name}: stopped at once, {saved}")
        if not self._ends:
            raise KeyboardInterrupt
        os._exit(stopped.code)


def answered(work: Callable[[Interrupt], int | None], *, stopped: str) -> int:
    """Runs a command line and returns its exit code: that which ``work`` returns, or 0; that of
    what was wrong (told in one line on stderr); or 128 + the signal (``stopped`` tells what then).
    """
    open_streams()
    with Interrupt() as interrupt:
        try:
            return work(interrupt) or 0
        except MISTAKES as error:
            return failed(error)
        except Stopped as signalled:
            if not _RANK:
                complain(f"{signalled.name}: {stopped}")
            return signalled.code


def failed(error: Exception, of: str = "") -> int:
    """Tells one of MISTAKES in a line on stderr, ``of`` before it, and returns its exit code; any
    other RuntimeError is raised again."""
    if isinstance(error, (UserError, Diverged)):
        if not _RANK or hasattr(error, "claimed"):  # else the first rank says the same
            complain(f"error: {of}{error}")
        return error.exit_code
    if not is_out_of_memory(error):
        raise error
    complain(
        f"error: {of}out of memory; lower --tasks, --targets, --filters or --image-size, or use a "
        "machine with more; checkpoints already saved are whole"
    )
    return UserError.exit_code


def _is_command() -> bool:
    """Whether the process was started as ``python -m`` of one of our modules, or by our script."""
    started = getattr(sys.modules.get("__main__"), "__spec__", None)
    if started is None:
        return [Path(name).name for name in sys.argv[:1]] == [SCRIPT]
    return started.name.partition(".")[0] in OURS


def _say(line: str) -> None:
    # not print: the signal may have interrupted a print into the same buffer
    with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader of a pipe, too
        os.write(sys.stderr.fileno(), f"\n{printable(line)}\n".encode())
