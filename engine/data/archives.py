"""Zip and tar archives as trees."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from engine.data.images import Unreadable
from engine.data.tree import Tree, stamp, visible
from engine.errors import UserError, explained

_DENSEST = 200  # unpacked bytes a byte of the archive: images hardly shrink, bombs do
_SLACK = 1 << 28  # bytes, for small archives
_UTF8 = 0x800  # of a zip member's flags
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by first bytes


def open_archive(path: Path) -> Tree:
    """Raises UserError when the file is no whole zip or tar archive, or a bomb."""
    with explained(f"cannot read {path}", "correct its permissions"):
        if zipfile.is_zipfile(path):
            return ZipTree(path)
        try:
            return TarTree(path)
        except tarfile.ReadError as error:
            raise UserError(
                f"{path} is neither a folder nor a whole zip or tar archive ({error}); get it again"
            ) from None


def _stamp(path: Path) -> list:
    found = path.stat()
    return [str(path.resolve()), found.st_size, *stamp(found)]


class ZipTree(Tree):
    def __init__(self, path: Path):
        self.path, self.odd, self.key = path, {}, _stamp(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{path} is no whole zip archive ({error}); get it again") from None
        members = self._archive.infolist()
        # As Windows writes them: backslashes between folders, which the format does not allow.
        slash = "/" if any("/" in m.filename for m in members) else "\\"
        self._members = {_inside(_named(m).replace(slash, "/")): m for m in members}
        _divide(self, {n: m.filename.endswith(slash) for n, m in self._members.items()})
        if (total := sum(map(self.size, self.names))) > (most := _most(path)):
            raise _bomb(path, most, total)

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"

    def size(self, name: str) -> int:
        return self._members[name].file_size

    def open(self, name: str) -> BinaryIO:
        try:
            return self._archive.open(self._members[name])
        except KeyError:
            raise Unreadable([f"{self.where(name)} is missing"]) from None
        except (RuntimeError, NotImplementedError) as error:  # encrypted, unknown compression
            fault = f"cannot read {self.where(name)} ({error})"
            raise Unreadable([fault], "unpack it first") from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise Unreadable([f"cannot read {self.where(name)} ({error})"]) from None

    def read(self, name: str) -> bytes:
        try:
            return super().read(name)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise Unreadable([f"cannot read {self.where(name)} ({error})"]) from None


class TarTree(Tree):
    """A compressed one is unpacked into a nameless temporary file, to be read in any order."""

    def __init__(self, path: Path):
        self.path, self.odd, self.key = path, {}, _stamp(path)
        self._lock = threading.Lock()  # one position in one file
        self._file = None
        try:
            self._file = _plain(path)
            self._archive = tarfile.open(fileobj=self._file, mode="r:")
            members = self._archive.getmembers()
        except (EOFError, zlib.error, lzma.LZMAError, UnicodeError, ValueError) as error:
            raise tarfile.ReadError(str(error)) from None
        self._members = {_inside(m.name): m for m in members}
        known = {}
        for name, member in self._members.items():
            if member.isfile() or member.isdir() or member.islnk():
                known[name] = member.isdir()
            else:
                self.odd.setdefault("links, pipes or devices in a tar archive", []).append(name)
        _divide(self, known)

    def __del__(self):
        if self._file is not None:
            self._file.close()

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"

    def size(self, name: str) -> int:
        if not self._members[name].islnk():
            return self._members[name].size
        with self._lock, self.open(name) as file:  # of what it is another name for
            return file.seek(0, 2)

    def open(self, name: str) -> BinaryIO:
        try:
            return self._archive.extractfile(self._members[name])
        except (KeyError, OSError, tarfile.TarError, RecursionError) as error:
            raise Unreadable([f"cannot read {self.where(name)} ({error})"]) from None

    def read(self, name: str) -> bytes:
        self._check_size(name)
        with self._lock:
            try:
                with self.open(name) as file:
                    return file.read()
            except (OSError, EOFError, tarfile.TarError) as error:
                raise Unreadable([f"cannot read {self.where(name)} ({error})"]) from None


def _plain(path: Path) -> BinaryIO:
    """The tar archive without its compression, if it has any."""
    with open(path, "rb") as file:
        head = file.read(6)
    opener = next((o for magic, o in _COMPRESSED.items() if head.startswith(magic)), None)
    if opener is None:
        return open(path, "rb")
    most, cure = _most(path), "make room for temporary files (TMPDIR), or unpack it yourself"
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryFile())
        with opener(path) as file:
            while block := file.read(1 << 20):
                with explained(f"cannot unpack {path}", cure):
                    whole.write(block)
                if whole.tell() > most:
                    raise _bomb(path, most)
        stack.pop_all()  # stays open
    whole.seek(0)
    return whole


def _most(path: Path) -> int:
    return path.stat().st_size * _DENSEST + _SLACK


def _bomb(path: Path, most: int, total: int | None = None) -> UserError:
    size = f"{total:,}" if total else f"more than {most:,}"
    return UserError(f"{path} unpacks to {size} bytes: no images but a bomb; remove it")


def _named(member: zipfile.ZipInfo) -> str:
    """As macOS and others write names: in UTF-8, without the flag that says so."""
    if not member.flag_bits & _UTF8:
        with contextlib.suppress(UnicodeError):
            return member.filename.encode("cp437").decode("utf-8")
    return member.filename


def _inside(name: str) -> str:
    """Without what unpacking leaves out: `./a//b` is a/b."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _divide(tree: Tree, names: dict[str, bool]) -> None:
    """Files and folders of an archive from its members: name → whether it is a folder."""
    shown = {name: folder for name, folder in names.items() if name and visible(name)}
    folders = {name for name, folder in shown.items() if folder}
    files = sorted(shown.keys() - folders)
    for name in files:
        while (name := name.rpartition("/")[0]) and name not in folders:
            folders.add(name)
    tree.names, tree.folders = tuple(files), tuple(sorted(folders - set(files)))
