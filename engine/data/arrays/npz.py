"""Arrays of numbers or text in numpy's npz archives, the memory they take bounded beforehand."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from engine.data.arrays.machine import MOST_LETTERS
from engine.data.arrays.pickles import TYPE, is_text, require_memory
from engine.errors import UserError, listed

_SMALL = 1 << 24  # bytes of an array that may be as compressible as it likes
_MOST_RATIO = 200  # drawings in black and white reach about 60
_HEADER = re.compile(  # as all writers write it; Python 2 has an L after numbers
    r"\{'descr': '(?P<order>[<>|=])(?P<type>\w+)', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,18}L?, ?)*(?:\d{1,18}L?)?)\),? ?\}\s*"
)
_LONGEST_HEADER = 10_000
_CHUNK = 1 << 24
_BROKEN = (  # what zipfile raises on archives that are not what they claim
    ValueError,
    EOFError,
    IndexError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


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
    require_memory(sum(m.file_size for m in members), where)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    with archive.open(member) as file:
        start = file.read(8)
        length = {1: "<H", 2: "<I", 3: "<I"}.get(start[6]) if start[:6] == b"\x93NUMPY" else None
        if length is None:
            raise UserError(f"{where} is no array; save it again")
        (length,) = struct.unpack(length, file.read(struct.calcsize(length)))
        header = file.read(min(length, _LONGEST_HEADER)).decode("latin-1")
        found = _HEADER.fullmatch(header)
        if not found or not TYPE.fullmatch(found["type"]):
            raise UserError(
                f"{where} was not read, as it is no array of numbers or text: "
                f"{header.strip()[:200]}; save it as one"
            )
        dtype = np.dtype(found["order"] + found["type"])
        shape = [int(n) for n in found["shape"].replace("L", "").replace(",", " ").split()]
        left = member.file_size - file.tell()
        if math.prod(shape) * dtype.itemsize != left or not all(n <= left for n in shape):
            raise UserError(f"{where} claims shape {shape} of {dtype}, but has {left:,} bytes")
        flat = np.empty(left, np.uint8)
        for at in range(0, left, _CHUNK):
            chunk = flat[at : at + _CHUNK]
            if len(data := file.read(len(chunk))) < len(chunk):
                raise EOFError("it ends too soon")
            chunk[:] = np.frombuffer(data, np.uint8)
        file.read()  # at the end the checksum is compared
    array = flat.view(dtype)
    if not is_text(array):
        raise UserError(f"{where} has letters that are not Unicode; get it again")
    return array.reshape(shape, order="F" if found["fortran"] == "True" else "C")
