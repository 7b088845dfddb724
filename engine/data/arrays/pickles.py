"""Pickles of arrays, read without running anything that is in them.

A file may name only what is in one table here, and gets none of the real things: each has a
stand-in that makes an array of numbers, a list, a dict or a range, and nothing else.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.data.arrays.machine import Machine, Refused, StandIn, shown, text
from engine.data.arrays.opcodes import run
from engine.errors import UserError

TYPE = re.compile(r"[iu][1248]|f[248]|b1|[SU][1-9]\d{0,3}")
_MOST_AXES = 32


class _DType(StandIn):
    """Of numpy.dtype; itself no value."""

    __slots__ = ("type",)

    def __init__(self, name: Any):
        name = text(name) if isinstance(name, bytes) else name
        if not isinstance(name, str) or not TYPE.fullmatch(name):
            raise Refused(f"an array of type {shown(name)}")
        self.type = np.dtype(name)

    def build(self, machine: Machine, state: Any) -> None:
        order = state[1] if isinstance(state, list) and len(state) > 1 else None
        order = text(order) if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise Refused(f"byte order {shown(order)}")
        self.type = self.type.newbyteorder(order)

    @property
    def value(self) -> Any:
        raise Refused("a dtype as a value")


class _Array(StandIn):
    """Of numpy.ndarray."""

    __slots__ = ("array",)

    def __init__(self):
        self.array = None

    @property
    def value(self) -> np.ndarray:
        if self.array is None:
            raise Refused("an array without numbers")
        return self.array

    def build(self, machine: Machine, state: Any) -> None:
        if not isinstance(state, list) or len(state) != 5:
            raise Refused("an array of an unknown form")
        _, shape, dtype, fortran, data = state
        self.array = _array(machine, data, dtype, shape, "F" if fortran is True else "C")


def _array(machine: Machine, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Read-only; no bytes are copied."""
    if not isinstance(dtype, _DType) or not isinstance(data, bytes):
        raise Refused("an array that is not numbers")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise Refused(f"an array of shape {shown(shape)}")
    if not all(type(n) is int and 0 <= n <= machine.size for n in shape):
        raise Refused(f"an array of shape {shown(shape)}")
    if math.prod(shape) * dtype.type.itemsize != len(data):
        raise Refused(f"an array of shape {shown(shape)} from {len(data):,} bytes")
    flat = np.frombuffer(data, dtype.type) if data else np.empty(0, dtype.type)
    if not is_text(flat):
        raise Refused("letters that are not Unicode")
    return flat.reshape(shape, order=order)


def is_text(array: np.ndarray) -> bool:
    """Whether every letter is Unicode; numpy raises SystemError on others. True of numbers."""
    if array.dtype.kind != "U" or not array.size:
        return True
    letters = np.dtype("u4").newbyteorder(array.dtype.byteorder)
    return bool(np.ascontiguousarray(array).reshape(-1).view(letters).max() <= sys.maxunicode)


# The stand-ins of functions: each is given the machine and the arguments in the file.


def _reconstruct(machine: Machine, *_: Any) -> _Array:
    return _Array()


def _frombuffer(
    machine: Machine,
    data: Any,
    dtype: Any,
    shape: Any,
    order: Any,
    axes: Any = None,
) -> np.ndarray:
    array = _array(machine, data, dtype, shape, "F" if order == "F" else "C")
    if axes is None:
        return array
    if not isinstance(axes, list) or not all(type(n) is int for n in axes):
        raise Refused("axes that are no whole numbers")
    return array.transpose(axes)


def _scalar(machine: Machine, dtype: Any, data: Any) -> Any:
    return _array(machine, data, dtype, [], "C").item()


def _dtype(machine: Machine, name: Any, *_: Any) -> _DType:
    return _DType(name)


def _encode(machine: Machine, characters: Any, encoding: Any) -> bytes:
    """As Python 3 writes bytes into old protocols: every byte from a character in the file."""
    if encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
        raise Refused(f"encoding {shown(encoding)}")
    if not isinstance(characters, str):
        raise Refused(f"an encoded {type(characters).__name__}")
    machine.encoded += len(characters)
    if machine.encoded > machine.size:
        raise Refused("more encoded bytes than the file has")
    return characters.encode("latin-1")


def _bytes(machine: Machine, data: Any = b"", encoding: Any = None) -> bytes:
    return data if isinstance(data, bytes) else _encode(machine, data, encoding)


def _list(machine: Machine, items: Any = None) -> list:
    if items is not None and not isinstance(items, list):
        raise Refused(f"a list of a {type(items).__name__}")
    return [] if items is None else items


def _dict(machine: Machine, pairs: Any = None) -> dict:
    """Of dict, and of OrderedDict, which Python 2 wrote with its pairs."""
    pairs, made = _list(machine, pairs), {}
    machine.spend(len(pairs))
    for pair in pairs:
        machine.set_items(made, pair if isinstance(pair, list) and len(pair) == 2 else [pair])
    return made


def _defaultdict(machine: Machine, *_: Any) -> dict:
    return _dict(machine)


def _range(machine: Machine, *bounds: Any) -> range:
    if not all(type(n) is int and abs(n) <= machine.size for n in bounds):
        raise Refused(f"a range of {shown(list(bounds))}, which is longer than the file")
    return range(*bounds)


def _uncalled(machine: Machine, *_: Any) -> None:
    raise Refused("a call of a type")


_NAMES: dict[tuple[str, str], Callable] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _dict,
    ("collections", "defaultdict"): _defaultdict,
    ("numpy", "ndarray"): _uncalled,
    ("numpy", "dtype"): _dtype,
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _NAMES[f"{_core}.multiarray", "scalar"] = _scalar
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    _NAMES |= {(_builtins, name): _list for name in ("list", "tuple", "set", "frozenset")}
    _NAMES |= {(_builtins, name): _bytes for name in ("bytes", "bytearray")}
    _NAMES |= {(_builtins, name): _range for name in ("range", "xrange")}
    _NAMES |= {(_builtins, name): _uncalled for name in ("bool", "float", "int", "long", "str")}
    _NAMES[_builtins, "dict"] = _dict


def read_pickle(file: BinaryIO, size: int, where: str) -> Any:
    """Dicts, lists (also of tuples and sets), ranges, strings, bytes, numbers and numpy arrays of
    numbers or text (read-only). Keys of dicts are text or whole numbers.

    ``size`` is the file's, in bytes, and bounds what is read. Raises UserError when the file asks
    for anything else, is truncated or is no pickle.
    """
    require_memory(size, where)
    try:
        buffered = io.BufferedReader(file, 1 << 16)
        try:
            return run(Machine(buffered, size, _NAMES))
        finally:
            buffered.detach()  # or it would close the file
    except Refused as error:
        raise UserError(
            f"{where} was not read, and nothing in it was run: it asks for {error}, and a data "
            "file needs only arrays of numbers; get it from a source you trust"
        ) from None
    except MemoryError:
        raise UserError(f"{where} does not fit into memory; use a machine with more") from None
    except OSError as error:
        raise UserError(f"cannot read {where}: {error.strerror or error}; check it") from None
    except (ValueError, IndexError, TypeError) as error:
        reason = str(error)[:200]
        raise UserError(f"{where} is truncated or no pickle ({reason}); get it again") from None


def require_memory(needed: int, where: str) -> None:
    """Before the memory is taken, since a system that has none left ends the process."""
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{where} needs {needed:,} bytes of memory, but {free:,} are free; use a machine with "
            "more"
        )


def free_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] * 1024 if sizes else None
