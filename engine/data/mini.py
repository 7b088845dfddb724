"""What is mini-ImageNet: the classes that Ravi & Larochelle (2017) chose and divided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from engine.data.recognise import FORMS

WAYS = f"run `python -m engine.data fetch mini`, or name a place that has it with --data ({FORMS})"
IMAGES = 600  # per class
SIDE = 84
# Of their wnids by split, as `digest` gives it.
_CLASSES = {
    "train": "0f107a65ea80bf1e1d1e5e18d368f0d0",
    "val": "489f8af43b2560094c8766f36213842d",
    "test": "0db5287e659efd3391c100c88f40df0f",
}


def digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:32]


def is_mini(classes: dict[str, dict[str, int]]) -> bool:
    """By the names of the classes of each split, and 600 images of each: split → class → images."""
    counts = {count for names in classes.values() for count in names.values()}
    return counts == {IMAGES} and {s: digest(names) for s, names in classes.items()} == _CLASSES
