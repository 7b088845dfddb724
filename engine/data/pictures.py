"""Pictures of one's own: whatever a program or a command line calls by that, one after the other.

A program gives paths, PIL images or arrays; a command line files, folders and archives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from engine.data.images import (
    Unreadable,
    all_of,
    are_fractions,
    eight_bits,
    is_image,
    of_fractions,
)
from engine.data.layout import (
    flat_folders,
    left_out,
    odd,
    one_form,
    require_unlike,
    split_folders,
)
from engine.data.preparation import Preparation
from engine.data.tree import LARGEST_FILE, Tree, open_tree
from engine.errors import UserError, listed

_COLOURS = (1, 3, 4)  # grey, RGB, with alpha
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


class Picture(NamedTuple):
    """The file of a picture, wherever it lies."""

    where: str
    read: Callable[[], bytes]  # raises Unreadable


class Labelled(NamedTuple):
    pictures: list[Picture]
    labels: list[str]
    notes: list[str]  # what was left out, a line each


def prepared(x: Any, preparation: Preparation) -> np.ndarray:
    """uint8 [N, size, size, channels] of pictures in any of the forms that ``FewShotClassifier``
    takes. Raises UserError on anything else, Unreadable with all files that are no pictures."""
    return decoded(several(x, preparation), preparation)


def decoded(
    pictures: list[Picture | Image.Image], preparation: Preparation
) -> np.ndarray:  # uint8 [N, size, size, channels]
    def read(picture: Picture | Image.Image) -> np.ndarray:
        if isinstance(picture, Picture):
            return preparation.decode(picture.read(), picture.where)
        return preparation.array(picture)

    return all_of(read, pictures)


def several(x: Any, preparation: Preparation) -> list[Picture | Image.Image]:
    """One each, and no file is looked at. Raises UserError on anything else."""
    pictures = _each(x, preparation)
    if not pictures:
        raise UserError("X holds no picture: give a list of at least one")
    return pictures


def _each(x: Any, preparation: Preparation) -> list[Picture | Image.Image]:
    if isinstance(x, (str, os.PathLike, bytes, Image.Image)):
        raise UserError(f"X is one picture ({_kind(x)}): give a list of pictures, as [x]")
    if isinstance(x, torch.Tensor):
        x = _as_array(x, "X")
    if isinstance(x, np.ndarray) and x.dtype.kind not in "OU":
        stack, binary = _stack(x, preparation), _is_binary([x])
        return [_from_array(a, f"X[{i}]", binary) for i, a in enumerate(stack)]
    if isinstance(x, np.ndarray):
        if x.ndim != 1 and x.shape[1:] != (1,):
            raise UserError(f"X is an array {list(x.shape)} of paths or objects: give a list")
        x = x.reshape(-1)
    try:
        items = list(x)
    except TypeError:
        raise UserError(f"X is {_kind(x)}: give a list of paths, images or arrays") from None
    items = [
        _as_array(item, f"X[{i}]") if isinstance(item, torch.Tensor) else item
        for i, item in enumerate(items)
    ]
    binary = _is_binary([item for item in items if isinstance(item, np.ndarray)])
    return [_one(item, f"X[{i}]", binary) for i, item in enumerate(items)]


def _is_binary(arrays: list[np.ndarray]) -> bool:
    """Whether whole numbers are 0 and 1, for black and white: of all pictures, or of none."""
    whole = [a for a in arrays if a.dtype.kind in "ui" and a.size]
    return all(a.max() <= 1 for a in whole)


def _one(item: Any, name: str, binary: bool) -> Picture | Image.Image:
    if isinstance(item, Picture):
        return item
    if isinstance(item, (str, os.PathLike)):
        return picture(item)
    if isinstance(item, Image.Image):
        return eight_bits(item, name)
    if not isinstance(item, np.ndarray):
        raise UserError(f"{name} is {_kind(item)}: give a path, a PIL image or an array")
    shape = item.shape
    if len(shape) == 3 and shape[-1] not in _COLOURS and shape[0] in _COLOURS:
        item = np.moveaxis(item, 0, -1)
    elif not (len(shape) == 2 or len(shape) == 3 and shape[-1] in _COLOURS):
        raise UserError(
            f"{name} is an array {list(shape)}: a picture is [H, W] or [H, W, 1, 3 or 4]"
        )
    return _from_array(item if item.ndim == 3 else item[..., None], name, binary)


def _as_array(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.layout != torch.strided:
        raise UserError(f"{name} is a sparse tensor: give {name}.to_dense()")
    narrow = tensor.dtype in (torch.bfloat16, torch.float16)  # numpy has not the first
    return (tensor.float() if narrow else tensor).detach().cpu().numpy()


def _stack(x: np.ndarray, preparation: Preparation) -> np.ndarray:  # [N, H, W, C]
    """By the axis of the colours, which are 1, 3 or 4."""
    shape = x.shape
    if x.ndim == 4 and (shape[-1] in _COLOURS) != (shape[1] in _COLOURS):
        return x if shape[-1] in _COLOURS else np.moveaxis(x, 1, -1)
    if x.ndim == 4 and shape[-1] in _COLOURS:
        raise UserError(f"X is {list(shape)}: [N, H, W, C] or [N, C, H, W]? give PIL images")
    if x.ndim == 2 or x.ndim == 3 and shape[-1] in _COLOURS:
        raise UserError(f"X is {list(shape)}, which is one picture: give X[None]")
    if x.ndim == 3 and shape[0] in (3, 4) and preparation.channels == 3:
        both = f"one picture or {shape[0]} grey ones? give X[None], or X[..., None]"
        raise UserError(f"X is {list(shape)}: {both}")
    if x.ndim == 3:
        return x[..., None]
    raise UserError(
        f"X is an array {list(shape)}: give [N, H, W], [N, H, W, C] or [N, C, H, W], C one of "
        f"{', '.join(map(str, _COLOURS))}"
    )


def _from_array(values: np.ndarray, name: str, binary: bool) -> Image.Image:
    """Of [H, W, C]: whole numbers from 0 to 255, or (`binary`) 0 and 1 for black and white; others
    from 0 to 1, and what a resampling added beyond is cut off."""
    if not values.size:
        raise UserError(f"{name} is an array {list(values.shape)}: it has no pixels")
    kind = values.dtype.kind
    if kind not in "buif":
        raise UserError(f"{name} is of {values.dtype}: give whole numbers 0 to 255, or 0.0 to 1.0")
    low, high = float(values.min()), float(values.max())
    if not (are_fractions(low, high) if kind == "f" else 0 <= low <= high <= 255):
        whole = "of an integer type, as uint8" if kind == "f" else "0 to 255"
        raise UserError(
            f"{name} has values from {low:.4g} to {high:.4g} of {values.dtype}: give whole numbers "
            f"{whole}, or fractions 0.0 to 1.0, as they are before any normalisation"
        )
    values = of_fractions(values) if kind in "bf" or binary else values.astype(np.uint8)
    return Image.fromarray(
        values[..., 0] if values.shape[-1] == 1 else np.ascontiguousarray(values)
    )


def _kind(value: Any) -> str:
    return "a path" if isinstance(value, (str, os.PathLike)) else f"of type {type(value).__name__}"


def picture(path: str | os.PathLike) -> Picture:
    """One file, which is not looked at before it is read."""
    where = os.fsdecode(path)

    def read() -> bytes:
        try:
            place = Path(where)
            found = place.stat()
            if not stat.S_ISREG(found.st_mode):
                what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
                raise Unreadable([f"{where} is {what}, and no picture"], "name files")
            if found.st_size > LARGEST_FILE:
                raise Unreadable([f"{where} has {found.st_size:,} bytes: no image"], "remove it")
            return place.read_bytes()
        except (OSError, ValueError) as error:  # the last of a name with the character of code 0
            fault = f"cannot read {where} ({getattr(error, 'strerror', None) or error})"
            raise Unreadable([fault], "correct the path") from None

    return Picture(where, read)


def _member(tree: Tree, name: str) -> Picture:
    return Picture(tree.where(name), lambda: tree.read(name))


def asked(paths: Iterable[Path]) -> tuple[list[Picture], list[str]]:
    """The pictures that files, folders and zip or tar archives are or hold, in order, and lines of
    what else is there. A file that is named itself is taken for a picture whatever its name.

    Raises UserError where a folder or archive holds no picture.
    """
    found, notes = [], []
    for path in paths:
        if not os.path.isdir(path) and not path.name.lower().endswith(_ARCHIVES):
            found.append(picture(path))
            continue
        tree = open_tree(path)
        images = [name for name in tree.names if is_image(name)]
        if not images:
            raise UserError(f"{path} holds no picture, by the names of its {len(tree.names)} files")
        found += [_member(tree, name) for name in images]
        notes += [f"{path}: {line}" for line in _others(tree)]
    return found, notes


def labelled(path: Path) -> Labelled:
    """The pictures of ``<class>/…/<image>`` below any folder, or inside of an archive.

    Raises UserError when there are not two classes, or one without a picture.
    """
    tree = open_tree(path)
    splits = split_folders(tree)
    if splits and len(splits[0]) > 1:
        raise UserError(
            f"{path} holds the splits {listed(splits[0])}, a data set to train on: name a folder "
            "of class folders, as one of these"
        )
    found = flat_folders(tree)
    if found is None:
        raise UserError(
            f"{path} holds no two folders of pictures: give each class its own, as <class>/<image>"
        )
    (classes,), notes, empty = found[0].values(), found[1], found[2]
    if empty:
        raise UserError(
            f"{path} has {len(empty)} classes without a picture: {listed(empty)}; add some, or "
            "remove these"
        )
    require_unlike(path, classes)
    pairs = [(_member(tree, n), one_form(label)) for label, names in classes.items() for n in names]
    pictures, labels = zip(*pairs, strict=True)
    return Labelled([*pictures], [*labels], notes + _others(tree))


def _others(tree: Tree) -> list[str]:
    others = [name for name in tree.names if not is_image(name)]
    return left_out(others, "files that are no images by their names") + odd(tree)
