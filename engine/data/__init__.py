"""Data sets as class banks: Omniglot, mini-ImageNet, any image folder, and a generated stand-in.

``python -m engine.data fetch omniglot|mini`` downloads, ``python -m engine.data info PATH`` says
what it sees.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from engine.config import CHANNELS, DATASETS, PATH, SPLITS, check
from engine.data import folder, mini, omniglot, standin
from engine.data.bank import ClassBank, Source, default_cache, open_bank
from engine.errors import UserError, explained

__all__ = ["ClassBank", "Dataset", "default_path", "load"]

_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation over ImageNet
_GREY = (0.449,), (0.226,)  # their means
_BINARY = (0.0,), (1.0,)


@dataclass(frozen=True)
class Dataset:
    """Banks of train, val and test; the network sees ``(value * scale - mean) / std``."""

    name: str  # omniglot, mini, mini-standin or folder:<name>
    banks: dict[str, ClassBank]
    scale: float
    mean: tuple[float, ...]  # per channel, as std
    std: tuple[float, ...]
    identity: str  # of the content: the same for the same data wherever it lies
    notice: str | None = None  # to be shown before anything else is


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
) -> Dataset:
    """The data set at ``path`` (None: ``default_path``), decoded into a cached class bank.

    ``split`` (paper, background) and ``seed`` choose Omniglot's classes. When mini has no path and
    nothing lies at its default, the result is the stand-in, with its ``notice``; ``strict`` makes
    that an error. Raises UserError when data is missing, incomplete or broken, or the cache
    (None: $MAMLPP_CACHE or ~/.cache/mamlpp) cannot be written.
    """
    check("dataset", dataset, DATASETS)
    check("channels", channels, CHANNELS)
    check("image_size", image_size, ">= 1")
    check("split", split, SPLITS)
    check("cache", cache, PATH)
    check("data", path, PATH)
    place = _existing(dataset, path)
    options = {"size": image_size, "channels": channels}
    name, notice = dataset, None
    if place is None:
        if strict:
            raise UserError(f"--strict-data: no data at {default_path(dataset)}; {mini.WAYS}")
        source = standin.open_source(image_size, channels)
        name, notice = standin.NAME, standin.NOTICE
    elif dataset == "omniglot":
        source = omniglot.open_source(place, image_size, channels, split, seed)
        options |= {"split": split, "seed": seed}
    elif dataset == "mini":
        source = mini.open_source(place, image_size, channels)
    else:
        source = folder.open_source(place, image_size, channels)
        name = f"folder:{place.resolve().stem if place.is_file() else place.resolve().name}"
    return _dataset(name, source, Path(cache) if cache else default_cache(), options, notice)


def _dataset(
    name: str,
    source: Source,
    cache: Path,
    options: dict,
    notice: str | None,
) -> Dataset:
    banks, digest = open_bank(source, cache.expanduser(), name.partition(":")[0], options)
    binary = name == "omniglot"
    mean, std = _BINARY if binary else _RGB if options["channels"] == 3 else _GREY
    mean, std = mean * (options["channels"] // len(mean)), std * (options["channels"] // len(std))
    scale = 1.0 if binary else 1 / 255
    content = json.dumps([digest, scale, mean, std]).encode()
    identity = hashlib.sha256(content).hexdigest()[:32]
    return Dataset(name, banks, scale, mean, std, identity, notice)


def _existing(dataset: str, path: str | Path | None) -> Path | None:
    """The path if something is there; None if mini may be replaced by the stand-in."""
    if path is None and dataset == "folder":
        raise UserError("--dataset folder needs --data: name a folder or zip archive of images")
    place = Path(path).expanduser() if path is not None else default_path(dataset)
    with explained(f"cannot read {place}", "correct its permissions"):
        found = place.is_file() or (place.is_dir() and any(place.iterdir()))
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
