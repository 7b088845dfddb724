"""What lies at a path, in words."""

from __future__ import annotations

import re
from pathlib import Path

from engine.data import mini, omniglot
from engine.data.tree import SUFFIXES, Tree, opened
from engine.errors import UserError

_SAMPLE = 50  # images whose size is looked at


def describe(path: Path) -> str:
    """Several lines: the kind of data, classes and images of each split, and the command to train.

    Raises UserError when nothing is recognised or what is there is incomplete.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if found := omniglot.find(path):
        parts = {part: [len(c) for c in found[part].values()] for part in found}
        kind, shape, dataset = "Omniglot", f"105x105, {len(found)} of 2 sets", "omniglot"
    elif source := mini.find(path):
        content = {split: {c.name: c.count for c in classes} for split, classes in source.splits()}
        parts = {split: list(counts.values()) for split, counts in content.items()}
        wnids = all(re.fullmatch(r"n\d{8}", name) for counts in content.values() for name in counts)
        kind, shape, dataset = source.kind, _shape(path), "mini" if wnids else "folder"
    else:
        raise UserError(
            f"{path}: nothing recognised. Known are Omniglot (its two zips or folders), "
            "mini-ImageNet (pickles, CSV files with images) and <split>/<class>/<image> trees "
            "with splits train, val, test"
        )
    lines = [f"{path}: {kind}; images {shape}"]
    lines += [f"  {part:<10} {_counts(counts)}" for part, counts in parts.items()]
    lines.append(f"train on it: python -m engine.train --dataset {dataset} --data {path}")
    return "\n".join(lines)


def _counts(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    each = f"{low}" if low == high else f"{low} to {high}"
    return f"{len(counts):>4} classes, {sum(counts):>6,} images, {each} a class"


def _shape(path: Path) -> str:
    """The sizes of some of the images, evenly picked."""
    tree = Tree(path)
    names = [name for name in tree.names if name.lower().endswith(SUFFIXES)]
    if not names:
        return f"{mini.SIDE}x{mini.SIDE}"  # pickles, which are of no other size
    sizes = set()
    for name in names[:: -(-len(names) // _SAMPLE)]:
        with opened(tree.read(name), tree.where(name)) as image:
            sizes.add(image.size)
    least, most = min(sizes), max(sizes)
    few = f"{least[0]}x{least[1]}"
    return few if least == most else f"of {len(sizes)} or more sizes, {few} to {most[0]}x{most[1]}"
