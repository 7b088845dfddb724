"""The files of a run folder: atomic checkpoints, the lock, and what belongs to the run.

    config.json     the resolved configuration
    latest.pt       where to continue
    epoch-0012.pt   the epochs best on validation, up to ``Config.ensemble`` of them
    log.jsonl       one row per interval and per validation
    result.json     the final test
    details.json    the same in parts, and the first tasks with pictures
    report.html     all of it as a page, if plotly is installed
    tensorboard/    the same rows, if TensorBoard is installed

A file is written under a temporary name in the same folder, synced, renamed over the old one, and
the folder is synced: at any moment, whatever is killed, each name holds a whole file or none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine.allowed import shown
from engine.config import Config
from engine.errors import UserError, explained, listed
from engine.files import (
    CONFIG,
    DETAILS,
    LATEST,
    LOG,
    REPORT,
    RESULT,
    RUN_FILES,
    is_report,
    make_folder,
    read_json,
    refuse_special,
    replace_file,
)
from engine.runs import locks
from engine.runs.packed import FIELDS
from engine.runs.seen import Seen
from engine.runtime import ranks

# Of what ``save`` writes; raised whenever a field is added there, to Config, State or Params. All
# since 1 are read: what an older file lacks takes its neutral value, a default of its class.
FORMAT = 6
BOARD, LOCK = "tensorboard", ".lock"
Saved = TypeVar("Saved")


@dataclass
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped. Only tensors, numbers, strings,
    lists and dicts, so that ``torch.load(weights_only=True)`` reads the file."""

    config: dict[str, Any]
    data_name: str
    data_identity: str
    state: dict[str, Any]  # packed meta.State; its iteration is the position in every schedule
    epoch: int  # epochs trained and validated
    best: list[list]  # [epoch, validation accuracy], best first
    meters: dict[str, dict[str, float]]  # sums of the unfinished interval and epoch
    rng: Tensor  # torch's generator
    # What --precision auto stands for in the run, by type of device; None in files from before.
    precisions: dict[str, str] | None = None
    fallen: list[int] = field(default_factory=list)  # epochs no longer among the best
    origin: dict[str, Any] | None = None  # of the weights that --init brought
    # How images become what the network sees; None in files from before: as its kind of data.
    preparation: dict[str, Any] | None = None
    own_network: str | None = None  # the class of one that engine.fit was given
    # Of tasks and a loss that engine.fit was given.
    fingerprints: dict[str, list[list[float]]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)  # in epochs, before it was trained on
    seen: Seen | None = None  # classes; None in files from before, and of a network of one's own


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes atomically. Raises UserError, with the old file intact, when it cannot."""
    write_atomic(path, as_bytes({"format": FORMAT} | vars(checkpoint)))


def as_bytes(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()  # torch.save on a full disk raises RuntimeError; a plain write OSError
    torch.save(content, buffer)
    return buffer.getvalue()


def load(path: Path) -> Checkpoint:
    """Reads what ``save`` wrote, on the CPU. Raises UserError when missing, damaged or foreign."""
    return understood(path, read(path))


def read(path: Path) -> Any:
    """What torch wrote to a file, if it is of tensors, numbers, texts, lists and dicts. Raises
    UserError when it is missing or damaged."""
    try:
        refuse_special(path)
        with zipfile.ZipFile(path) as archive:  # torch itself does not check the sums
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot read checkpoint {path}: {error.strerror}; {_cure(path)}"
        ) from error
    except Exception as error:  # zipfile, torch and pickle raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged ({reason:.80}); {_cure(path)}") from error


def understood(path: Path, content: Any) -> Checkpoint:
    """The checkpoint that a file holds, whichever version wrote it."""
    if isinstance(content, dict) and "classifier" in content:
        raise UserError(
            f"{path} is a network that engine.adapt adapted to classes: give it to engine.predict, "
            "or name the run that it was made of"
        )
    saved = checked(path, content, Checkpoint, "format", FORMAT, FIELDS)
    return without_paths(path, saved)


def checked(
    path: Path, content: Any, kind: type[Saved], key: str, newest: int, rules: dict
) -> Saved:
    """A file's content as a dataclass: ``key`` holds its format, ``rules`` say what each field
    must be. Raises UserError when it is of a newer version, or not of that kind."""
    found = content.pop(key, None) if isinstance(content, dict) else None
    if type(found) is not int or found < 1:
        raise UserError(f"{path} is no checkpoint of this program; {_cure(path)}")
    if found > newest:
        raise UserError(
            f"{path} has format {found}, this version reads up to {newest}: a newer one made it; "
            "use that one"
        )
    known = fields(kind)
    needed = {f.name for f in known if f.default is f.default_factory is MISSING}
    lost, odd = needed - content.keys(), content.keys() - {f.name for f in known}
    if lost or odd:
        raise UserError(
            f"{path} is no checkpoint of format {found}: it lacks [{listed(sorted(lost))}] and has "
            f"[{listed(sorted(map(str, odd)))}] beside; {_cure(path)}"
        )
    saved = kind(**content)
    for name, (is_right, words) in rules.items():
        if not is_right(value := getattr(saved, name)):
            raise UserError(
                f"{path} is damaged: its {name} is {shown(value)} and not {words}; {_cure(path)}"
            )
    return saved


def without_paths(path: Path, saved: Saved) -> Saved:
    """With its configuration as this version has it, which names no path of any machine."""
    try:
        # no path: it would be one of another machine, and a cache there is written to
        saved.config = Config.from_dict(saved.config).without_paths().to_dict()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return saved


def _cure(path: Path) -> str:
    if path.name != LATEST:
        return "give another checkpoint"
    whole = ", ".join(file.name for file in epoch_files(path.parent))
    return "put a whole copy in its place, or start over with --fresh" + (
        f" (saved epochs that may still be evaluated: {whole})" if whole else ""
    )


def epoch_file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.pt"


def epoch_files(folder: Path) -> list[Path]:
    """All that are there under the very name of ``epoch_file``: others are the user's own."""
    names = os.listdir(folder) if folder.is_dir() else []
    numbers = (re.fullmatch(r"epoch-(\d{4,18})\.pt", name) for name in names)
    epochs = sorted({int(number[1]) for number in numbers if number})
    return [path for path in (epoch_file(folder, e) for e in epochs) if os.path.lexists(path)]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """For a block that writes there: its OSError becomes a UserError."""
    cure = (
        "make room there or give a writable --run; checkpoints already saved are whole, the same "
        "command continues"
    )
    try:
        with explained(f"cannot write run folder {folder}", cure):
            yield
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not folder.exists():
            raise UserError(
                f"run folder {folder} is gone, and what was saved in it with it: put it back if it "
                "was moved, and the same command continues; else it starts over"
            ) from error
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file of a run folder whole.

    Raises UserError, with the old file intact, when the folder cannot be written.
    """
    with writing(path.parent):
        replace_file(path, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


@contextlib.contextmanager
def open_run(folder: Path, fresh: bool) -> Iterator[None]:
    """Makes and locks the run folder, removes leftovers (``fresh``: every file of the run). Of
    several ranks the first one does.

    Raises UserError when the folder cannot be written, something else lies under the name of a
    file of the run, or another process trains into it.
    """
    with contextlib.ExitStack() as stack:
        ranks.current().by_first(lambda: stack.callback(os.close, _made(folder, fresh)), told=False)
        yield


def _made(folder: Path, fresh: bool) -> int:
    """The folder's lock."""
    make_folder(folder, "run folder", "--run")
    with contextlib.ExitStack() as stack, writing(folder):
        lock = _open_lock(folder / LOCK)
        stack.callback(os.close, lock)
        if not locks.lock(lock):
            raise UserError(
                f"another process is training into {folder}; wait for it or give another --run"
            )
        for name in RUN_FILES:
            _refuse_unwritable(folder / name)
        _clean(folder, fresh)
        stack.pop_all()
        return lock


def _open_lock(path: Path) -> int:
    """A descriptor of a file that is made if nothing is there, and never written."""
    if path.is_symlink():
        raise UserError(f"{path} is a link: a run folder has its own lock; remove the link")
    if path.exists():
        refuse_special(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _refuse_unwritable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing: remove it, or give another --run")
    refuse_special(path)


def files(folder: Path) -> list[str]:
    """The names there that a run gives its files, latest.pt first and config.json last."""
    epochs = [path.name for path in epoch_files(folder)]
    names = LATEST, *epochs, LOG, RESULT, DETAILS, CONFIG
    return [name for name in names if os.path.lexists(folder / name)]


def _clean(folder: Path, fresh: bool) -> None:
    """Removes what this program wrote there, by its names: all else is the user's."""
    names = "|".join(map(re.escape, (*RUN_FILES, REPORT))) + r"|epoch-\d{4,18}\.pt"
    for name in os.listdir(folder):
        if re.fullmatch(rf"\.({names})(\.[0-9a-f]{{16}})?\.tmp", name):
            (folder / name).unlink()
    if not fresh:
        return
    found = files(folder)
    if found and LATEST not in found and not _is_config(folder / CONFIG):
        raise UserError(
            f"{folder} holds {listed(found)} of no run, for it has no {LATEST} and no {CONFIG} of "
            "one: --fresh would remove what is not its own; move it away, or give another --run"
        )
    for name in found:  # latest.pt first: without it there is no run
        (folder / name).unlink()
    _remove_report(folder)
    board = folder / BOARD
    if board.is_dir() and not board.is_symlink():
        for events in board.glob("events.out.tfevents.*"):
            events.unlink()
        with contextlib.suppress(OSError):  # something else is there, too
            board.rmdir()


def remove_found(folder: Path) -> None:
    """What was found of a run at its end, before it is trained on: the test and the report."""
    with writing(folder):
        for name in (RESULT, DETAILS):
            (folder / name).unlink(missing_ok=True)
        _remove_report(folder)


def _remove_report(folder: Path) -> None:
    """Unless it is somebody else's."""
    if is_report(folder / REPORT):
        (folder / REPORT).unlink()


def _is_config(path: Path) -> bool:
    try:
        found = read_json(path)
        return isinstance(found, dict) and bool(Config.from_dict(found))
    except (OSError, ValueError, UserError):
        return False
