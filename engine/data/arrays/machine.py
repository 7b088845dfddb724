"""The machine that pickles are written for, able to build values and to call what it is given.

Numbers, strings, lists and dicts are all it knows; tuples and sets become lists, so that nothing
but the keys of dicts is ever hashed. Memory is bounded by the size of the file, whatever the file
announces. (Python's own unpickler takes gigabytes for one large memo index, and what it returns
may be shared so often that a walk over it never ends.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, BinaryIO

import numpy as np

MOST_LETTERS = 1000  # of a name
_MOST_VALUES = 1 << 23  # lists, dicts and memo entries: tiered-ImageNet has 7e6, a GB holds 9e6
_MOST_KEYS = 1 << 17  # of one dict: integers can be chosen so that their hashes collide
_LARGE = 1 << 16  # bytes; longer strings count against the size of the file before they are read


class Refused(Exception):
    """Completes "the file asks for …"."""


class StandIn:
    """Of an object that a file first names and then gives a state."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """What becomes of it in the end."""
        raise NotImplementedError

    def build(self, machine: Machine, state: Any) -> None:
        raise NotImplementedError


class Machine:
    """``names`` are the functions a file may call, by module and name: each is given the machine
    and the arguments.
    """

    def __init__(self, file: BinaryIO, size: int, names: Mapping[tuple[str, str], Callable]):
        self.file, self.size, self.names = file, size, names
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.values = min(size // 2 + 65536, _MOST_VALUES)  # that may still be made
        self.large = size  # bytes that may still be read as long strings
        self.encoded = 0  # bytes made of strings

    def take(self, count: int) -> bytes:
        if count > _LARGE:
            self.large -= count
        if count < 0 or self.large < 0:
            raise ValueError(f"it announces {count:,} bytes and has not as many")
        data = self.file.read(count)
        if len(data) < count:
            raise ValueError("it ends too soon")
        return data

    def line(self, most: int = -1) -> bytes:
        data = self.file.readline(most)
        if not data.endswith(b"\n"):
            raise ValueError("a line without an end")
        return data[:-1]

    def spend(self, count: int = 1) -> None:
        self.values -= count
        if self.values < 0:
            raise Refused("more values than an honest file of its size holds")

    def mark(self) -> None:
        self.spend()
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        self.values += 1  # of the mark
        return items

    def discard(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def last(self, count: int) -> list:
        if len(self.stack) < count:
            raise IndexError("too few values")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def made(self, value: list | dict) -> None:
        self.spend()
        self.stack.append(value)

    def made_dict(self, items: list) -> None:
        self.made({})
        self.set_last(items)

    def recall(self, place: int) -> Any:
        if place not in self.memo:
            raise ValueError(f"no memo entry {place}")
        return self.memo[place]

    def remember(self, place: int) -> None:
        self.spend()
        self.memo[place] = self.stack[-1]

    def named(self, module: Any, name: Any) -> None:
        plain = type(module) is type(name) is str
        if not plain or (module, name) not in self.names:
            raise Refused(shown(f"{module}.{name}" if plain else "a name that is no text"))
        self.stack.append(self.names[module, name])

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, FunctionType) or not isinstance(arguments, list):
            raise Refused(f"a call of a {type(function).__name__}")
        self.spend()
        self.stack.append(function(self, *arguments))

    def build(self, state: Any) -> None:
        if not isinstance(self.stack[-1], StandIn):
            raise Refused(f"a change of a {type(self.stack[-1]).__name__}")
        self.stack[-1].build(self, state)

    def extend(self, items: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise Refused(f"items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_last(self, items: list) -> None:
        self.set_items(self.stack[-1], items)

    def set_items(self, target: Any, items: list) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused(f"odd entries of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            key = text(key) if isinstance(key, bytes) else key
            if type(key) not in (str, int):
                raise Refused(f"a dict with a {type(key).__name__} as a key")
            if isinstance(key, str) and len(key) > MOST_LETTERS:
                raise Refused(f"a dict with a key of {len(key):,} letters")
            if key in target:
                raise Refused(f"a dict with two entries {shown(key)}")
            target[key] = value
            if len(target) > _MOST_KEYS:
                raise Refused(f"a dict of more than {_MOST_KEYS:,} entries")


def finished(root: Any, most: int) -> Any:
    """``root`` with the values of the stand-ins in their places.

    Raises Refused when a list holds itself, or when all lists, dicts and arrays together hold more
    than ``most`` values and bytes, those that are shared counted as often as they occur.
    """
    held: dict[int, int] = {}  # id of a list or dict → what it holds
    top = [root]
    path = [(top, iter([0]))]
    counts = [0]
    inside = {id(top)}
    while path:
        holder, places = path[-1]
        for place in places:
            value = holder[place]
            if isinstance(value, StandIn):
                holder[place] = value = value.value
            counts[-1] += 1
            if isinstance(value, list | dict):
                if id(value) in inside:
                    raise Refused("a list within itself")
                if id(value) not in held:
                    path.append((value, iter(range(len(value)) if type(value) is list else value)))
                    counts.append(0)
                    inside.add(id(value))
                    break
                counts[-1] += held[id(value)]
            elif isinstance(value, np.ndarray):
                counts[-1] += value.nbytes
            elif isinstance(value, range):
                counts[-1] += len(value)
            elif value is not None and type(value) not in (bool, int, float, str, bytes):
                raise Refused(f"a {type(value).__name__} as a value")
        else:
            path.pop()
            inside.remove(id(holder))
            held[id(holder)] = count = counts.pop()
            if counts:
                counts[-1] += count
        if counts and counts[-1] > most:
            raise Refused("more values, as often as it repeats them, than fit into its size")
    return top[0]


def text(data: bytes) -> str:
    """A name of Python 2, which may be of any encoding."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def shown(value: Any) -> str:
    """Short, and without a walk over what may be endless."""
    if isinstance(value, list):
        short = len(value) < 9 and all(type(n) is int for n in value)
        return str(value) if short else f"({len(value):,} values)"
    if isinstance(value, str | bytes):
        value = value[:100]
    return repr(value)[:100]
