"""What lies at a path, in whatever form people keep their pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data import arrays, lists
from engine.data.bank import Content, Source
from engine.data.images import is_image
from engine.data.layout import (
    divided,
    flat_folders,
    left_out,
    odd,
    split_folders,
    tree_content,
)
from engine.data.tree import Tree, open_tree
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

FORMS = (
    "<split>/<class>/<image> folders (splits train, val, test or as base, novel, meta-train, …), "
    "<class>/<image> folders with --split-ratio, CSV files with the images, CUB's images.txt, or "
    "pickles or npz files of arrays, in a folder, zip or tar archive"
)


def recognise(tree: Tree, seen: Preparation) -> Content | None:
    """The first of these forms that the tree has; None if it has none.

    Raises UserError when it has one that is incomplete or contradicts itself.
    """
    if found := lists.csv_files(tree):
        return tree_content(tree, "CSV files and images", found[0], seen, found[1])
    folders = split_folders(tree)
    if folders and len(folders[0]) > 1:
        kind = "train, val and test folders of class folders"
        return tree_content(tree, kind, folders, seen)
    if found := arrays.find(tree, seen):
        images = [name for name in tree.names if is_image(name)]
        found.notes.extend(left_out(images, "images in files of their own") + odd(tree))
        return found
    if found := lists.cub(tree):
        return tree_content(tree, "images.txt and images, as of CUB", found[0], seen, found[1])
    if folders:  # of one split
        return tree_content(tree, "class folders of one split", folders, seen)
    if found := flat_folders(tree):
        return tree_content(tree, "class folders without splits", found, seen)
    return None


def open_source(
    path: Path, seen: Preparation, ratio: str | None, seed: int, unknown: Callable[[], str]
) -> Source:
    """Images become what ``seen`` makes of them; ``unknown`` makes the end of the line that is told
    when the content is nothing known."""
    tree = open_tree(path)

    def content() -> Content:
        found = recognise(tree, seen)
        if found is None:
            raise UserError(f"{path} holds no images in a form that is known; {unknown()}")
        return divided(found, path, ratio, seed)

    return Source(str(path.resolve()), tree.key, content)
