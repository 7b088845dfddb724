"""Classes that a network has seen: a checkpoint has them as numbers made of their names.

A network that is tested on classes of its training is not tested. Splits of one data set share
none; another division of it, a folder more among its classes, or weights of another run may.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from engine.data import Dataset
from engine.data.layout import normal
from engine.errors import listed, say

Seen = dict[str, list[int]]  # of "train", of "val", and of what the weights of --init have seen


def of(dataset: Dataset, before: Seen | None = None) -> Seen:
    own = {part: _numbers(dataset.banks[part].names) for part in ("train", "val")}
    return own | {"before": sorted({n for numbers in (before or {}).values() for n in numbers})}


def tell(seen: Seen | None, names: Iterable[str], part: str) -> int:
    """How many classes of a part have names of classes that were seen, which is said."""
    known = {n for numbers in (seen or {}).values() for n in numbers}
    names = list(names)
    if again := [name for name in names if known.intersection(_numbers([name]))]:
        say(
            f"{len(again)} of the {len(names)} {part} classes have names of classes that the "
            f"network was trained on or chosen by ({listed(again, 3)}): this is no test of new ones"
        )
    return len(again)


def _numbers(names: Iterable[str]) -> list[int]:
    """But of classes that are mere numbers, which say nothing from one data set to another."""
    return sorted(_number(name) for name in names if not name.isdigit())


def _number(name: str) -> int:
    digest = hashlib.sha256(normal(name).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big")
