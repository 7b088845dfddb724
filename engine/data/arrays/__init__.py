"""Data sets as arrays: pickles and npz archives of mini-ImageNet, tiered-ImageNet, CIFAR-FS, FC100
and of people's own making. One file a split, or one of images and one of labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.data.arrays.npz import read_npz
from engine.data.arrays.pickles import read_pickle
from engine.data.arrays.tables import Class, Table, read_table
from engine.data.bank import ClassSource, Content
from engine.data.layout import SPLITS, require_disjoint, split_named
from engine.data.tree import Tree
from engine.errors import UserError, listed

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

SUFFIXES = (".pkl", ".pickle", ".npz")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LABELS = {"label", "labels"}


@dataclass
class _Files:
    """Of one split."""

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def split_of(stem: str) -> str | None:
    """The split that the words of a file's name name; None if they name none or two."""
    found = {split_named(word) for word in _WORD.findall(stem)} - {None}
    return found.pop() if len(found) == 1 else None


def find(tree: Tree, seen: Preparation) -> Content | None:
    """What pickles and npz archives there are; None if the name of none names a split. Reading
    them adds to the notes.

    Images come as ``seen`` makes them. Raises UserError when train or test is missing, or
    a split has several files.
    """
    notes: list[str] = []
    files = _files(tree, notes)
    if not any(split.images for split in files.values()):
        return None
    _require_one_each(tree, files)
    names = [name for split in files.values() for name in split.images + split.labels]
    ends = {"npz" if name.lower().endswith(".npz") else "pickles" for name in names}
    kind = " and ".join(sorted(ends, reverse=True))
    if any(split.labels for split in files.values()):
        kind += ", images and labels apart (as tiered-ImageNet)"
    splits = lambda: _Reader(tree, files, notes).splits(seen)  # noqa: E731
    return Content(kind, splits, tuple(files), notes)


def _files(tree: Tree, notes: list[str]) -> dict[str, _Files]:
    files = {split: _Files() for split in SPLITS}
    further, unnamed = [], []
    for name in tree.names:
        stem, dot, suffix = name.rsplit("/", 1)[-1].rpartition(".")
        if (dot + suffix).lower() not in SUFFIXES:
            continue
        if split := split_of(stem):
            labels = _LABELS & {word.lower() for word in _WORD.findall(stem)}
            (files[split].labels if labels else files[split].images).append(name)
        elif re.search(r"train_phase_(val|test)$", stem.lower()):
            further.append(name)
        else:
            unnamed.append(name)
    if further:
        notes.append(f"left out, further images of the training classes: {listed(further)}")
    if unnamed:
        notes.append(f"left out, as their names name no split or two: {listed(unnamed)}")
    return {split: found for split, found in files.items() if found.images or found.labels}


def _require_one_each(tree: Tree, files: dict[str, _Files]) -> None:
    problems = []
    for split, found in files.items():
        for what, names in (("images", found.images), ("labels", found.labels)):
            if len(names) > 1:
                problems.append(f"{len(names)} files of {what} for {split} ({listed(names)})")
        if not found.images:
            problems.append(f"labels but no images for {split} ({listed(found.labels)})")
    problems += [f"nothing for {split}" for split in ("train", "test") if split not in files]
    if problems:
        have = listed(
            f"{split} ({found.images[0]})" for split, found in files.items() if found.images
        )
        raise UserError(
            f"{tree.path} has files of images for {have}, but {' and '.join(problems)}: each of "
            "train, val and test needs one file, of which only val may be absent; correct that "
            "(python -m engine.data fetch mini gets all of mini-ImageNet)"
        )


class _Reader:
    def __init__(self, tree: Tree, files: dict[str, _Files], notes: list[str]):
        self.tree, self.files, self.notes = tree, files, notes
        self.number_name: Callable[[str, int], str] | None = None
        self.first: dict[str, tuple[str, str]] = {}  # of require_disjoint
        self.form: dict[str, str] = {}  # of the images → the first file with it

    def splits(self, seen: Preparation) -> Iterator[tuple[str, list[ClassSource]]]:
        """Raises UserError when all files have been looked at, with what is wrong in each."""
        problems = []
        for split in self.files:
            try:
                classes = self.classes(split)
            except UserError as error:
                problems += [str(error)] if str(error) not in problems else []
                continue
            sources = [
                ClassSource(name, len(rows), partial(images.take, rows, seen))
                for name, (images, rows) in classes.items()
            ]
            del classes
            if not problems:
                yield split, sources
            del sources  # so that no two splits are in memory
        if problems:
            raise UserError("; ".join(problems))

    def classes(self, split: str) -> dict[str, Class]:
        """By name, sorted."""
        table = self.table(split)
        if _numbered(table) and self.number_name is None:
            del table
            self.number_name = self._naming({s: list(self.table(s)) for s in self.files})
            table = self.table(split)
        name = partial(self.number_name, split) if _numbered(table) else str
        keys = sorted(table) if _numbered(table) else sorted(table, key=str)
        classes = {name(key): table[key] for key in keys}
        where = self.tree.where(self.files[split].images[0])
        if len(classes) < len(table):
            raise UserError(f"{where} has a class by its number and as text too; rename one")
        require_disjoint(where, {split: classes}, self.first)
        self._require_one_form(classes, where)
        return classes

    def table(self, split: str) -> Table:
        files = self.files[split]
        where = self.tree.where(files.images[0])
        try:
            labels = self._content(files.labels[0]) if files.labels else None
            return read_table(self._content(files.images[0]), labels, where, self.note)
        except MemoryError:
            raise UserError(f"{where} does not fit into memory; use a machine with more") from None

    def _content(self, name: str) -> Any:
        with self.tree.open(name) as file:
            if name.lower().endswith(".npz"):
                return read_npz(file, self.tree.where(name))
            return read_pickle(file, self.tree.size(name), self.tree.where(name))

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _naming(self, keys: dict[str, list]) -> Callable[[str, int], str]:
        """How to name classes that have only numbers: by them, unless each split has its own 0."""
        numbers = {split: set(k) for split, k in keys.items() if _numbered(k)}
        if len(set().union(*numbers.values())) == sum(map(len, numbers.values())):
            self.note("classes have no names: named by their numbers")
            return lambda split, number: str(number)
        local = all(n == set(range(len(n))) for n in numbers.values())
        if not local or numbers.get("train") in [n for s, n in numbers.items() if s != "train"]:
            found = {
                n: [s for s in numbers if n in numbers[s]] for n in set().union(*numbers.values())
            }
            shared = [f"{n} ({', '.join(s)})" for n, s in sorted(found.items()) if len(s) > 1]
            raise UserError(
                f"{self.tree.path}: few-shot splits share no class, but {len(shared)} numbers of "
                f"classes without names are in several: {listed(shared)}; move them, or give them "
                "other numbers or names (catname2label) if they are different classes"
            )
        self.note(
            "classes have no names and each split numbers its own from 0: taken as different "
            "classes, named train-0 and so on"
        )
        return lambda split, number: f"{split}-{number}"

    def _require_one_form(self, classes: dict[str, Class], where: str) -> None:
        for images, _ in classes.values():
            if images.form:
                self.form.setdefault(images.form, where)
        if len(self.form) > 1:
            found = listed(f"{form} in {place}" for form, place in self.form.items())
            raise UserError(f"the images differ: {found}; save them all in one way")


def _numbered(keys: Iterable) -> bool:
    return all(type(key) is int for key in keys)
