"""The opcodes of pickles, of all protocols: what each does to the machine, or why it is refused."""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from typing import Any

from engine.data.arrays.machine import Machine, Refused, finished

_MOST_STEPS = 1 << 26  # half a minute; tiered-ImageNet, as 448,695 PNGs, takes about 1e7
_ESCAPES = re.compile(rb"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2})")  # by which Python 2 wrote strings
_FOREIGN = {
    **dict.fromkeys((b"P", b"Q"), "a persistent object"),
    **dict.fromkeys((b"i", b"o", b"\x81", b"\x92"), "an object of a class"),
    **dict.fromkeys((b"\x82", b"\x83", b"\x84"), "an extension of copyreg"),
    **dict.fromkeys((b"\x97", b"\x98"), "a buffer outside the file"),
}


def run(machine: Machine) -> Any:
    """The value that the machine's file holds.

    Raises Refused, or ValueError, IndexError or TypeError when it is no pickle.
    """
    read, steps = machine.file.read, _STEPS.get
    for _ in range(_MOST_STEPS):
        code = read(1)
        if code == b".":
            return finished(machine.stack.pop(), 4 * machine.size + 65536)
        step = steps(code)
        if step is None:
            if code in _FOREIGN:
                raise Refused(_FOREIGN[code])
            raise ValueError(f"no opcode {code!r}" if code else "it ends too soon")
        step(machine)
    raise Refused(f"more than {_MOST_STEPS:,} steps")


def _fixed(form: str) -> Callable:
    """Reads a number of a fixed width."""
    one = struct.Struct(form)
    return lambda machine: one.unpack(machine.take(one.size))[0]


_BYTE, _LENGTH, _SIGNED, _LONG_LENGTH = _fixed("<B"), _fixed("<I"), _fixed("<i"), _fixed("<Q")


def _sized(length: Callable, convert: Callable = bytes) -> Callable:
    """Reads a number of bytes and then as many."""
    return lambda machine: convert(machine.take(length(machine)))


def _long(length: Callable) -> Callable:
    def read(machine: Machine) -> int:
        if not 0 <= (count := length(machine)) <= 32:
            raise ValueError(f"a whole number of {count:,} bytes")
        return int.from_bytes(machine.take(count), "little", signed=True)

    return read


def _whole(machine: Machine) -> int | bool:
    digits = machine.line(80).rstrip(b"L")
    return digits == b"01" if digits in (b"00", b"01") else int(digits)


def _place(machine: Machine) -> int:
    return int(machine.line(80))


def _quoted(machine: Machine) -> bytes:
    data = machine.line().strip()
    if len(data) < 2 or data[:1] != data[-1:] or data[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    if b"\\" in _ESCAPES.sub(b"", data[1:-1]):
        raise ValueError("an unknown escape in a string")
    return codecs.escape_decode(data[1:-1])[0]


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_READ = {  # what is put on the stack
    b"N": lambda machine: None,
    b"\x88": lambda machine: True,
    b"\x89": lambda machine: False,
    b"I": _whole,
    b"L": _whole,
    b"J": _SIGNED,
    b"K": _BYTE,
    b"M": _fixed("<H"),
    b"\x8a": _long(_BYTE),
    b"\x8b": _long(_SIGNED),
    b"F": lambda machine: float(machine.line(80)),
    b"G": _fixed(">d"),
    b"S": _quoted,
    b"T": _sized(_SIGNED),
    b"U": _sized(_BYTE),
    b"B": _sized(_LENGTH),
    b"C": _sized(_BYTE),
    b"\x8e": _sized(_LONG_LENGTH),
    b"\x96": _sized(_LONG_LENGTH),
    b"V": lambda machine: machine.line().decode("raw-unicode-escape"),
    b"X": _sized(_LENGTH, _utf8),
    b"\x8c": _sized(_BYTE, _utf8),
    b"\x8d": _sized(_LONG_LENGTH, _utf8),
    b"2": lambda machine: machine.stack[-1],
    b"g": lambda machine: machine.recall(_place(machine)),
    b"h": lambda machine: machine.recall(_BYTE(machine)),
    b"j": lambda machine: machine.recall(_LENGTH(machine)),
}


def _pushed(read: Callable) -> Callable:
    return lambda machine: machine.stack.append(read(machine))


_STEPS: dict[bytes, Callable] = {code: _pushed(read) for code, read in _READ.items()} | {
    b"\x80": lambda machine: machine.take(1),  # the protocol
    b"\x95": lambda machine: machine.take(8),  # the length of a frame, which nothing needs
    b"(": Machine.mark,
    b"0": Machine.discard,
    b"1": Machine.since_mark,
    b"]": lambda machine: machine.made([]),
    b")": lambda machine: machine.made([]),
    b"}": lambda machine: machine.made({}),
    b"\x8f": lambda machine: machine.made([]),
    b"l": lambda machine: machine.made(machine.since_mark()),
    b"t": lambda machine: machine.made(machine.since_mark()),
    b"\x91": lambda machine: machine.made(machine.since_mark()),
    b"d": lambda machine: machine.made_dict(machine.since_mark()),
    b"\x85": lambda machine: machine.made(machine.last(1)),
    b"\x86": lambda machine: machine.made(machine.last(2)),
    b"\x87": lambda machine: machine.made(machine.last(3)),
    b"a": lambda machine: machine.extend(machine.last(1)),
    b"e": lambda machine: machine.extend(machine.since_mark()),
    b"\x90": lambda machine: machine.extend(machine.since_mark()),
    b"s": lambda machine: machine.set_last(machine.last(2)),
    b"u": lambda machine: machine.set_last(machine.since_mark()),
    b"p": lambda machine: machine.remember(_place(machine)),
    b"q": lambda machine: machine.remember(_BYTE(machine)),
    b"r": lambda machine: machine.remember(_LENGTH(machine)),
    b"\x94": lambda machine: machine.remember(len(machine.memo)),
    b"c": lambda machine: machine.named(machine.line().decode(), machine.line().decode()),
    b"\x93": lambda machine: machine.named(*machine.last(2)),
    b"R": lambda machine: machine.call(*machine.last(2)),
    b"b": lambda machine: machine.build(machine.stack.pop()),
}
