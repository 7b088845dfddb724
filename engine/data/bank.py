"""The class bank: every image of a split, classes contiguous, uint8, in memory of this process.

One file in the cache holds all splits of a data set: the images, then a JSON footer, then a trailer
with the footer's digest and length. It is written under a temporary name and renamed when complete,
so a file under the final name is whole. Whoever opens it copies it, each class checked by its
digest: what another program does to the file afterwards changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from engine.allowed import PATH, check
from engine.data.images import Unreadable, suffixes
from engine.data.shelf import locked, shelve
from engine.errors import UserError, explained
from engine.files import make_folder
from engine.runs.locks import sync_folder
from kernels.pools import each

FORMAT = 3  # of the bank file and of how images are decoded: raise it to rebuild every cache
_CONTENT = 1  # of what the identity of a data set is made of
_MAGIC = b"mamlbank"
_TRAILER = 32 + 8 + len(_MAGIC)
_SHARE = 4  # of the machine's memory: a larger bank is copied into a nameless file


@dataclass(frozen=True)
class ClassBank:
    """Class c is ``images[starts[c] : starts[c + 1]]``."""

    images: Tensor  # uint8 [M, H, W, C]
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
class Content:
    """What lies at a path. ``splits()`` is lazy, so that one split is in memory at once."""

    kind: str  # how it was read, in words, for people
    splits: Callable[[], Splits]
    parts: tuple[str, ...]  # names of the splits
    notes: list[str] = field(default_factory=list)  # what was left out or decided in reading
    empty: tuple[str, ...] = ()  # classes without an image


@dataclass(frozen=True)
class Source:
    """Where a data set comes from."""

    place: str  # a later key of the same place makes an earlier one useless
    key: list  # JSON; changes whenever the content may have: paths, sizes, times, versions
    content: Callable[[], Content]


class Bank(NamedTuple):
    splits: dict[str, ClassBank]
    digest: str  # of names and images, whatever they were read from
    content: Content  # without its splits


def default_cache() -> Path:
    """Raises UserError when $MAMLPP_CACHE names no user's home."""
    place = os.environ.get("MAMLPP_CACHE") or "~/.cache/mamlpp"
    check("cache", place, PATH)
    return Path(place).expanduser()


def open_bank(
    source: Source,
    folder: Path,
    name: str,
    options: dict,
    accept: Callable[[Content], None] = lambda content: None,
) -> Bank:
    """The bank of a source.

    Reads it from the cache in ``folder`` when a whole file is there for this source and these
    options; otherwise builds it, and removes what it takes the place of. ``accept`` sees the
    content first and may raise. Raises UserError when the source cannot be read or the cache
    cannot be written, leaving nothing behind.
    """
    place = _digest([name, source.place, options])[:12]
    path = (
        folder
        / f"{name}-{place}-{_digest([FORMAT, PIL.__version__, suffixes(), source.key])[:20]}.bank"
    )
    found = read_bank(path)
    if found is None:
        content = source.content()
        accept(content)
        write_bank(path, content, label=name)
        shelve(path)
        found = read_bank(path)
    if found is None:
        raise UserError(
            f"the image cache {path} does not read back as it was written: the disk is failing or "
            "another program changes it; name another folder with --cache"
        )
    accept(found.content)
    with contextlib.suppress(OSError):
        os.utime(path)  # by which unused ones are told
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_bank(path: Path, content: Content, label: str) -> None:
    """Writes every class in order to a temporary file and renames it to ``path``."""
    make_folder(path.parent, "the image cache in", "--cache")
    cure = "make room or allow writing there, or name another folder with --cache"
    with explained(f"cannot write the image cache in {path.parent}", cure):
        with locked(path) as (file, temporary), _progress(label) as bar:
            footer = {
                "content": _write_splits(file, content.splits(), bar),
                "format": FORMAT,
                "kind": content.kind,
                "notes": content.notes,
                "empty": content.empty,
                "name": path.name,
            }
            body = json.dumps(footer).encode()
            trailer = hashlib.sha256(body).digest() + len(body).to_bytes(8, "little") + _MAGIC
            file.write(body + trailer)
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # which renames no open file
                file.close()
            os.replace(temporary, path)
        sync_folder(path.parent)


def _write_splits(file, splits: Splits, bar: tqdm) -> dict:
    """Raises Unreadable, once all were looked at, with every image that cannot be used."""
    content: dict = {"format": _CONTENT, "shape": None, "splits": {}}
    unreadable: list[Unreadable] = []
    for split, classes in splits:
        written = content["splits"][split] = {
            "names": [source.name for source in classes],
            "counts": [source.count for source in classes],
            "digests": [],
        }
        while classes:  # each goes when it is done: no two splits are in memory
            source = classes.pop(0)
            try:
                images = np.ascontiguousarray(source.read())
            except Unreadable as error:
                unreadable.append(error)
            bar.update(source.count)
            if not unreadable:
                content["shape"] = content["shape"] or list(images.shape[1:])
                assert images.dtype == np.uint8, images.dtype
                assert images.shape == (source.count, *content["shape"]), (
                    source.name,
                    images.shape,
                )
                data = images.reshape(-1).data
                written["digests"].append(hashlib.sha256(data).hexdigest())
                file.write(data)
            del source
    if unreadable:
        faults = [fault for error in unreadable for fault in error.faults]
        raise Unreadable(faults, unreadable[0].cure)
    return content


def read_bank(path: Path) -> Bank | None:
    """A copy of the bank in a file; None if it is absent or not whole."""
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read the image cache {path}: it is no file; remove it")
    try:
        with open(path, "rb") as file:
            footer, size = _read_footer(file)
            if footer is None or (footer["format"], footer["name"]) != (FORMAT, path.name):
                return None
            content = footer["content"]
            shape, splits = content["shape"], content["splits"]
            images = sum(sum(split["counts"]) for split in splits.values())
            if images * int(np.prod(shape)) != size:
                return None
            room = _room(size, path.parent)
            banks = _divide(room, shape, splits)
            if not _copy(path, banks, splits):
                return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"cannot read the image cache {path}: {error.strerror}; correct its permissions or "
            "name another folder with --cache"
        ) from None
    told = Content(footer["kind"], tuple, tuple(splits), footer["notes"], tuple(footer["empty"]))
    return Bank(banks, hashlib.sha256(json.dumps(content).encode()).hexdigest(), told)


def _read_footer(file) -> tuple[dict | None, int]:
    """The footer, and how many bytes of images lie before it; None if it is not whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TRAILER))
    trailer = file.read()
    length = int.from_bytes(trailer[32:40], "little")
    if trailer[40:] != _MAGIC or length > size - _TRAILER:
        return None, 0
    file.seek(size - _TRAILER - length)
    body = file.read(length)
    if hashlib.sha256(body).digest() != trailer[:32]:
        return None, 0
    return json.loads(body), size - _TRAILER - length


def _room(size: int, folder: Path) -> np.ndarray:
    """uint8 [size] that no other process reaches: memory, or a file without a name where that
    would take too much of it."""
    if size <= _memory() // _SHARE:
        return np.empty(size, np.uint8)
    cure = f"make room for {size:,} bytes there, or name another folder with --cache"
    with explained(f"cannot hold the images in {folder}", cure):
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a bus error
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=(size,))


def _memory() -> int:
    """Bytes of the machine, or of the container that this process is in."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told, as on Windows
        whole = 1 << 33
    with contextlib.suppress(OSError, ValueError):
        whole = min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return whole


def _divide(room: np.ndarray, shape: list[int], splits: dict) -> dict[str, ClassBank]:
    banks, offset = {}, 0
    for split, content in splits.items():
        starts = np.cumsum([0, *content["counts"]], dtype=np.int64)
        count = int(starts[-1])
        images = room[offset : offset + count * int(np.prod(shape))].reshape(count, *shape)
        offset += images.size
        banks[split] = ClassBank(
            torch.from_numpy(images), torch.from_numpy(starts), tuple(content["names"])
        )
    return banks


def _copy(path: Path, banks: dict[str, ClassBank], splits: dict) -> bool:
    """Reads every class into its place; False when one is not what its digest says."""

    def read(item: tuple[memoryview, int, str]) -> bool:
        place, offset, digest = item
        with open(path, "rb") as file:
            file.seek(offset)
            whole = file.readinto(place) == len(place)
        return whole and hashlib.sha256(place).hexdigest() == digest

    items, offset = [], 0
    for split, bank in banks.items():
        for c, digest in enumerate(splits[split]["digests"]):
            images = bank.images[bank.starts[c] : bank.starts[c + 1]].numpy()
            items.append((images.reshape(-1).data, offset, digest))
            offset += images.size
    return all(each(read, items))


@contextlib.contextmanager
def _progress(label: str) -> Iterator[tqdm]:
    with tqdm(desc=f"reading {label}", unit=" images", disable=None, leave=False) as bar:
        yield bar
