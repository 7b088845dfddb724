"""mini-ImageNet as it is found in the wild: pickles, Ravi's CSV files with JPEGs, or folders."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.bank import ClassSource, Source, Splits
from engine.data.folder import tree_source
from engine.data.pickles import read_pickle
from engine.data.tree import (
    SPLITS,
    SUFFIXES,
    Tree,
    class_sources,
    fit,
    require_disjoint,
    split_classes,
    stamps,
)
from engine.errors import UserError

SIDE = 84
WAYS = (
    "run `python -m engine.data fetch mini`, or name a folder that has it with --data (three "
    "pickles, train/val/test folders of class folders, or Ravi's three CSV files with the images)"
)
_NUMBERED = re.compile(r"(?:^|/)(n\d{8})_(\d+)\.jpe?g$", re.IGNORECASE)  # ImageNet's own names


def find(path: Path, size: int = SIDE, channels: int = 3) -> Source | None:
    """What lies at ``path``; None if it is not mini-ImageNet in any form.

    Raises UserError when it is, but incomplete.
    """
    if path.is_dir() and (pickles := _pickles(path)):
        return _pickle_source(path, pickles, size, channels)
    tree = Tree(path)
    tables = {s: t for s, also in SPLITS.items() if (t := _table(tree, also))}
    if tables:
        return _csv_source(tree, tables, size, channels)
    classes = split_classes(tree)
    return classes and tree_source(tree, classes, size, channels)


def open_source(path: Path, size: int, channels: int) -> Source:
    source = find(path, size, channels)
    if source is None:
        raise UserError(f"{path} holds no mini-ImageNet that could be recognised; {WAYS}")
    return source


def _pickles(path: Path) -> dict[str, Path]:
    """Split → file, by how the names of the known distributions end."""
    found = {}
    for file in sorted(path.iterdir()):
        stem = file.stem.lower()
        if file.suffix.lower() not in (".pkl", ".pickle"):
            continue
        if stem.endswith(("train_phase_val", "train_phase_test")):
            continue  # further images of the training classes
        for split, also in SPLITS.items():
            if stem.endswith(also):
                if split in found:
                    raise UserError(
                        f"{path} has two pickles for {split}, {found[split].name} and {file.name}; "
                        "leave one of them there"
                    )
                found[split] = file
    return found


def _pickle_source(path: Path, files: dict[str, Path], size: int, channels: int) -> Source:
    if missing := SPLITS.keys() - files.keys():
        raise UserError(
            f"{path} has a pickle for {', '.join(files)} but none for {', '.join(sorted(missing))};"
            " finish it by: python -m engine.data fetch mini"
        )

    def splits() -> Splits:
        seen: dict[str, list[str]] = {}
        for split in SPLITS:
            images, rows = read_split(files[split])
            seen[split] = list(rows)
            require_disjoint(path, seen)
            yield split, [_rows(name, images, rows[name], size, channels) for name in sorted(rows)]

    return Source("mini-ImageNet, pickles", stamps(files[s] for s in SPLITS), splits)


def read_split(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """uint8 [N, 84, 84, 3] and class → row numbers, checked."""
    content = read_pickle(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a dict of images; {WAYS}")
    if {"image_data", "class_dict"} <= content.keys():
        images, rows = content["image_data"], content["class_dict"]
    elif {"data", "labels", "catname2label"} <= content.keys():
        images = content["data"]
        rows = _rows_of_labels(file, content["labels"], content["catname2label"])
    else:
        raise UserError(
            f"{file} has keys {sorted(map(str, content))[:5]}, not image_data and class_dict or "
            f"data, labels and catname2label; {WAYS}"
        )
    _check_images(file, images)
    return images, _checked_rows(file, rows, len(images))


def _rows_of_labels(file: Path, labels: Any, numbers: Any) -> dict[str, list[int]]:
    if not isinstance(numbers, dict):
        raise UserError(f"{file}: catname2label is no dict; get the file again")
    if numbers and _integers(list(numbers.values())) is None:
        raise UserError(f"{file}: catname2label must give each class a whole number; get it again")
    names = {number: name for name, number in numbers.items()}
    if len(names) < len(numbers):
        raise UserError(f"{file}: catname2label gives two classes one number; get it again")
    found = _integers(labels)
    if found is None:
        raise UserError(f"{file}: the labels are no list of whole numbers; get the file again")
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(found.tolist()):
        if label not in names:
            raise UserError(f"{file}: label {label} has no name in catname2label; get it again")
        rows.setdefault(names[label], []).append(row)
    return rows


def _integers(values: Any) -> np.ndarray | None:
    """Integers [n], n > 0; None if these are none, or of other dimensions, or ragged."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iu" and len(array) else None


def _check_images(file: Path, images: Any) -> None:
    if not isinstance(images, np.ndarray):
        raise UserError(f"{file}: the images are no array; get the file again")
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3) or not len(images):
        raise UserError(
            f"{file}: the images are {images.dtype} {list(images.shape)}, but must be uint8 "
            f"[N, {SIDE}, {SIDE}, 3]; get the file again, or use --dataset folder for other sizes"
        )


def _checked_rows(file: Path, rows: Any, images: int) -> dict[str, np.ndarray]:
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{file}: class_dict is no dict of classes; get the file again")
    checked = {}
    for name, given in rows.items():
        numbers = _integers(given)
        if numbers is None:
            raise UserError(f"{file}: class {name} has no list of row numbers; get the file again")
        if numbers.min() < 0 or numbers.max() >= images:
            raise UserError(
                f"{file}: class {name} names rows {numbers.min()} to {numbers.max()} of {images} "
                "images; get the file again"
            )
        checked[str(name)] = numbers
    used = np.concatenate(list(checked.values()))
    if len(np.unique(used)) != len(used):
        raise UserError(f"{file}: an image belongs to two classes or twice to one; get it again")
    return checked


def _rows(
    name: str,
    images: np.ndarray,
    rows: np.ndarray,
    size: int,
    channels: int,
) -> ClassSource:
    return ClassSource(name, len(rows), lambda: fit(images[rows], size, channels))


def _table(tree: Tree, names: tuple[str, ...]) -> str | None:
    """The CSV file of a split, wherever it lies."""
    wanted = {f"{name}.csv" for name in names}
    return next((n for n in tree.names if n.rsplit("/", 1)[-1].lower() in wanted), None)


def _csv_source(tree: Tree, tables: dict[str, str], size: int, channels: int) -> Source:
    if missing := SPLITS.keys() - tables.keys():
        raise UserError(f"{tree.path} has no {sorted(missing)[0]}.csv beside {tables.popitem()[1]}")
    locate = _locator(tree)
    classes: dict[str, dict[str, list[str]]] = {}
    places: dict[str, tuple[str, str]] = {}  # image → its split and class
    for split in SPLITS:
        classes[split] = {}
        for file, label in _lines(tree, tables[split]):
            name = locate(file, label)
            if (first := places.setdefault(name, (split, label))) != (split, label):
                raise UserError(
                    f"{tree.where(name)} is of class {first[1]} in {first[0]} and of class {label} "
                    f"in {split} by the CSV files, but an image has one class and one split; "
                    "correct the files"
                )
            classes[split].setdefault(label, []).append(name)
    require_disjoint(tree.path, classes)
    for split in classes.values():
        for label, names in split.items():
            split[label] = sorted(set(names))
    return Source(
        "mini-ImageNet, CSV files and images",
        tree.key,
        lambda: ((s, class_sources(tree, classes[s], size, channels)) for s in SPLITS),
    )


def _lines(tree: Tree, table: str) -> list[tuple[str, str]]:
    """File name and label of each row of a CSV file."""
    where = tree.where(table)
    text = io.StringIO(tree.read(table).decode("utf-8", "replace"), newline="")
    try:
        reader = csv.DictReader(text)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{where} has columns {reader.fieldnames}, not filename and label; use the files "
                "of Ravi and Larochelle"
            )
        lines = []
        for row in reader:
            if not row["filename"] or not row["label"]:
                raise UserError(
                    f"{where}, line {reader.line_num}: a file name or its label is missing; get "
                    "the file again"
                )
            lines.append((row["filename"], row["label"]))
    except csv.Error as error:
        raise UserError(f"{where} is no CSV file ({error}); get it again") from None
    if not lines:
        raise UserError(f"{where} has no rows; get it again")
    return lines


def _locator(tree: Tree) -> Callable[[str, str], str]:
    """CSV file name and label → where the image is.

    Either a file has that name, or the images have ImageNet's names (``n01532829_5.JPEG``). Then
    the number that ends Ravi's name is the image's place, from 1, among all images of its class
    in the order of ImageNet's numbers.
    """
    by_name = {n.rsplit("/", 1)[-1]: n for n in tree.names if n.lower().endswith(SUFFIXES)}
    numbered: dict[str, dict[int, str]] = {}
    for name in tree.names:
        if match := _NUMBERED.search(name):
            numbered.setdefault(match[1].lower(), {})[int(match[2])] = name
    ranked = {label: [names[n] for n in sorted(names)] for label, names in numbered.items()}

    def locate(file: str, label: str) -> str:
        if file in by_name:
            return by_name[file]
        place = re.fullmatch(rf"{re.escape(label)}(\d+)\.jpe?g", file, re.IGNORECASE)
        images = ranked.get(label, [])
        if place and 1 <= int(place[1]) <= len(images):
            return images[int(place[1]) - 1]
        raise UserError(
            f"{tree.path} lacks the image {file} of class {label} that its CSV files name; add the "
            "images (Ravi's names, or all of ImageNet's training images of the class)"
        )

    return locate
