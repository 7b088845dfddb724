"""Lists of images: CSV files of the splits, as Ravi & Larochelle publish mini-ImageNet's and as
spreadsheets write them, and the ``images.txt`` of CUB."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable

from engine.data.images import is_image
from engine.data.layout import ALL, SPLITS, Classes, left_out, normal, split_named
from engine.data.tree import Tree
from engine.errors import UserError, listed

_FILE = {"filename", "file", "filepath", "path", "image", "imagepath", "imagename", "img"}
_LABEL = {"label", "labels", "class", "classname", "category", "wnid", "species"}
_NUMBERED = re.compile(r"(?:^|/)(n\d{8})_(\d+)\.jpe?g$", re.IGNORECASE)  # ImageNet's own names
_CUB = re.compile(r"\d+\s+(\S.*)")

# Classes, notes, classes without an image; and the lists that were read.
Found = tuple[tuple[Classes, list[str], list[str]], list[str]]
Rows = list[tuple[str, str]]  # file and class


def csv_files(tree: Tree) -> Found | None:
    """By ``train.csv``, ``val.csv`` and ``test.csv`` with a file name and a label in each row. None
    when there is no such table.

    Raises UserError when images are missing, or of two classes or splits.
    """
    lists = [
        (tables, {split: _rows(tree, table) for split, table in tables.items()})
        for tables in _tables(tree)
    ]
    lists = [found for found in lists if any(found[1].values())]
    if not lists:
        return None
    if len(lists) > 1:
        first = listed(next(iter(tables.values())) for tables, _ in lists)
        raise UserError(
            f"{tree.path} has several lists of the splits ({first}): keep one, and move the others "
            "away"
        )
    tables, rows = lists[0]
    if strange := [tables[split] for split, found in rows.items() if found is None]:
        raise UserError(
            f"{tree.where(strange[0])} has no columns filename and label, as the other CSV files "
            "have; name its columns so"
        )
    locate = _locator(tree, [file for found in rows.values() for file, _ in found])
    classes: Classes = {}
    places: dict[str, tuple[str, str]] = {}  # image → its split and class
    missing, vague, twice = [], [], []
    for split, lines in rows.items():
        for file, label in lines:
            name, *more = locate(file, label, split) or [None]
            if name is None:
                missing.append(f"{file} of class {label}")
            elif more:
                vague.append(f"{file} of class {label} ({name}, {more[0]})")
            elif (first := places.setdefault(name, (split, label))) != (split, label):
                twice.append(
                    f"{tree.where(name)} is of class {first[1]} in {first[0]} and of class {label} "
                    f"in {split}"
                )
            else:
                classes.setdefault(split, {}).setdefault(label, []).append(name)
    if missing:
        what = "the image " if len(missing) == 1 else f"{len(missing):,} images: "
        raise UserError(
            f"{tree.path} lacks {what}{listed(missing)}, which its CSV files name; add the images "
            "(with Ravi's names, or all of ImageNet's training images of the class)"
        )
    if vague:
        raise UserError(
            f"{tree.path} has several files for {len(vague):,} images that its CSV files name: "
            f"{listed(vague)}; name them with their folders"
        )
    if twice:
        raise UserError(
            f"{listed(twice)} by the CSV files, but an image has one class and one split; correct "
            "the files"
        )
    for labels in classes.values():
        for label, names in labels.items():
            labels[label] = sorted(set(names))
    unused = [name for name in tree.names if is_image(name) and name not in places]
    notes = left_out(unused, "images that no CSV file names")
    return (classes, notes, []), [*tables.values()]


def _tables(tree: Tree) -> list[dict[str, str]]:
    """Split → CSV file, of each folder that has most of them. Raises UserError when a folder has
    two of one split."""
    found: dict[str, dict[str, str]] = {}
    for name in tree.names:
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.rpartition(".")
        if suffix.lower() == "csv" and (split := split_named(stem)):
            if (first := found.setdefault(folder, {}).setdefault(split, name)) != name:
                raise UserError(
                    f"{tree.path} has {first} and {name}, both a list of {split}: keep one, and "
                    "move the other away"
                )
    most = max(map(len, found.values()), default=0)
    whole = [tables for tables in found.values() if len(tables) == most]
    return [{split: tables[split] for split in SPLITS if split in tables} for tables in whole]


def _rows(tree: Tree, table: str) -> Rows | None:
    """File and label of each row; None when the columns are not told.

    Raises UserError when the file is broken, or lines lack one of both.
    """
    where = tree.where(table)
    text = _decoded(tree.read(table))
    head = text.partition("\n")[0]
    separator = max(",;\t|", key=head.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{where} is no CSV file ({error}); get it again") from None
    lines = [(number, cells) for number, cells in enumerate(lines, 1) if any(map(str.strip, cells))]
    if not lines:
        raise UserError(f"{where} has no rows; get it again")
    columns = _columns(lines[0][1])
    if columns is None:
        return None
    file, label, header = columns
    rows, lacking = [], []
    for number, cells in lines[header:]:
        pair = [cells[c].strip() if c < len(cells) else "" for c in (file, label)]
        rows.append(tuple(pair)) if all(pair) else lacking.append(str(number))
    if lacking:
        lines_ = f"line{'s' * (len(lacking) > 1)} {listed(lacking)}"
        raise UserError(f"{where}, {lines_}: a file name or its label is missing; correct it")
    if not rows:
        raise UserError(f"{where} has no rows; get it again")
    return rows


def _decoded(data: bytes) -> str:
    """As spreadsheets write text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _columns(first: list[str]) -> tuple[int, int, bool] | None:
    """Which columns hold file and label, and whether the first line names them."""
    words = [re.sub(r"[\s_-]", "", cell.lower()) for cell in first]
    file = next((c for c, word in enumerate(words) if word in _FILE), None)
    label = next((c for c, word in enumerate(words) if word in _LABEL), None)
    if file is not None and label is not None:
        return file, label, True
    files = [c for c, cell in enumerate(first) if is_image(cell.strip())]
    if len(first) == 2 and len(files) == 1:
        return files[0], 1 - files[0], False
    return None


def _locator(tree: Tree, files: list[str]) -> Callable[[str, str, str], list[str]]:
    """File name and label of a row, and its split → where the image may be.

    Either a file has that name, in the folder of its class if there is one, with whatever suffix
    where others have the very name of their row, or where none has;
    where both have folders, the last one of the row's is that of the file, or the file lies in one
    of its class or split. A folder of all rows is one of elsewhere, and says nothing.
    Or the images have ImageNet's names (``n01532829_5.JPEG``): then the number that ends Ravi's
    name is the image's place, from 1, among all images of its class in the order of ImageNet's
    numbers.
    """
    differ = len({_slashed(file).rpartition("/")[0] for file in files}) > 1
    names = {normal(_slashed(file).rpartition("/")[2]) for file in files if is_image(file)}
    parted = (name.rpartition("/") for name in tree.names)
    exact = {folder for folder, _, last in parted if normal(last) in names}
    by_stem: dict[str, list[str]] = {}
    folders: set[str] = set()
    numbered: dict[str, dict[int, str]] = {}
    for name in filter(is_image, tree.names):
        *above, file = name.split("/")
        folders.update(map(normal, above))
        by_stem.setdefault(_stem(file), []).append(name)
        if match := _NUMBERED.search(name):
            numbered.setdefault(match[1].lower(), {})[int(match[2])] = name
    ranked = {label: [names[n] for n in sorted(names)] for label, names in numbered.items()}

    def locate(file: str, label: str, split: str) -> list[str]:
        file = _slashed(file)
        name_of = normal(file.rpartition("/")[2])
        found = by_stem.get(_stem(name_of), [])
        if exact and is_image(file):
            parted = ((name, *name.rpartition("/")[::2]) for name in found)
            found = [n for n, folder, last in parted if folder in exact or normal(last) == name_of]
        if normal(label) in folders:
            found = [name for name in found if normal(label) in map(normal, name.split("/"))]
        above = file.split("/")[-2:-1] * differ

        def agrees(name: str) -> bool:
            folder = "".join(name.split("/")[-2:-1])
            own = normal(folder) in map(normal, [*above, label]) or split_named(folder) == split
            return own or not (folder and above)

        found = [name for name in found if agrees(name)]
        wishes: list[Callable[[str], bool]] = [
            lambda name: f"/{name}".endswith(f"/{file}"),
            lambda name: _stem(f"/{name}").endswith(_stem(f"/{file}")),
            lambda name: name.rpartition("/")[2] == file.rpartition("/")[2],
            lambda name: any(split_named(part) == split for part in name.split("/")[:-1]),
        ]
        for wish in wishes:
            found = [name for name in found if wish(name)] or found
        if found:
            return found
        place = re.fullmatch(rf"{re.escape(label)}(\d+)\.jpe?g", file, re.IGNORECASE)
        images = ranked.get(label, [])
        number = int(place[1]) if place else 0
        return images[number - 1 : number] if number else []

    return locate


def _slashed(file: str) -> str:
    return file.replace("\\", "/").strip("/").removeprefix("./")


def _stem(path: str) -> str:
    """Without its suffix, if that is an image's, whatever the case."""
    return normal(path.rpartition(".")[0] if is_image(path) else path)


def cub(tree: Tree) -> Found | None:
    """By CUB's ``images.txt``, lines of a number and a path below ``images``; no splits."""
    lists = [name for name in tree.names if name.rpartition("/")[2].lower() == "images.txt"]
    for table in lists:
        lines = _decoded(tree.read(table)).splitlines()
        paths = [match[1].strip() for line in lines if (match := _CUB.fullmatch(line.strip()))]
        if not paths or len(paths) < len(list(filter(str.strip, lines))):
            continue
        root = table[: -len("images.txt")] + "images/"
        known, classes = set(tree.names), {}
        if missing := [path for path in paths if root + path not in known]:
            raise UserError(
                f"{tree.path} lacks {len(missing):,} images that {table} names: {listed(missing)}; "
                "get it again"
            )
        again = [path for path, count in Counter(paths).items() if count > 1]
        paths = dict.fromkeys(paths)
        for path in paths:
            classes.setdefault(path.partition("/")[0], []).append(root + path)
        used = {root + path for path in paths}
        others = [name for name in tree.names if is_image(name) and name not in used]
        notes = left_out(again, f"further lines of {table} for the same image")
        notes += left_out(others, f"images that {table} does not name")
        return ({ALL: classes}, notes, []), [table]
    return None
