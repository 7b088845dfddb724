"""What a person is told, and instead of a traceback."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake to correct, in one printable line: what, the value, what is allowed, what to do."""

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(printable(message))


class Diverged(Exception):
    """Something is no longer finite; the message says where and what."""

    exit_code = 3


def printable(text: str) -> str:
    """One line that does nothing to a terminal: what is no visible character, as an escape
    sequence, a line's end or half a surrogate pair in a file's name, is shown as Python writes it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], most: int = 10) -> str:
    """The first names in their order, printable, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def flag(name: str) -> str:
    """Of a setting."""
    return "--" + name.replace("_", "-")


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``did you mean X? `` for the most similar of ``known``, or nothing where none is similar."""
    by_name = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_name, n=1, cutoff=0.7)
    return f"did you mean {prefix}{by_name[found[0]]}? " if found else ""


@contextlib.contextmanager
def explained(what: str, cure: str) -> Iterator[None]:
    """Turns an OSError of the block (full disk, no permission) into a UserError, its cause told."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}; {cure}") from error


@contextlib.contextmanager
def as_arguments(**names: str) -> Iterator[None]:
    """Has a UserError of the block name a program's arguments where it names flags; ``names``:
    those of settings that are called otherwise."""
    try:
        yield
    except UserError as error:
        text = re.sub(
            r"(?<![^\s(])--([a-z]+(?:-[a-z]+)*)", lambda f: f[1].replace("-", "_"), str(error)
        )
        for name, own in names.items():
            text = re.sub(rf"\b{name}\b", own, text)
        error.args = (text,)
        raise


_silent = False


@contextlib.contextmanager
def silence(silent: bool) -> Iterator[None]:
    """`say` says nothing inside, and no bar is drawn: another process does."""
    global _silent
    before, _silent = _silent, silent
    try:
        yield
    finally:
        _silent = before


def silenced() -> bool:
    return _silent


def say(*lines: str) -> None:
    """Prints each as one printable line, at once; a character that the console's encoding lacks is
    shown as ``?``.

    Raises UserError when they cannot be written: a full disk, or a closed pipe as of ``| head``.
    """
    if _silent:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = "".join(printable(line) + "\n" for line in lines)
    try:
        print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)
    except OSError as error:
        discard(sys.stdout.fileno())  # the buffer is flushed at exit
        raise UserError(
            f"cannot write to standard output: {error.strerror}; send it elsewhere and give the "
            "same command again"
        ) from None


def complain(line: str) -> None:
    """One printable line on standard error; where that cannot be written, there is no other place
    to say it.
    """
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr.fileno())  # the buffer is flushed at exit


def open_streams() -> None:
    """Has standard streams that were closed (``2>&-``) lead nowhere. Else the next file opened
    takes the number of one, and what a library prints goes into that file. One that Python alone
    has not, as in a program without a console, leads where its number does.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free: this one
            setattr(sys, name, None)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)


def discard(stream: int) -> None:
    """Has all that is written to a file descriptor from now on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)


def is_out_of_memory(error: Exception) -> bool:
    """On the CPU or a GPU; torch says so by a RuntimeError."""
    words = ("out of memory", "allocate memory")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)
