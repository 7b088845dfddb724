"""The regular files below a folder or inside an archive, and where they lie.

Nothing is ever extracted to where a member's name says, so a name can do no more than name a class.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from engine.data.images import Unreadable, all_of
from engine.errors import UserError, explained

if TYPE_CHECKING:
    from engine.data.preparation import Preparation

LARGEST_FILE = 1 << 28  # bytes; a larger "image" is a mistake or a decompression bomb
_MOST_VISITS = 1000  # of one folder, by links to it: more is a tangle without end
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
# What file managers, network drives and Windows leave.
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_LITTER |= {"@eadir", "$recycle.bin", "system volume information"}


class Tree:
    """``names``: sorted posix paths relative to the root; ``folders``: of the folders likewise.

    Hidden files and what file managers leave are not there; ``odd`` says what else is not: a reason
    in words → names.
    """

    path: Path
    names: tuple[str, ...]
    folders: tuple[str, ...]
    odd: dict[str, list[str]]
    key: list  # JSON; changes when a file does

    def open(self, name: str) -> BinaryIO:
        """Raises Unreadable when the file is missing, encrypted or corrupt."""
        raise NotImplementedError

    def size(self, name: str) -> int:
        """In bytes, once unpacked."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """The whole file; raises Unreadable as ``open``, and when it is too large for an image."""
        self._check_size(name)
        with self.open(name) as file:
            return file.read()

    def _check_size(self, name: str) -> None:
        if (size := self.size(name)) > LARGEST_FILE:
            raise Unreadable([f"{self.where(name)} has {size:,} bytes: no image"], "remove it")

    def where(self, name: str) -> str:
        return f"{self.path}/{name}"

    def images(self, names: Iterable[str], seen: Preparation) -> np.ndarray:
        """uint8 [len(names), size, size, channels]. Raises Unreadable with all that are broken."""
        return all_of(lambda n: seen.decode(self.read(n), self.where(n)), names)


class FolderTree(Tree):
    """Follows links; a file is there by every name that leads to it."""

    def __init__(self, path: Path):
        self.path = path
        self.odd = {}
        self._files: dict[str, tuple[int, ...]] = {}  # size and `stamp`
        folders: list[str] = []
        self._walk(folders)
        self._files = dict(sorted(self._files.items()))
        self.names, self.folders = tuple(self._files), tuple(sorted(folders))
        listing = repr((self._files, self.folders)).encode("utf-8", "surrogatepass")
        self.key = [str(path.resolve()), hashlib.sha256(listing).hexdigest()]

    def _walk(self, folders: list[str]) -> None:
        """Raises UserError on what cannot be listed, and where links lead to ever more folders."""
        cure = "correct its permissions or remove it"
        with explained(f"cannot read {self.path}", cure):
            root = os.stat(self.path)
        visits: dict[tuple[int, int], int] = {}
        # a folder, what the names in it begin with, the identities of it and those it lies in
        waiting = [(str(self.path), "", ((root.st_dev, root.st_ino), ()))]
        while waiting:
            folder, prefix, chain = waiting.pop()
            visits[chain[0]] = visits.get(chain[0], 0) + 1
            if visits[chain[0]] > _MOST_VISITS:
                raise UserError(
                    f"links below {self.path} lead to {folder} in more than {_MOST_VISITS} ways; "
                    "remove some"
                )
            with explained(f"cannot read {folder}", cure), os.scandir(folder) as entries:
                inside = [entry for entry in entries if _shown(entry.name)]
            for entry in inside:
                name = prefix + entry.name
                try:
                    found = entry.stat()
                except OSError as error:
                    self._left_out(f"links that lead nowhere ({error.strerror})", name)
                    continue
                identity = (found.st_dev, found.st_ino)
                if stat.S_ISREG(found.st_mode):
                    self._files[name] = found.st_size, *stamp(found)
                elif not stat.S_ISDIR(found.st_mode):
                    self._left_out("pipes, sockets or devices", name)
                elif _contains(chain, identity):
                    self._left_out("links to a folder that they lie in", name)
                else:
                    folders.append(name)
                    waiting.append((entry.path, f"{name}/", (identity, chain)))

    def _left_out(self, reason: str, name: str) -> None:
        self.odd.setdefault(reason, []).append(name)

    def size(self, name: str) -> int:
        return self._files[name][0]

    def open(self, name: str) -> BinaryIO:
        file = self.path / name
        try:
            # not waited for, should a pipe have taken its place
            descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
            return os.fdopen(descriptor, "rb")
        except OSError as error:
            raise Unreadable([f"cannot read {file} ({error.strerror})"]) from None

    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        except OSError as error:
            raise Unreadable([f"cannot read {self.where(name)} ({error.strerror})"]) from None


def open_tree(path: Path) -> Tree:
    """The folder, or the zip or tar archive. Raises UserError when it is neither, or not whole."""
    from engine.data import archives  # which are trees

    with explained(f"cannot read {path}", "check the path and its permissions"):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return FolderTree(path)
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe, socket or device; name a folder, zip or tar archive")
    return archives.open_archive(path)


def stamp(found: os.stat_result) -> tuple[int, ...]:
    """What tells that a file is not the one that was read: when its content and when its entry
    were changed, and its number, as files of one size may be unpacked with one time.
    """
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def visible(name: str) -> bool:
    """Whether no part of a path is hidden, or left by a file manager."""
    return all(map(_shown, name.split("/")))


def _shown(part: str) -> bool:
    return not part.startswith((".", "__MACOSX")) and part.lower() not in _LITTER


def _contains(chain: tuple, identity: tuple[int, int]) -> bool:
    while chain:
        if chain[0] == identity:
            return True
        chain = chain[1]
    return False
