"""Data sets as class banks: Omniglot, mini-ImageNet, pictures of one's own, a generated stand-in.

``python -m engine.data fetch omniglot|mini`` downloads, ``python -m engine.data info PATH`` says
what it sees, ``python -m engine.data cache`` what is kept of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.allowed import PATH, RATIO, check
from engine.config import CHANNELS, DATASETS, SPLITS
from engine.data import mini, omniglot, recognise, standin
from engine.data.bank import Bank, ClassBank, Content, default_cache, open_bank
from engine.data.layout import OwnSplits
from engine.data.preparation import Preparation
from engine.errors import UserError, explained, listed, printable

__all__ = ["ClassBank", "Dataset", "default_path", "load"]


@dataclass(frozen=True)
class Dataset:
    """Banks of train, val and test; the network sees ``(value * scale - mean) / std``."""

    # omniglot, mini, mini-standin, folder:<name>; omniglot-like:<name> and mini-like:<name> where
    # the classes are not theirs
    name: str
    banks: dict[str, ClassBank]
    scale: float
    mean: tuple[float, ...]  # per channel, as std
    std: tuple[float, ...]
    identity: str  # of the content: the same for the same data wherever it lies
    notice: str | None = None  # to be shown before anything else is
    notes: tuple[str, ...] = ()  # what was left out or decided in reading it, a line each


def default_path(dataset: str) -> Path:
    """Where data is fetched to, and looked for when no path is given."""
    return Path("datasets") / dataset


def load(
    dataset: str,
    path: str | Path | None = None,
    *,
    image_size: int,
    channels: int,
    split: str = "paper",
    seed: int = 0,
    strict: bool = False,
    cache: str | Path | None = None,
    split_ratio: str | None = None,
    skip_small: bool = False,
    preparation: Preparation | None = None,
) -> Dataset:
    """The data set at ``path`` (None: ``default_path``), decoded into a cached class bank.

    ``split`` (paper, background) and ``seed`` choose Omniglot's classes; ``split_ratio`` (as
    ``64/16/20``) and ``seed`` divide the classes of data without splits. When mini has no path and
    nothing lies at its default, the result is the stand-in, with its ``notice``; ``strict`` makes
    that an error. A class all of whose images are left out is one, too, unless ``skip_small``.
    ``preparation``, of this size and channels: how images become what a network sees, if not as its
    kind of data has it.
    Raises UserError when data is missing, incomplete or broken, or the cache (None: $MAMLPP_CACHE
    or ~/.cache/mamlpp) cannot be written.
    """
    check("dataset", dataset, DATASETS)
    check("channels", channels, CHANNELS)
    check("image_size", image_size, ">= 1")
    check("split", split, SPLITS)
    check("split_ratio", split_ratio, RATIO)
    cache = default_cache() if cache is None else cache
    check("cache", cache, PATH)
    check("data", path, PATH)
    place = _existing(dataset, path)
    usual = Preparation.of(dataset, image_size, channels)
    seen = preparation or usual
    assert (seen.size, seen.channels) == (image_size, channels), seen
    options = {"size": image_size, "channels": channels}
    if seen.binary != usual.binary:
        options["binary"] = seen.binary

    def accept(content: Content) -> None:
        if content.empty and not skip_small:
            raise UserError(
                f"{place} has {len(content.empty)} classes without an image that can be read: "
                f"{listed(content.empty)}; remove them, or leave them out by --skip-small-classes"
            )

    if place is None:
        if strict:
            raise UserError(f"--strict-data: no data at {default_path(dataset)}; {mini.WAYS}")
        if split_ratio is not None:
            raise OwnSplits(split_ratio, "the generated stand-in")
        source, notice = standin.open_source(seen), standin.NOTICE
    elif dataset == "omniglot":
        source, notice = omniglot.open_source(place, seen, split, seed), None
        options |= {"split": split, "seed": seed}
    else:
        unknown = partial(_unknown, dataset, place)
        source = recognise.open_source(place, seen, split_ratio, seed, unknown)
        options |= {"ratio": split_ratio, "seed": seed}
        notice = None
    folder = Path(cache).expanduser()
    label = standin.NAME if place is None else dataset
    bank = open_bank(source, folder, label, options, accept)
    return _dataset(dataset, place, bank, seen, notice)


def _unknown(dataset: str, place: Path) -> str:
    """What to do about content in no form that is known."""
    if omniglot.find(place, omniglot.trees(place)):
        return "it is Omniglot: give --dataset omniglot"
    return mini.WAYS if dataset == "mini" else f"known are {recognise.FORMS}"


def _dataset(
    kind: str, place: Path | None, bank: Bank, seen: Preparation, notice: str | None
) -> Dataset:
    scale, mean, std = seen.scale, seen.mean, seen.std
    digest = json.dumps([bank.digest, scale, mean, std]).encode()
    identity = hashlib.sha256(digest).hexdigest()[:32]
    notes = tuple(bank.content.notes)
    if bank.content.empty:
        left = f"{len(bank.content.empty)} classes without an image"
        notes += (f"left out: {left} ({listed(bank.content.empty, 3)})",)
    name = _name(kind, place, bank.splits)
    return Dataset(name, bank.splits, scale, mean, std, identity, notice, notes)


def _name(kind: str, place: Path | None, banks: dict[str, ClassBank]) -> str:
    """A published name only for what bears it: figures are compared by it."""
    if place is None:
        return standin.NAME
    counts = {split: _counted(bank) for split, bank in banks.items()}
    if kind == "mini" and mini.is_mini(counts) or kind == "omniglot" and omniglot.is_it(counts):
        return kind
    whole = place.resolve()
    name = whole.name if whole.is_dir() else whole.stem.removesuffix(".tar")
    return f"{kind}{'' if kind == 'folder' else '-like'}:{printable(name)}"


def _counted(bank: ClassBank) -> dict[str, int]:
    return dict(zip(bank.names, bank.counts.tolist(), strict=True))


def _existing(dataset: str, path: str | Path | None) -> Path | None:
    """The path if something is there; None if mini may be replaced by the stand-in."""
    if path is None and dataset == "folder":
        raise UserError("--dataset folder needs --data: name a folder or zip archive of images")
    place = Path(path).expanduser() if path is not None else default_path(dataset)
    with explained(f"cannot read {place}", "correct its permissions"):
        found = any(place.iterdir()) if place.is_dir() else place.exists()
    if found:
        return place
    if dataset == "mini" and path is None:
        return None
    state = "is empty" if place.is_dir() else "does not exist"
    ways = {
        "omniglot": "get it by `python -m engine.data fetch omniglot`, or correct --data",
        "mini": mini.WAYS,
        "folder": "correct --data",
    }
    raise UserError(f"{place} {state}; {ways[dataset]}")
