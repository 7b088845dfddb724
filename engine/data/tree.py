"""The files below a folder or inside a zip archive, read in memory, and images decoded from them.

Nothing is ever extracted, so a member's name can do no more than name a class.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from engine.data.bank import ClassSource
from engine.errors import UserError, explained
from kernels.pools import each

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_LARGEST_FILE = 1 << 28  # bytes; a larger "image" is a mistake or a decompression bomb
_LARGEST_IMAGE = 1 << 26  # pixels
_BROKEN = (  # what PIL raises on files that are not what they claim
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# as PIL advises; here and not where images are opened, which threads do
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Tree:
    """``names``: sorted posix paths relative to the root. Hidden files are left out."""

    def __init__(self, path: Path):
        self.path = path
        self._archive = None
        if path.is_dir():
            self.names = tuple(sorted(_walk(path)))
            return
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; check the path") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(
                f"{path} is neither a folder nor a whole zip archive ({error}); get it again"
            ) from None
        members = (m.filename for m in self._archive.infolist() if not m.is_dir())
        self.names = tuple(sorted({name for name in members if not _hidden(name)}))

    @cached_property
    def key(self) -> list:
        """Path, size and time of all that is read, for the cache."""
        if self._archive is not None:
            return [_stamp(self.path)]
        return [str(self.path.resolve()), [_stamp(self.path / n)[1:] + [n] for n in self.names]]

    def read(self, name: str) -> bytes:
        """Raises UserError when the file is missing, too large, encrypted or corrupt."""
        try:
            if self._archive is None:
                file = self.path / name
                size, read = file.stat().st_size, file.read_bytes
            else:
                member = self._archive.getinfo(name)
                size, read = member.file_size, partial(self._archive.read, member)
            if size > _LARGEST_FILE:
                raise UserError(f"{self.where(name)} has {size:,} bytes: no image; remove it")
            return read()
        except KeyError:
            raise UserError(f"{self.where(name)} is missing; get the archive again") from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"cannot read {self.where(name)} ({error}); get it again") from None
        except (RuntimeError, NotImplementedError) as error:  # encrypted, unknown compression
            raise UserError(f"cannot read {self.where(name)} ({error}); unpack it first") from None

    def where(self, name: str) -> str:
        return f"{self.path}{':' if self._archive else '/'}{name}"

    def images(self, names: Iterable[str], size: int, channels: int) -> np.ndarray:
        """uint8 [len(names), size, size, channels]."""
        return np.stack(
            each(lambda name: decode(self.read(name), self.where(name), size, channels), names)
        )


def split_classes(tree: Tree) -> dict[str, dict[str, list[str]]] | None:
    """``<split>/<class>/<image>`` below any folder: split → class → file names, sorted.

    None when no file lies so. Raises UserError when a split is missing or a class is in two.
    """
    found: dict[str, dict[str, list[str]]] = {}
    roots = set()
    for name in tree.names:
        *root, folder, label, file = ("", "", *name.split("/"))
        split = next((s for s, also in SPLITS.items() if folder.lower() in also), None)
        if split and file.lower().endswith(SUFFIXES):
            roots.add("/".join(root))
            found.setdefault(split, {}).setdefault(label, []).append(name)
    if not found:
        return None
    if len(roots) > 1:
        raise UserError(
            f"{tree.path} holds several data sets, in {_some(r.strip('/') or '.' for r in roots)}; "
            "name the folder of one of them"
        )
    require_splits(tree.path, found)
    found = {split: found[split] for split in SPLITS}
    require_disjoint(tree.path, found)
    return found


def require_splits(path: Path, found: Iterable[str]) -> None:
    if missing := SPLITS.keys() - set(found):
        raise UserError(
            f"{path} has no images for {_some(missing)}: train, val and test are all needed, each "
            "as a folder of class folders; add what is missing"
        )


def require_disjoint(path: Path, found: dict[str, Iterable[str]]) -> None:
    """A class seen in training would make the test accuracy worthless."""
    first: dict[str, str] = {}
    for split, names in found.items():
        for name in names:
            if first.setdefault(name, split) != split:
                raise UserError(
                    f"{path}: class {name!r} is in {first[name]} and in {split}, but few-shot "
                    "splits share no class; move it, or rename it if these are different classes"
                )


def class_sources(
    tree: Tree,
    classes: dict[str, list[str]],
    size: int,
    channels: int,
) -> list[ClassSource]:
    return [
        ClassSource(label, len(names), lambda names=names: tree.images(names, size, channels))
        for label, names in sorted(classes.items())
    ]


def decode(data: bytes, where: str, size: int, channels: int) -> np.ndarray:
    """An image as uint8 [size, size, channels], by Lanczos if its size differs (not cropped)."""
    with opened(data, where) as image:
        return to_array(image, size, channels)


@contextlib.contextmanager
def opened(
    data: bytes,
    where: str,
    formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP"),
    cure: str = "get it again",
) -> Iterator[Image.Image]:
    """The image, of which only the header has been read.

    Raises UserError when it is too large, of another format or broken, the last also from the block
    that reads its pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > _LARGEST_IMAGE:
                raise UserError(
                    f"{where} is {image.width}x{image.height}: too large; shrink it first"
                )
            yield image
    except _BOMB as error:
        raise UserError(f"{where} is too large ({error}); shrink it first") from None
    except _BROKEN as error:
        reason = "an empty file" if not data else str(error).split(" <_io")[0]
        raise UserError(f"{where} is not a whole image ({reason}); {cure}") from None


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip instead of scale
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, channels)


def fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """uint8 [n, h, w, 3] to [n, size, size, channels]."""
    if images.shape[1:] == (size, size, channels):
        return images
    return np.stack([to_array(Image.fromarray(i), size, channels) for i in images])


def stamps(paths: Iterable[Path]) -> list:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> list:
    with explained(f"cannot read {path}", "correct or remove it"):
        stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _walk(root: Path) -> Iterable[str]:
    """Follows links to folders, each folder once, so that a loop of links ends."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; correct its permissions")

    for folder, inner, files in os.walk(root, followlinks=True, onerror=refuse):
        seen.add(os.path.realpath(folder))
        inner[:] = sorted(d for d in inner if os.path.realpath(os.path.join(folder, d)) not in seen)
        below = Path(folder).relative_to(root)
        yield from (n for file in files if not _hidden(n := (below / file).as_posix()))


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
