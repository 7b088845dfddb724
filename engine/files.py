"""Files that are written whole or not at all, and what is refused in their place."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from engine.allowed import PATH, check
from engine.errors import UserError, explained, listed
from engine.runs import locks

# The files of a run folder, beside the epochs.
LATEST, CONFIG, LOG, RESULT = "latest.pt", "config.json", "log.jsonl", "result.json"
DETAILS = "details.json"
RUN_FILES = LATEST, CONFIG, LOG, RESULT, DETAILS
REPORT = "report.html"  # of a run, where no other file has that name
REPORT_HEAD = b"<!doctype html>\n<!-- a report of mamlpp -->\n"  # by which it is told from others


def make_folder(path: Path, what: str, flag: str) -> None:
    """With those above it, unless it is there. Raises UserError when it cannot be; ``what`` it is
    and the ``flag`` that names it are told."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why, cure = error.strerror or str(error), "make room or allow writing there, or "
        taken = (p for p in (path, *path.parents) if os.path.lexists(p) and not os.path.isdir(p))
        if (found := next(taken, None)) is not None:
            kind = "a file, no folder" if found.is_file() else "no folder"
            why, cure = f"{'it' if found == path else found} is {kind}", ""
        raise UserError(f"cannot write {what} {path}: {why}; {cure}give another {flag}") from error


def refuse_special(path: Path) -> None:
    """Raises UserError where something lies that is no file, as a folder or a pipe, which would be
    waited for; OSError where nothing does, or a link to nothing."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is no regular file: move it away, or name another folder or file")


def read_json(path: Path) -> Any:
    """Raises OSError or ValueError when it cannot be read, UserError when it is no file."""
    refuse_special(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_report(path: Path) -> bool:
    """Whether a file is one that was made as a report; where there is none it is not."""
    with contextlib.suppress(OSError, UserError):
        refuse_special(path)
        with open(path, "rb") as file:
            return file.read(len(REPORT_HEAD)) == REPORT_HEAD
    return False


def replace_file(path: Path, content: bytes) -> None:
    """Temporary file of a name of its own, as others may write the same file, fsync, rename, fsync
    of the folder. Raises OSError, with the old file intact."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a signal's, too
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    locks.sync_folder(path.parent)


def output(flag: str, name: str, ending: str | None = None) -> Path:
    """Where a file that ``flag`` asks for goes, a link followed: what can be refused, before the
    work that it is the result of.

    Raises UserError where no file can be written, or one of a run or a checkpoint lies. With an
    ``ending``, which may be that of a checkpoint, names have that one.
    """
    check(flag.lstrip("-"), name, PATH)
    if name == "-":
        raise UserError(f"{flag} is -: standard output has the table; name a file")
    cure = f"give another {flag}"
    with explained(f"cannot write {name}", cure):
        path = Path(name).expanduser().resolve()
        if path.exists():
            refuse_special(path)
        path.parent.stat()
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise UserError(f"cannot write {name}: {path.parent} takes no file; {cure}")
        of_run = (path.parent / LATEST).exists() and path.name in RUN_FILES
    if ending and path.suffix.lower() != ending:
        raise UserError(f"{flag} is {name}: give a name that ends in {ending}")
    if path.suffix == ".pt" and not ending or of_run:
        raise UserError(f"{flag} is {name}, a name of a file of a run: {cure}")
    return path


def write(path: Path, text: str) -> None:
    """Whole, as UTF-8, but for a file's name, which keeps its own bytes. Raises UserError, with the
    old file intact, when it cannot."""
    with explained(f"cannot write {path}", "make room there, or name another file"):
        replace_file(path, text.encode("utf-8", "surrogateescape"))


def normalised(result: dict[str, Any]) -> str:
    """By what a run's test was, of its result.json. By running statistics no image depends on
    another, so that it has no protocol, though older versions wrote one."""
    told = f"{result['norm_statistics']} statistics"
    running = result["norm_statistics"] == "running"
    return told if running else f"{told}, {result['protocol']}"


def trained_on(result: dict[str, Any]) -> str:
    """Of a run's result.json; empty where it had its length from the beginning."""
    earlier = result.get("earlier_epochs", [])  # of older versions nobody knows
    return f"trained on after {listed(map(str, earlier))} epochs" if earlier else ""
