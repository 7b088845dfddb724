"""The class bank: every image of a split, classes contiguous, uint8, memory-mapped from a cache.

One file holds all splits of a data set: the images, then a JSON footer, then a trailer with the
footer's digest and length. It is written under a temporary name and renamed when complete, so a
file under the final name is whole; each class carries a digest, checked whenever it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.errors import UserError, explained
from kernels.pools import each

FORMAT = 1  # of the bank file and of how images are decoded: raise it to rebuild every cache
_MAGIC = b"mamlbank"
_TRAILER = 32 + 8 + len(_MAGIC)
_STALE = 3600.0  # seconds after which an unfinished temporary file belongs to no live process


@dataclass(frozen=True)
class ClassBank:
    """Class c is ``images[starts[c] : starts[c + 1]]``."""

    images: Tensor  # uint8 [M, H, W, C], memory-mapped
    starts: Tensor  # int64 [classes + 1]
    names: tuple[str, ...]

    @property
    def counts(self) -> Tensor:
        """int64 [classes]: images of each class."""
        return self.starts.diff()


@dataclass(frozen=True)
class ClassSource:
    """A class that can be read: ``read()`` gives uint8 [count, H, W, C] or raises UserError."""

    name: str
    count: int
    read: Callable[[], np.ndarray]


Splits = Iterable[tuple[str, list[ClassSource]]]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from. ``splits()`` is lazy, so that one split is in memory at once."""

    kind: str  # in words, for people
    key: list  # JSON; changes whenever the content may have: paths, sizes, times, versions
    splits: Callable[[], Splits]


def default_cache() -> Path:
    return Path(os.environ.get("MAMLPP_CACHE") or Path.home() / ".cache" / "mamlpp")


def open_bank(
    source: Source,
    folder: Path,
    name: str,
    options: dict,
) -> tuple[dict[str, ClassBank], str]:
    """The banks of a source, by split, and the digest of their content.

    Reads them from the cache in ``folder`` when a whole file is there for this source and these
    options; otherwise builds it. Raises UserError when the source cannot be read or the cache
    cannot be written, leaving nothing behind.
    """
    key = json.dumps([FORMAT, name, source.key, options], sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.bank"
    found = read_bank(path)
    if found is None:
        write_bank(path, source.splits(), label=name)
        found = read_bank(path)
    if found is None:
        raise UserError(
            f"the image cache {path} does not read back as it was written: the disk is failing or "
            "another program changes it; name another folder with --cache"
        )
    return found


def write_bank(path: Path, splits: Splits, label: str) -> None:
    """Writes every class in order to a temporary file and renames it to ``path``."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    cure = "make room or allow writing there, or name another folder with --cache"
    try:
        with explained(f"cannot write the image cache in {path.parent}", cure):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path)
            with open(temporary, "xb") as file, _progress(label) as bar:
                footer = _write_classes(file, splits, bar)
                body = json.dumps(footer).encode()
                trailer = hashlib.sha256(body).digest() + len(body).to_bytes(8, "little") + _MAGIC
                file.write(body + trailer)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_classes(file, splits: Splits, bar: tqdm) -> dict:
    footer: dict = {"format": FORMAT, "shape": None, "splits": {}}
    for split, classes in splits:
        digests = []
        for source in classes:
            images = np.ascontiguousarray(source.read())
            footer["shape"] = footer["shape"] or list(images.shape[1:])
            assert images.dtype == np.uint8, images.dtype
            assert images.shape == (source.count, *footer["shape"]), (source.name, images.shape)
            data = images.reshape(-1).data
            digests.append(hashlib.sha256(data).hexdigest())
            file.write(data)
            bar.update(source.count)
        footer["splits"][split] = {
            "names": [source.name for source in classes],
            "counts": [source.count for source in classes],
            "digests": digests,
        }
    return footer


def read_bank(path: Path) -> tuple[dict[str, ClassBank], str] | None:
    """The banks in a file, memory-mapped, and their digest; None if it is absent or not whole."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TRAILER))
            trailer = file.read()
            length = int.from_bytes(trailer[32:40], "little")
            if trailer[40:] != _MAGIC or length > size - _TRAILER:
                return None
            file.seek(size - _TRAILER - length)
            body = file.read(length)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"cannot read the image cache {path}: {error.strerror}; correct its permissions or "
            "name another folder with --cache"
        ) from None
    if hashlib.sha256(body).digest() != trailer[:32]:
        return None
    footer = json.loads(body)
    shape, splits = footer["shape"], footer["splits"]
    images = sum(sum(split["counts"]) for split in splits.values())
    if footer["format"] != FORMAT or images * int(np.prod(shape)) != size - _TRAILER - length:
        return None
    banks = _map(path, shape, splits)
    return (banks, trailer[:32].hex()) if _is_whole(banks, splits) else None


def _map(path: Path, shape: list[int], splits: dict) -> dict[str, ClassBank]:
    banks, offset = {}, 0
    for split, content in splits.items():
        starts = np.cumsum([0, *content["counts"]], dtype=np.int64)
        # copy-on-write, because torch wants memory it may write; the file itself never changes
        images = np.memmap(path, np.uint8, "c", offset, shape=(int(starts[-1]), *shape))
        offset += images.size
        banks[split] = ClassBank(
            torch.from_numpy(images), torch.from_numpy(starts), tuple(content["names"])
        )
    return banks


def _is_whole(banks: dict[str, ClassBank], splits: dict) -> bool:
    """Compares the digest of every class; this also brings the file into the page cache."""

    def check(item: tuple[ClassBank, int, str]) -> bool:
        bank, c, digest = item
        images = bank.images[bank.starts[c] : bank.starts[c + 1]].numpy()
        return hashlib.sha256(images.reshape(-1).data).hexdigest() == digest

    items = (
        (bank, c, digest)
        for split, bank in banks.items()
        for c, digest in enumerate(splits[split]["digests"])
    )
    return all(each(check, items))


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where folders can be opened at all."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _progress(label: str) -> Iterator[tqdm]:
    with tqdm(desc=f"reading {label}", unit=" images", disable=None, leave=False) as bar:
        yield bar
