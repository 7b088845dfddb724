"""What a setting may be: its type, its choices or range, and how a path is refused."""

from __future__ import annotations

import math
import re
import reprlib
from pathlib import Path
from typing import Any

from engine.errors import UserError, flag, nearest

PATH = "a path"
RATIO = "three shares, as 64/16/20"
WIDTHS = "four whole numbers from 1 to 9999, as 64,160,320,640"
# What a number may be: the words for the message and the test itself.
RANGES = {
    "in [1, 16]": lambda v: 1 <= v <= 16,
    ">= 0": lambda v: v >= 0,
    ">= 1": lambda v: v >= 1,
    ">= 2": lambda v: v >= 2,
    "> 0": lambda v: v > 0,
    "in [0, 1024]": lambda v: 0 <= v <= 1024,
    "in [0, 1)": lambda v: 0 <= v < 1,
    "in (0, 1]": lambda v: 0 < v <= 1,
}
_LARGEST = {int: 2**63 - 1, float: 1e30}  # what torch takes as a number, with room to compute
# Above what any machine holds, and so small that the product of all is a number of bytes.
_SIZES = dict.fromkeys(
    (
        "ways train_ways shots train_shots targets eval_targets tasks filters steps eval_steps "
        "inner_batch eval_batch cg_steps context"
    ).split(),
    2**16,
)
_SIZES |= {"image_size": 2**13}
_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "str | None": str}


def check(name: str, value: Any, allowed: tuple | str | None, words: str | None = None) -> None:
    """Raises UserError when the field ``name`` may not have the value; ``allowed`` as of _flag,
    ``words``: what the message calls it, if not by its flag."""
    words = flag(name) if words is None else words
    if allowed == PATH:
        check_path(words, value)
        return
    if allowed == RATIO:
        if value is not None and not re.fullmatch(r"[1-9]\d{0,5}(/[1-9]\d{0,5}){2}", value):
            raise UserError(f"{words} is {value!r}: give {RATIO}, each 1 or more")
        return
    if allowed == WIDTHS:
        if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3}){3}", value):
            raise UserError(f"{words} is {value!r}: give {WIDTHS}")
        return
    if isinstance(allowed, tuple) and value not in allowed:
        choices = [*map(str, allowed)]
        near = nearest(str(value), choices)
        raise UserError(f"{words} is {value!r}: {near}choose one of {', '.join(choices)}")
    most = _SIZES.get(name, _LARGEST.get(type(value)))
    if most is not None and value > most:
        raise UserError(f"{words} is {value}: give a number up to {most}")
    if isinstance(allowed, str) and not (math.isfinite(value) and RANGES[allowed](value)):
        raise UserError(f"{words} is {value}: give a number {allowed}")


def check_type(name: str, value: Any, type_name: str) -> None:
    """A file or a library's user may give anything; a whole number is a float, too."""
    wanted = _TYPES[type_name]
    taken = (int, float) if wanted is float else wanted
    if value is None and "None" in type_name:
        return
    if not isinstance(value, taken) or (isinstance(value, bool) and wanted is not bool):
        found = f"{shown(value)}, of type {type(value).__name__}"
        raise UserError(f"{name} is {found}: it takes {type_name}")


def shown(value: Any) -> str:
    """A short form of whatever a file holds."""
    try:
        return f"{reprlib.repr(value):.60}"
    except ValueError:  # a whole number of thousands of digits
        return "out of all bounds"


def check_path(words: str, value: str | Path | None) -> None:
    """Raises UserError when no file can have it; ``words`` say what it is of."""
    text = str(value or "")
    if value == "":  # pathlib would take the working directory
        raise UserError(f"{words} is empty: name a path, or leave it out")
    if "\0" in text:
        raise UserError(f"{words} is {text!r}: no path holds the character of code 0")
    try:
        Path(text).expanduser()
    except RuntimeError as error:
        user = Path(text).parts[0]
        raise UserError(
            f"{words} is {text}: there is no user {user[1:] or 'here'} whose home {user} could be; "
            f"name the folder, or ./{text} for one of that name"
        ) from error
