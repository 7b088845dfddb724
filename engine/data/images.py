"""Pictures of any kind as uint8 arrays of one shape: what Pillow reads, as a viewer would show it.

Alpha lies on white, a camera's orientation is applied, and more than 8 bits are brought to 8 by the
bits that the values of the file take.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from engine.errors import UserError, printable
from kernels.pools import each

T = TypeVar("T")
# Not pictures, or drawn by another program: nothing is started to read a file.
_OTHERS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_LARGEST_IMAGE = 1 << 26  # pixels
_LARGE = 1 << 22  # pixels: of images with more, one is decoded at a time, and one
BEYOND = 0.1  # 0 and 1, which fractions may be by a resampling, and are cut off
_LEAST = 4.0  # of numbers up to 255 the largest is more
_DENSEST = 900  # times the size of its file is no picture but a decompression bomb
_FLAT = ("WEBP", "AVIF")  # to which a drawing of any size is a few bytes
_BROKEN = (  # what PIL raises on files that are not what they claim
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_one_large = threading.Lock()
# as PIL advises; here and not where images are opened, which threads do
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Unreadable(UserError):
    """Files that cannot be used, all of them: ``faults`` says of each in words which and why."""

    def __init__(self, faults: list[str], cure: str = "get it again"):
        self.faults, self.cure = faults, cure
        if len(faults) == 1:
            super().__init__(f"{faults[0]}; {cure}")
            return
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        first = "; ".join(map(printable, faults[:10]))
        super().__init__(f"{len(faults)} images cannot be used: {first}{more}; correct them")


@cache
def suffixes() -> tuple[str, ...]:
    """The endings, lower case, of the names of files that Pillow reads as pictures."""
    known = Image.registered_extensions()  # loads every plugin
    return tuple(sorted(end for end, kind in known.items() if kind in _formats()))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - _OTHERS))


def is_image(name: str) -> bool:
    """By the ending of a file's name."""
    return name.lower().endswith(suffixes())


def all_of(read: Callable[[T], np.ndarray], items: Iterable[T]) -> np.ndarray:
    """What ``read`` makes of each item, stacked. Raises Unreadable with the faults of them all."""

    def tried(item: T) -> np.ndarray | Unreadable:
        try:
            return read(item)
        except Unreadable as error:
            return error

    results = each(tried, items)
    if faulty := [result for result in results if isinstance(result, Unreadable)]:
        raise Unreadable([fault for error in faulty for fault in error.faults], faulty[0].cure)
    return np.stack(results)


def decoded(data: bytes, where: str, make: Callable[[Image.Image], T]) -> T:
    """What ``make`` makes of the image of 8 bits in a file. Raises Unreadable as ``opened``."""
    with opened(data, where) as image:
        large = image.width * image.height > _LARGE
        with _one_large if large else contextlib.nullcontext():
            return make(_eight_bits(image, data, where))


@contextlib.contextmanager
def opened(
    data: bytes,
    where: str,
    formats: tuple[str, ...] | None = None,
    cure: str = "get it again",
) -> Iterator[Image.Image]:
    """The image, of which only the header has been read.

    Raises Unreadable when it is too large, of another format or broken, the last also from the
    block that reads its pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats or _formats()) as image:
            pixels = image.width * image.height
            shape = f"{image.width}x{image.height}"
            if pixels > _LARGEST_IMAGE:
                raise Unreadable([f"{where} is {shape}: too large"], "shrink it first")
            dense = _size(image) > _DENSEST * len(data) and image.format not in _FLAT
            if pixels > _LARGE and dense:
                bomb = f"{where} is {shape} in {len(data):,} bytes: no picture but a bomb"
                raise Unreadable([bomb], "remove it")
            yield image
    except _BOMB as error:
        raise Unreadable([f"{where} is too large ({error})"], "shrink it first") from None
    except _BROKEN as error:
        reason = "an empty file" if not data else str(error).split(" <_io")[0]
        raise Unreadable([f"{where} is not a whole image ({reason})"], cure) from None


def _size(image: Image.Image) -> float:
    """Bytes of the pixels."""
    bits = {"1": 1, "I": 32, "F": 32}.get(image.mode, 16 if image.mode.startswith("I") else 8)
    return image.width * image.height * len(image.getbands()) * bits / 8


def as_shown(image: Image.Image, channels: int) -> Image.Image:
    """In grey or RGB, turned as the camera was held, on white where it lets light through."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB" if channels == 3 else "L")


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 [size, size, channels] of an image of 8 bits, by Lanczos if its size differs (not
    cropped)."""
    image = as_shown(image, channels)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, channels)


def eight_bits(image: Image.Image, where: str) -> Image.Image:
    """As ``decoded`` of an image that a program holds: of a file with 16 bits a colour Pillow has
    read the upper 8. Raises Unreadable when its pixels cannot be read, or lie in the lower 8."""
    try:
        raw = _raw_mode(image)
        image.load()
        if _is_stretched(image, raw) and _upper(image).max() < 1 << 7:
            kind = f"{where} has 16 bits a colour, of which Pillow has read the upper 8, all dark"
            raise Unreadable([kind], "give the path of its file, or save it with 8 bits")
        return _eight_bits(image, b"", where)
    except _BROKEN as error:
        raise Unreadable([f"{where} is not a whole image ({error})"]) from None


def are_fractions(low: float, high: float) -> bool:
    """Whether floats of this range are numbers from 0 to 1; no NaN is."""
    return -BEYOND <= low <= high <= 1 + BEYOND


def are_levels(low: float, high: float) -> bool:
    """Whether floats of this range are numbers from 0 to 255."""
    return 0 <= low <= high <= 255 and high >= _LEAST


def of_fractions(values: np.ndarray) -> np.ndarray:
    """uint8 of numbers from 0 to 1; what lies beyond is cut off."""
    return np.rint(values.astype(np.float32) * np.float32(255)).clip(0, 255).astype(np.uint8)


def fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """uint8 [n, h, w, 1 or 3] to [n, size, size, channels]."""
    if images.shape[1:] == (size, size, channels):
        return images
    if images.shape[-1] == 1:
        images = images[..., 0]
    return np.stack([to_array(Image.fromarray(i), size, channels) for i in images])


def _eight_bits(image: Image.Image, data: bytes, where: str) -> Image.Image:
    """The image itself, or one of 8 bits in the place of one that has more."""
    raw = _raw_mode(image)
    bits, white_is_zero, planar = _of_tiff(image)
    if planar and bits > 8:
        kind = f"{where} has {bits} bits a colour, in planes"
        raise Unreadable([kind], "save it with 8 bits")
    deep = image.mode == "F" or image.mode.startswith("I") or _is_deep(raw)
    if deep and "transparency" in image.info:
        kind = f"{where} has more than 8 bits and a colour that is transparent"
        raise Unreadable([kind], "save it with 8 bits")
    if image.mode == "F":
        return _with_orientation(_from_float(np.asarray(image), where), image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if white_is_zero and bits <= 16:
            values = (1 << bits) - 1 - values.astype(np.int64)
        return _with_orientation(Image.fromarray(_scaled(values, where)), image)
    if not _is_stretched(image, raw) or _upper(image).max() >= 1 << 7:
        return image  # of 16 bits all are in use, and the upper 8 are there
    values = np.asarray(image).astype(np.int64) << 8
    colours = _colours(image)
    values += _lower_bytes(image, raw, data, where)
    parts = [_scaled(values[..., :colours], where)]
    if values.shape[-1] > colours:
        parts.append(_scaled(values[..., colours:], where))
    deep = Image.fromarray(np.concatenate(parts, -1).astype(np.uint8), image.mode)
    return _with_orientation(deep, image)


def _of_tiff(image: Image.Image) -> tuple[int, bool, bool]:
    """Bits a colour, whether 0 is white, and whether each colour has a plane; of others 8 bits."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return 8, False, False
    bits = tags.get(258, 1)
    planar = tags.get(284) == 2 and tags.get(277, 1) > 1
    return max(bits) if isinstance(bits, tuple) else bits, tags.get(262) == 0, planar


def _is_stretched(image: Image.Image, raw: str) -> bool:
    """Whether 16 bits a colour are brought to 8 by those that are in use: ink is not."""
    return _is_deep(raw) and image.mode != "CMYK"


def _is_deep(raw: str) -> bool:
    """Whether a file has 16 bits a colour: BGR;16 has them for all three."""
    return ";16" in raw and not raw.startswith("BGR;")


def _upper(image: Image.Image) -> np.ndarray:
    """Of 16 bits a colour the upper 8, which are all that Pillow reads; without alpha."""
    values = np.asarray(image)
    return values[..., : _colours(image)] if values.ndim == 3 else values


def _colours(image: Image.Image) -> int:
    return 3 if image.mode.startswith("RGB") else 1


def _with_orientation(image: Image.Image, source: Image.Image) -> Image.Image:
    image.getexif().update(source.getexif())
    return image


def _scaled(values: np.ndarray, where: str) -> np.ndarray:
    """uint8 of whole numbers of 8 to 16 bits: as many as the largest needs."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 1 << 16:
        kind = f"{where} has values from {low} to {high}, of more than 16 bits or below zero"
        raise Unreadable([kind], "save it with 8 or 16 bits")
    return (values >> max(0, high.bit_length() - 8)).astype(np.uint8)


def _from_float(values: np.ndarray, where: str) -> Image.Image:
    """Of numbers from 0 to 1, or to 255."""
    low, high = float(values.min()), float(values.max())
    if not (are_fractions(low, high) or are_levels(low, high)):
        kind = f"{where} has values from {low:.4g} to {high:.4g}, neither 0 to 1 nor 0 to 255"
        raise Unreadable([kind], "save it with 8 bits")
    whole = of_fractions(values) if are_fractions(low, high) else np.rint(values).astype(np.uint8)
    return Image.fromarray(whole)


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, as ``RGB;16B``; empty where nothing says so."""
    args = image.tile[0][3] if getattr(image, "tile", None) else ""
    args = (args,) if isinstance(args, str) else args or ()
    return next((a for a in args if isinstance(a, str)), "")


def _lower_bytes(image: Image.Image, raw: str, data: bytes, where: str) -> np.ndarray:
    """By reading the file once more, as if its numbers had the other order of bytes."""
    other = raw[:-1] + {"B": "L", "L": "B", "N": "B"}.get(raw[-1], "?")
    with Image.open(io.BytesIO(data), formats=(image.format,)) as again:
        swapped = []
        for codec, extents, offset, args in again.tile:
            args = other if args == raw else tuple(other if a == raw else a for a in args)
            swapped.append((codec, extents, offset, args))
        again.tile = [type(tile)(*new) for tile, new in zip(again.tile, swapped, strict=True)]
        try:
            return np.asarray(again)
        except ValueError:
            kind = f"{where} has 16 bits in a form ({raw}) of which only the upper 8 can be read"
            raise Unreadable([kind], "save it with 8 bits") from None
