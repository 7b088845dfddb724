"""Data sets as pickles and npz archives, of three classes a split."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.data import arrays
from engine.data.bank import Content
from engine.data.preparation import Preparation
from engine.data.tree import FolderTree
from engine.errors import UserError
from tests.samples import SPLITS

SIDE = 12
SEEN = Preparation.of("folder", SIDE, 3)
NAMES = {split: [f"n{s}{c}" for c in range(3)] for s, split in enumerate(SPLITS)}


def found(path: Path, size: int = SIDE, channels: int = 3) -> tuple[dict, Content]:
    """Split → class → images, and the rest."""
    content = arrays.find(FolderTree(path), Preparation.of("folder", size, channels))
    read = {}
    for split, classes in content.splits():
        read[split] = {source.name: source.read() for source in classes}
        for source in classes:
            images = read[split][source.name]
            assert images.dtype == np.uint8
            assert images.shape == (source.count, size, size, channels)
    return read, content


def refused(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        found(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def images(split: str, side: int = SIDE, channels: int = 3) -> np.ndarray:
    """12 of 3 classes, whose rows lie together."""
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (12, side, side, channels), np.uint8)


def rows(split: str) -> dict[str, list[int]]:
    return {name: list(range(c * 4, c * 4 + 4)) for c, name in enumerate(NAMES[split])}


def save(folder: Path, content: Callable[[str], object], name: str = "{}.pkl", protocol=None):
    """``content`` of each split, pickled, or as npz by the name."""
    for split in SPLITS:
        file = folder / name.format(split)
        if name.endswith("npz"):
            np.savez(file, **content(split))
        else:
            file.write_bytes(pickle.dumps(content(split), protocol))
    return folder


def assert_found(folder: Path, names=NAMES, pixels=images, note: str = "", **size) -> None:
    read, content = found(folder, **size)
    assert list(read) == list(SPLITS)
    for split in SPLITS:
        assert list(read[split]) == names[split]
        expected = pixels(split).reshape(3, 4, *pixels(split).shape[1:])
        assert np.array_equal(np.stack(list(read[split].values())), expected)
    assert note in "\n".join(content.notes)


def by_rows(convert: Callable) -> Callable:
    return lambda s: {
        "image_data": images(s),
        "class_dict": {name: convert(r) for name, r in rows(s).items()},
    }
