"""The files of a run folder: atomic checkpoints, the lock, and what belongs to the run.

    config.json     the resolved configuration
    latest.pt       where to continue
    epoch-0012.pt   the epochs best on validation, up to ``Config.ensemble`` of them
    log.jsonl       one row per interval and per validation
    result.json     the final test
    tensorboard/    the same rows, if TensorBoard is installed

A file is written under a temporary name in the same folder, synced, renamed over the old one, and
the folder is synced: at any moment, whatever is killed, each name holds a whole file or none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import locks
from engine.errors import UserError, explained

FORMAT = 1
LATEST, CONFIG, LOG, RESULT, BOARD = (
    "latest.pt",
    "config.json",
    "log.jsonl",
    "result.json",
    "tensorboard",
)


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


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes atomically. Raises UserError, with the old file intact, when it cannot."""
    buffer = io.BytesIO()  # torch.save on a full disk raises RuntimeError; a plain write OSError
    torch.save({"format": FORMAT} | vars(checkpoint), buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Reads what ``save`` wrote, on the CPU. Raises UserError when missing, damaged or foreign."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not check the sums
            if broken := archive.testzip():
                raise ValueError(f"wrong checksum of {broken}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"cannot read checkpoint {path}: {error.strerror}; {_cure(path)}"
        ) from error
    except Exception as error:  # zipfile, torch and pickle raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged ({reason:.80}); {_cure(path)}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    known = Checkpoint.__dataclass_fields__.keys()
    if found != FORMAT or content.keys() | {"precisions"} != known:
        raise UserError(
            f"{path} is no checkpoint of format {FORMAT} (it says {found}); {_cure(path)}"
        )
    return Checkpoint(**content)


def _cure(path: Path) -> str:
    if path.name != LATEST:
        return "give another checkpoint"
    whole = ", ".join(sorted(p.name for p in path.parent.glob("epoch-*.pt")))
    return "put a whole copy in its place, or start over with --fresh" + (
        f" (saved epochs that may still be evaluated: {whole})" if whole else ""
    )


def epoch_file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.pt"


def pack(value: Any) -> Any:
    """Nested named tuples, tuples, tensors and numbers as dicts, lists and CPU tensors."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # clone: a view would drag its whole storage along
    if hasattr(value, "_asdict"):
        return {name: pack(entry) for name, entry in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [pack(entry) for entry in value]
    return value


def unpack(like: Any, packed: Any, name: str = "state") -> Any:
    """``packed`` in the structure, device and dtype of ``like``.

    Raises UserError when a name or a shape differs.
    """
    if isinstance(like, Tensor):
        if not isinstance(packed, Tensor) or packed.shape != like.shape:
            shape = list(packed.shape) if isinstance(packed, Tensor) else type(packed).__name__
            raise UserError(
                f"{name} of the checkpoint has shape {shape}, the network of this configuration "
                f"needs {list(like.shape)}; give the checkpoint's own configuration"
            )
        return packed.to(device=like.device, dtype=like.dtype)
    if hasattr(like, "_fields"):
        if not isinstance(packed, dict) or set(packed) != set(like._fields):
            raise UserError(f"{name} of the checkpoint is not that of this version; train again")
        parts = ((f, unpack(getattr(like, f), packed[f], f"{name}.{f}")) for f in like._fields)
        return type(like)(**dict(parts))
    if isinstance(like, (tuple, list)):
        return type(like)(unpack(a, b, name) for a, b in zip(like, packed, strict=True))
    return packed


def writing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """For a block that writes there: its OSError becomes a UserError."""
    return explained(
        f"cannot write run folder {folder}",
        "make room there or give a writable --run; checkpoints already saved are whole, the same "
        "command continues",
    )


def write_atomic(path: Path, content: bytes) -> None:
    """Temporary file, fsync, rename, fsync of the folder.

    Raises UserError, with the old file intact, when the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path.parent):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        locks.sync_folder(path.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())


@contextlib.contextmanager
def open_run(folder: Path, fresh: bool) -> Iterator[None]:
    """Makes and locks the run folder, removes leftovers (``fresh``: every file of the run).

    Raises UserError when the folder cannot be written or another process trains into it.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "w"))
            if not locks.lock(lock.fileno()):
                raise UserError(
                    f"another process is training into {folder}; wait for it or give another --run"
                )
            _clean(folder, fresh)
        yield


def _clean(folder: Path, fresh: bool) -> None:
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    if not fresh:
        return
    for name in (LATEST, CONFIG, LOG, RESULT):  # latest first: without it there is no run
        (folder / name).unlink(missing_ok=True)
    for old in folder.glob("epoch-*.pt"):
        old.unlink()
    shutil.rmtree(folder / BOARD, ignore_errors=True)
