"""Omniglot: 1623 characters of 20 drawings, 105x105, 1 bit, in two official sets.

Pixels are those of the MAML++ reference: its Lanczos resize of a 1-bit image is nearest
neighbour, and values stay {0, 1} with paper 1 and ink 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from engine.data.bank import ClassSource, Content, Source, Splits
from engine.data.images import Unreadable, all_of, as_shown, opened
from engine.data.layout import SPLITS
from engine.data.mini import digest
from engine.data.tree import Tree, open_tree
from engine.errors import UserError, listed

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

SETS = {"background": 964, "evaluation": 659}  # characters
DRAWINGS = 20
_SIDE = 105
_PAPER_SPLIT = {"train": 1150, "val": 50, "test": 423}
_HELD_OUT = 50  # background characters that validate, under the background/evaluation split
_CHARACTERS = "2f1d1d148e5ac8e1a22d32f3f46002a2"  # of both sets, as `mini.digest` gives it
_FILE = re.compile(r"(?:^|/)([^/]+/character\d\d)/[^/]+\.png$", re.IGNORECASE)
_ZIP = re.compile(r"(?:^|/)images_(?:background|evaluation)\.zip$")
_CONTRAST = 32  # of 256 grey levels: less between lightest and darkest is no ink
_HINT = "get it by: python -m engine.data fetch omniglot"

# set → character → where its drawings are
Characters = dict[str, dict[str, list[tuple[Tree, str]]]]


def trees(path: Path) -> list[Tree]:
    """What may hold it: a folder or archive, and the two zips in a folder."""
    found = [open_tree(path)]
    if path.is_dir():
        zips = [n for n in found[0].names if _ZIP.search(n)]
        found += [open_tree(path / name) for name in zips]
    return found


def find(path: Path, among: list[Tree]) -> Characters | None:
    """What lies there: the two zips, the two unpacked folders, or one archive of both.

    Raises UserError when a set is incomplete; None if nothing is of Omniglot.
    """
    found: Characters = {}
    for tree in among:
        for name in tree.names:
            below = f"{tree.path.name}/{name}".lower()
            part = next((s for s in SETS if f"images_{s}" in below), None)
            if part and (match := _FILE.search(name)):
                found.setdefault(part, {}).setdefault(match[1], []).append((tree, name))
    if not found:
        return None
    for part, characters in found.items():
        _keep_one_copy(characters)
        _require_whole(path, part, characters)
    return found


def open_source(path: Path, seen: Preparation, split: str, seed: int) -> Source:
    among = trees(path)

    def content() -> Content:
        found = find(path, among)
        if found is None:
            raise UserError(
                f"{path} holds no Omniglot (images_background, images_evaluation); {_HINT}"
            )
        if missing := SETS.keys() - found.keys():
            raise UserError(f"{path} has no images_{missing.pop()}; {_HINT}")

        def splits() -> Splits:
            drawings = found["background"] | found["evaluation"]
            for name, labels in split_names(found, split, seed).items():
                yield name, [_class(label, drawings[label], seen) for label in labels]

        return Content("Omniglot", splits, SPLITS)

    return Source(str(path.resolve()), [tree.key for tree in among], content)


def is_it(classes: dict[str, dict[str, int]]) -> bool:
    """By the names of its characters: split → character → drawings."""
    return digest(name for names in classes.values() for name in names) == _CHARACTERS


def split_names(found: Characters, split: str, seed: int) -> dict[str, list[str]]:
    """The characters of each split, in order.

    paper: all 1623, sorted by name, shuffled by ``seed``, cut into 1150 / 50 / 423.
    background: 914 to train and 50 to validate, shuffled from the background set; the evaluation
    set tests.
    """
    rng = np.random.RandomState(seed)  # its stream is frozen; that of numpy's Generator is not
    if split == "paper":
        names = rng.permutation(sorted(n for part in found.values() for n in part)).tolist()
        ends = np.cumsum([0, *_PAPER_SPLIT.values()])
        return {s: names[ends[i] : ends[i + 1]] for i, s in enumerate(_PAPER_SPLIT)}
    if split != "background":
        raise UserError(f"--split is {split!r}: choose paper or background")
    background = rng.permutation(sorted(found["background"])).tolist()
    return {
        "train": background[:-_HELD_OUT],
        "val": background[-_HELD_OUT:],
        "test": sorted(found["evaluation"]),
    }


def _class(name: str, drawings: list[tuple[Tree, str]], seen: Preparation) -> ClassSource:
    def read() -> np.ndarray:
        return all_of(lambda d: _decode(d[0].read(d[1]), d[0].where(d[1]), seen), drawings)

    return ClassSource(name, len(drawings), read)


def _decode(data: bytes, where: str, seen: Preparation) -> np.ndarray:
    with opened(data, where, ("PNG",), _HINT) as file:
        image = file.convert("1")
    if image.size != (_SIDE, _SIDE):
        shape = "x".join(map(str, image.size))
        raise Unreadable([f"{where} is {shape}, but Omniglot is {_SIDE}x{_SIDE}"], _HINT)
    if not seen.binary:
        return seen.array(image)
    ink = _nearest(np.asarray(image).astype(np.uint8), seen.size)
    return np.repeat(ink[..., None], seen.channels, axis=-1)


def _nearest(image: np.ndarray, size: int) -> np.ndarray:
    nearest = ((np.arange(size) + 0.5) * len(image) / size).astype(np.int64)
    return image[nearest[:, None], nearest]


def drawing(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size], ink 0 and paper 1, of a picture of 8 bits of dark ink on light paper, or
    of light on dark; of a drawing of Omniglot the very pixels that it has in training.

    Paper is what most of the border is. A picture that is not square is made so with paper. Ink and
    paper are told apart by Otsu's threshold (1979), at Omniglot's own size, where thin strokes of a
    large picture are still there; a picture with hardly any contrast is paper alone. A photo should
    be evenly lit: a shadow's edge is taken for ink.
    """
    grey = _square(as_shown(image, 1))
    if grey.width not in (size, _SIDE):
        grey = grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(grey)
    if int(values.max()) - int(values.min()) < _CONTRAST:
        return np.ones((size, size), np.uint8)
    light = values > _threshold(values)
    return _nearest((light == (_border(light).mean() >= 0.5)).astype(np.uint8), size)


def _square(image: Image.Image) -> Image.Image:
    side = max(image.size)
    if image.width == image.height:
        return image
    paper = int(np.median(_border(np.asarray(image))))
    whole = Image.new("L", (side, side), paper)
    whole.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return whole


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _threshold(values: np.ndarray) -> int:
    """The last value of the darker class: the one that divides with the largest variance between
    the two classes (Otsu 1979)."""
    counts = np.bincount(values.reshape(-1), minlength=256).astype(np.float64)
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * np.arange(256)).cumsum()
    between = (sums[-1] * below - sums * total) ** 2 / np.maximum(below * (total - below), 1)
    return int(between.argmax())


def _keep_one_copy(characters: dict[str, list[tuple[Tree, str]]]) -> None:
    """A folder may hold the zips and what was unpacked from them: the first found is read."""
    for name, drawings in characters.items():
        once: dict[str, tuple[Tree, str]] = {}
        for tree, file in drawings:
            once.setdefault(file.rsplit("/", 1)[-1], (tree, file))
        characters[name] = [once[file] for file in sorted(once)]


def _require_whole(path: Path, part: str, characters: dict[str, list]) -> None:
    if len(characters) != SETS[part]:
        raise UserError(
            f"{path}: images_{part} has {len(characters)} characters of {SETS[part]}; {_HINT}"
        )
    few = [f"{n} has {len(d)} drawings" for n, d in characters.items() if len(d) != DRAWINGS]
    if few:
        raise UserError(f"{path}, images_{part}: {listed(few)} of {DRAWINGS}; {_HINT}")
