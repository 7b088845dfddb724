"""Pickles of arrays, read without running anything that is in them.

Only four names may be asked for, and none of them gets the real thing: each has a stand-in that
can build an array of numbers and nothing else. The stand-ins have no attributes to be set.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError

_NUMBERS = {f"{kind}{width}" for kind in "iu" for width in (1, 2, 4, 8)} | {"b1", "f4", "f8"}


class _Refused(Exception):
    pass


class _DType:
    """Stands in for numpy.dtype."""

    __slots__ = ("name", "order")

    def __init__(self, name: str | bytes, *_: Any):
        self.name = name.decode() if isinstance(name, bytes) else name
        self.order = "="
        if self.name not in _NUMBERS:
            raise _Refused(f"an array of type {self.name!r}")

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.order = order.decode() if isinstance(order, bytes) else order
        if self.order not in ("<", ">", "|", "="):
            raise _Refused(f"byte order {self.order!r}")


class _Array:
    """Stands in for numpy.ndarray; ``value`` is the array once the state has been read."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise _Refused("an array that is not numbers")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _Refused(f"an array of shape {shape}")
        numbers = np.dtype(dtype.name).newbyteorder(dtype.order)
        if math.prod(shape) * numbers.itemsize != len(data):
            raise _Refused(f"an array of shape {shape} from {len(data):,} bytes")
        self.value = np.frombuffer(data, numbers).reshape(shape, order="F" if fortran else "C")


class _Function:
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _Refused("a changed function")


class _Reconstruct(_Function):
    """Stands in for numpy's _reconstruct, which makes the empty array that a state then fills."""

    __slots__ = ()

    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _Encode(_Function):
    """Stands in for _codecs.encode, by which Python 3 writes bytes into old protocols."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str | bytes) -> bytes:
        if encoding not in ("latin1", "latin-1", b"latin1"):
            raise _Refused(f"encoding {encoding!r}")
        return text.encode("latin-1")


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("_codecs", "encode"): _Encode(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(repr(f"{module}.{name}"[:100])) from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent object")


def read_pickle(path: Path) -> Any:
    """Dicts, lists, strings, numbers and numpy arrays of numbers (read-only); byte strings as
    text.

    Raises UserError when the file asks for anything else, is truncated or is no pickle.
    """
    try:
        with open(path, "rb") as file:
            return _plain(_Unpickler(file, encoding="bytes").load())
    except _Refused as error:
        raise UserError(
            f"{path} was not read, and nothing in it was run: it asks for {error}, and a data file "
            "needs only arrays of numbers; get it from a source you trust"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check it") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory; use a machine with more") from None
    except Exception as error:  # a broken pickle can make the unpickler raise almost anything
        raise UserError(f"{path} is truncated or no pickle ({error}); get it again") from None


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if value is None or isinstance(value, str | int | float):
        return value
    raise _Refused(f"a {type(value).__name__}")
