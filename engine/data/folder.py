"""Any ``<split>/<class>/<image>`` tree, in a folder or a zip archive."""

from __future__ import annotations

from pathlib import Path

from engine.data.bank import Source
from engine.data.tree import SPLITS, Tree, class_sources, split_classes
from engine.errors import UserError


def open_source(path: Path, size: int, channels: int) -> Source:
    """Images are resized to ``size`` and turned grey or RGB.

    Raises UserError when there are none.
    """
    tree = Tree(path)
    classes = split_classes(tree)
    if classes is None:
        raise UserError(
            f"{path} holds no images as <split>/<class>/<image> with splits train, val, test and "
            "png, jpg, jpeg or webp files; arrange them so"
        )
    return tree_source(tree, classes, size, channels)


def tree_source(
    tree: Tree,
    classes: dict[str, dict[str, list[str]]],
    size: int,
    channels: int,
) -> Source:
    return Source(
        "train, val and test folders of class folders",
        tree.key,
        lambda: ((s, class_sources(tree, classes[s], size, channels)) for s in SPLITS),
    )
