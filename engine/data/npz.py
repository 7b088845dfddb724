"""Arrays of numbers or text in numpy's npz archives, the memory they take bounded beforehand."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from engine.data.opcodes import MOST_LETTERS
from engine.data.pickles import is_text
from engine.errors import UserError, listed

_SMALL = 1 << 24  # bytes of an array that may be as compressible as it likes
_MOST_RATIO = 200  # drawings in black and white reach about 60
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_BROKEN = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def read_npz(file: BinaryIO, where: str) -> dict[str, np.ndarray]:
    """Raises UserError when an array holds objects, is cut short, is far larger than the archive
    or than memory, or when this is no npz archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            if (longest := max(map(len, members), default=0)) > MOST_LETTERS:
                raise UserError(
                    f"{where} has an array whose name has {longest:,} letters; save it again"
                )
            if len(members) < len(archive.infolist()):
                raise UserError(f"{where} has two arrays of one name; get it again")
            _require_sane(list(members.values()), where)
            return {name: _array(archive, m, f"{where}:{name}") for name, m in members.items()}
    except MemoryError:
        raise UserError(f"{where} does not fit into memory; use a machine with more") from None
    except OSError as error:
        raise UserError(f"cannot read {where}: {error.strerror or error}; check it") from None
    except _BROKEN as error:
        reason = str(error)[:200]  # zipfile quotes whole files
        raise UserError(f"{where} is truncated or no npz ({reason}); get it again") from None


def _require_sane(members: list[zipfile.ZipInfo], where: str) -> None:
    bombs = [
        f"{m.filename} ({m.file_size:,} bytes in {m.compress_size:,})"
        for m in members
        if m.file_size > max(_SMALL, _MOST_RATIO * m.compress_size)
    ]
    if bombs:
        raise UserError(
            f"{where} is compressed more than {_MOST_RATIO} times, as no images are: "
            f"{listed(bombs)}; get it from a source you trust"
        )
    needed, free = sum(m.file_size for m in members), free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{where} holds {needed:,} bytes of arrays, but {free:,} bytes of memory are free; "
            "use a machine with more"
        )


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise UserError(f"{where} is of npy version {version}, not 1 or 2; save it again")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.kind not in "biufSU":
            raise UserError(
                f"{where} is an array of {dtype}, which was not read: only numbers and text are; "
                "save it as such"
            )
        # numpy takes the memory that a header claims before it reads
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != (
            member.file_size - file.tell()
        ):
            raise UserError(
                f"{where} claims shape {list(shape)} of {dtype}, but has "
                f"{member.file_size - file.tell():,} bytes; get it again"
            )
    with archive.open(member) as file:
        array = npy.read_array(file, allow_pickle=False)
    if not is_text(array):
        raise UserError(f"{where} has letters that are not Unicode; get it again")
    return array


def free_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] * 1024 if sizes else None
