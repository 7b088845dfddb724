"""Which image of a tree belongs to which class of which split, by folders and by names.

A split is told by the names that the field gives it; where there is none, ``divided`` makes it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.data.bank import ClassSource, Content, Splits
from engine.data.images import is_image
from engine.data.tree import FolderTree, Tree
from engine.errors import UserError, listed

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

SPLITS = ("train", "val", "test")
ALL = "all"  # the one part of data without splits
_WORDS = {
    "train": ("train", "training", "base"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "novel"),
}
_PAPER = (64, 16, 20)  # mini-ImageNet's classes by split (Ravi & Larochelle 2017)

Classes = dict[str, dict[str, list[str]]]  # split → class → names of its images


class OwnSplits(UserError):
    """Data have train, val and test, and a ratio was given."""

    def __init__(self, ratio: str, data: Path | str):
        super().__init__(
            f"--split-ratio is {ratio}, but {data} has its own train, val and test; leave it out"
        )


def split_named(word: str) -> str | None:
    """The split that a folder or file is named by: train, training, base, meta-train, …"""
    word = re.sub(r"[\s_-]", "", word.lower()).removeprefix("meta")
    return next((split for split, words in _WORDS.items() if word in words), None)


def split_folders(tree: Tree) -> tuple[Classes, list[str], list[str]] | None:
    """``<split>/<class>/…/<image>`` below any folder: classes, notes, and classes without an image.

    None when no image lies so. Raises UserError when the tree holds several data sets.
    """
    images = [name for name in tree.names if is_image(name)]
    root = _root(tree, images)
    if root is None:
        return None
    classes: Classes = {}
    stray, deeper, begin = [], 0, len(_below(root))
    folders: dict[str, str] = {}  # of each split
    for name in images:
        inner = name[begin:].split("/") if name.startswith(_below(root)) else []
        split = split_named(inner[0]) if len(inner) > 2 else None
        if split is None:
            stray.append(name)
            continue
        if (first := folders.setdefault(split, inner[0])) != inner[0]:
            raise UserError(
                f"{tree.path} has {_below(root)}{first} and {_below(root)}{inner[0]}, both {split} "
                "by their names: bring the classes of both into one, or move one away"
            )
        deeper += len(inner) > 3
        classes.setdefault(split, {}).setdefault(inner[1], []).append(name)
    empty = []
    for folder in tree.folders:
        inner = folder[begin:].split("/") if folder.startswith(_below(root)) else []
        split = split_named(inner[0]) if len(inner) == 2 else None
        if split and inner[1] not in classes.get(split, {}):
            empty.append(folder)
    notes = [f"{deeper:,} images lie in folders below their class"] if deeper else []
    return classes, notes + left_out(stray, "images in no class of a split"), empty


def _root(tree: Tree, images: list[str]) -> str | None:
    """The folder of the splits: the uppermost one that holds two or, if there is none, one."""
    found: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in images}:
        parts = folder.split("/")
        for i in range(len(parts) - 1):
            if split := split_named(parts[i]):
                found.setdefault("/".join(parts[:i]), set()).add(split)
    if not found:
        return None
    whole = [root for root, splits in found.items() if len(splits) > 1] or list(found)
    upper = [root for root in whole if not any(_in_split(root, other) for other in whole)]
    if len(upper) > 1:
        raise UserError(
            f"{tree.path} holds several data sets, in {listed(sorted(r or '.' for r in upper))}; "
            "name the folder of one of them"
        )
    return upper[0]


def _in_split(folder: str, root: str) -> bool:
    """Whether a folder is one of the splits below a root, or lies in one."""
    inner = folder.removeprefix(_below(root))
    return inner != folder and split_named(inner.partition("/")[0]) is not None


def _below(folder: str) -> str:
    return f"{folder}/" if folder else ""


def flat_folders(tree: Tree) -> tuple[Classes, list[str], list[str]] | None:
    """``<class>/…/<image>`` below any folder, without splits; None when there is but one class."""
    images = [name for name in tree.names if is_image(name)]
    folders = {name.rpartition("/")[0] for name in images}
    if not folders:
        return None
    root = os.path.commonpath(folders) if "" not in folders else ""
    begin = len(_below(root))
    classes: dict[str, list[str]] = {}
    stray, deeper = [], []
    for name in images:
        label, _, inner = name[begin:].partition("/")
        (classes.setdefault(label, []) if inner else stray).append(name)
        if "/" in inner:
            deeper.append(name[begin:])
    if len(classes) < 2:
        return None
    empty = [
        folder
        for folder in tree.folders
        if folder.startswith(_below(root))
        and "/" not in folder[begin:]
        and folder[begin:] not in classes
    ]
    notes = left_out(stray, "images in no class folder")
    if deeper:
        label = deeper[0].partition("/")[0]
        notes.insert(
            0, f"{len(deeper):,} images lie in folders below their class, as {deeper[0]} in {label}"
        )
    return {ALL: classes}, notes, empty


def tree_content(
    tree: Tree,
    kind: str,
    found: tuple[Classes, list[str], list[str]],
    seen: Preparation,
    lists: Iterable[str] = (),
) -> Content:
    """``lists``: files that say what the images are. Raises UserError when a class is in two splits
    or under two names."""
    classes, notes, empty = found
    parts = tuple(part for part in (*SPLITS, ALL) if part in classes)
    classes = {part: classes[part] for part in parts}
    require_disjoint(tree.path, classes)
    for names in classes.values():
        require_unlike(tree.path, names)
    _require_distinct_folders(tree, classes)

    def sources(part: str) -> list[ClassSource]:
        return [
            ClassSource(label, len(names), lambda names=names: tree.images(names, seen))
            for label, names in sorted(classes[part].items())
        ]

    others = [name for name in tree.names if not (is_image(name) or name in lists)]
    notes += left_out(others, "files that are no images by their names") + odd(tree)
    splits = lambda: ((part, sources(part)) for part in parts)  # noqa: E731
    return Content(kind, splits, parts, notes, tuple(empty))


def left_out(names: list[str], what: str) -> list[str]:
    """A line that counts and names files that are not used; none when there is none."""
    return [f"left out: {len(names):,} {what} ({listed(names, 3)})"] if names else []


def odd(tree: Tree) -> list[str]:
    return [line for reason, names in tree.odd.items() for line in left_out(names, reason)]


def one_form(name: str) -> str:
    """The same for names that differ in the Unicode form of a letter."""
    return unicodedata.normalize("NFC", name)


def normal(name: str) -> str:
    """The same for names that differ in that, or in case."""
    return one_form(one_form(name).casefold())


def require_disjoint(
    path: Path | str,
    found: dict[str, Iterable[str]],
    first: dict[str, tuple[str, str]] | None = None,
) -> None:
    """A class seen in training would make the test accuracy worthless.

    Names that differ in case or in the Unicode form of a letter are one. ``first``: where each name
    was first, of splits that are found one after the other.
    """
    first = {} if first is None else first
    shared = []
    for split, names in found.items():
        for name in names:
            other, before = first.setdefault(normal(name), (split, name))
            if other != split:
                as_ = "" if name == before else f" as {name!r}"
                shared.append(f"class {before!r} is in {other} and in {split}{as_}")
    if shared:
        raise UserError(
            f"{path}: {listed(shared)}, but few-shot splits share no class; move it, or rename it "
            "if these are different classes"
        )


def _require_distinct_folders(tree: Tree, classes: Classes) -> None:
    """Links may give one class two names."""
    if not isinstance(tree, FolderTree):
        return
    first: dict[str, str] = {}
    twice = []
    for part in classes.values():
        for names in part.values():
            for folder in sorted({name.rpartition("/")[0] for name in names}):
                real = os.path.realpath(tree.path / folder)
                if first.setdefault(real, folder) != folder:
                    twice.append(f"{folder} is the same folder as {first[real]}")
    if twice:
        raise UserError(
            f"{tree.path}: {listed(twice)}, but a class has one name; remove one of the links"
        )


def divided(content: Content, path: Path, ratio: str | None, seed: int) -> Content:
    """With train, val and test: classes without splits divided by ``ratio`` (as ``64/16/20``) and
    ``seed``, and val taken from train where it is missing.

    Raises UserError when splits are missing, or a ratio is given and none is.
    """
    parts = set(content.parts)
    shares = tuple(map(int, ratio.split("/"))) if ratio else None
    if parts == {ALL} or (shares and parts == {"train"}):
        if shares is None:
            raise UserError(
                f"{path} holds classes but no splits: give --split-ratio 64/16/20 to divide its "
                "classes into train, val and test, or arrange it as <split>/<class>/<image>"
            )
        return _cut(content, path, {None: shares}, seed, f"divided {ratio} by seed {seed}")
    if missing := [s for s in SPLITS if s not in parts and s != "val"]:
        raise UserError(
            f"{path} has no images for {' and '.join(missing)}: each split is a folder of class "
            "folders; add what is missing"
            + ("" if parts != {"train"} else ", or give --split-ratio to divide the classes")
        )
    if "val" not in parts:
        train, val, _ = shares or _PAPER
        how = f"no val: {{}} of {{}} training classes by seed {seed} validate"
        return _cut(content, path, {"train": (train, val, 0), "test": (0, 0, 1)}, seed, how)
    if ratio:
        raise OwnSplits(ratio, path)
    return content


def require_unlike(
    path: Path, names: Iterable[str], form: Callable[[str], str] = one_form, why: str = ""
) -> None:
    """Raises UserError of names that are shown alike, and are two classes to the file system."""
    first: dict[str, str] = {}
    for name in names:
        if (before := first.setdefault(form(name), name)) != name:
            raise UserError(
                f"{path}: the classes {before!r} and {name!r} differ in the form of letters alone"
                f"{why}; make them one, or rename one"
            )


def _cut(
    content: Content,
    path: Path,
    shares: dict[str | None, tuple[int, int, int]],
    seed: int,
    how: str,
) -> Content:
    """Each part's classes, shuffled by ``seed``, cut by its shares (None: those of any part).
    ``how`` is noted, with the classes that validate and all that they are of in its places."""

    def splits() -> Splits:
        for part, sources in content.splits():
            why = ", and one might train and the other test"
            require_unlike(path, [source.name for source in sources], normal, why)
            of_part = shares.get(part) or shares[None]
            ends = np.cumsum([0, *of_part]) * len(sources) / sum(of_part)
            ends = np.floor(ends + 0.5).astype(int).tolist()
            # its stream is frozen; that of numpy's Generator is not
            order = np.random.RandomState(seed).permutation(len(sources)).tolist()
            for i, split in enumerate(SPLITS):
                if of_part[i] == 0:
                    continue
                chosen = sorted(order[ends[i] : ends[i + 1]])
                if not chosen:
                    raise UserError(
                        f"{path}: {len(sources)} classes divided "
                        f"{'/'.join(map(str, of_part))} leave none for {split}; give other shares "
                        "by --split-ratio"
                    )
                if split == "val":
                    content.notes.insert(0, how.format(len(chosen), len(sources)))
                yield split, [sources[c] for c in chosen]

    return dataclasses.replace(content, splits=splits, parts=SPLITS)
