"""What lies at a path, in words."""

from __future__ import annotations

import shlex
from pathlib import Path

from engine.config import Config
from engine.data import mini, omniglot
from engine.data.bank import ClassSource, Content
from engine.data.images import is_image, opened
from engine.data.layout import ALL, divided
from engine.data.preparation import Preparation
from engine.data.recognise import FORMS, recognise
from engine.data.tree import Tree
from engine.errors import UserError, listed

RATIO = "64/16/20"  # that of mini-ImageNet
_SAMPLE = 50  # images whose size is looked at


def describe(path: Path) -> list[str]:
    """Several lines: the kind of data and how it was read, classes and images of each split, what
    was left out, and the command to train.

    Raises UserError when nothing is recognised or what is there is incomplete.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    among = omniglot.trees(path)
    if found := omniglot.find(path, among):
        lines = [f"{path}: Omniglot; images 105x105, {len(found)} of 2 sets"]
        parts = {part: [len(drawings) for drawings in found[part].values()] for part in found}
        lines += [_counts(part, counts) for part, counts in parts.items()]
        return [*lines, _command("omniglot", path)]
    content = recognise(among[0], Preparation.of("folder", mini.SIDE, 3))
    if content is None:
        raise UserError(f"{path}: nothing recognised. Known are Omniglot and {FORMS}")
    return _described(path, among[0], content)


def _described(path: Path, tree: Tree, content: Content) -> list[str]:
    classes = {split: _counted(sources) for split, sources in content.splits()}
    lines = [f"{path}: {content.kind}; images {_shape(tree)}"]
    lines += [_counts(split, list(counts.values())) for split, counts in classes.items()]
    lines += [f"  {note}" for note in content.notes]
    if content.empty:
        lines.append(f"  {len(content.empty)} classes without an image: {listed(content.empty)}")
    dataset = "mini" if mini.is_mini(classes) else "folder"
    more = " --skip-small-classes" if content.empty else ""
    ratio = RATIO if {*content.parts} in ({ALL}, {"train"}) else None
    if ratio:
        more += f" --split-ratio {ratio}"
    elif "val" not in content.parts:
        lines.append("  no val: some of the training classes will validate")
    try:
        parts = {part: _counted(of) for part, of in divided(content, path, ratio, 0).splits()}
        more += _fitting(path, dataset, parts)
    except UserError as error:
        return [*lines, f"not to be trained on as it is: {error}"]
    return [*lines, _command(dataset, path, more)]


def _fitting(path: Path, dataset: str, parts: dict[str, dict[str, int]]) -> str:
    """Flags by which each part has classes and images enough for a task, where the usual ones ask
    for more. Raises UserError when none do."""
    cfg = Config.of(dataset=dataset)
    for part, counts in parts.items():
        if len(counts) < 2:
            raise UserError(f"{path} has 1 class in {part}, and a task takes 2: add more")
        if few := [name for name, count in counts.items() if count <= cfg.shots]:
            raise UserError(
                f"{path} has {len(few)} classes in {part} of fewer than {cfg.shots + 1} images: "
                f"{listed(few)}; add some, or remove these"
            )
    ways = min(map(len, parts.values()))
    targets = min(min(counts.values()) for counts in parts.values()) - cfg.shots
    given = f" --ways {ways}" if ways < cfg.ways else ""
    return given + (f" --targets {targets}" if targets < cfg.targets else "")


def _counted(sources: list[ClassSource]) -> dict[str, int]:
    return {source.name: source.count for source in sources}


def _command(dataset: str, path: Path, more: str = "") -> str:
    place = shlex.quote(str(path))
    return f"train on it: python -m engine.train --dataset {dataset} --data {place}{more}"


def _counts(part: str, counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    each = f"{low}" if low == high else f"{low} to {high}"
    return f"  {part:<10} {len(counts):>4} classes, {sum(counts):>6,} images, {each} a class"


def _shape(tree: Tree) -> str:
    """The sizes of some of the images, evenly picked."""
    names = [name for name in tree.names if is_image(name)]
    if not names:
        return "in arrays"
    sizes = set()
    for name in names[:: -(-len(names) // _SAMPLE)]:
        with opened(tree.read(name), tree.where(name)) as image:
            sizes.add(image.size)
    least, most = min(sizes), max(sizes)
    few = f"{least[0]}x{least[1]}"
    return few if least == most else f"of {len(sizes)} or more sizes, {few} to {most[0]}x{most[1]}"
