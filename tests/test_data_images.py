"""Odd image files: their pixels as a viewer would show them, or a line that says why not."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.data import images, preparation
from engine.data.images import Unreadable, is_image
from engine.errors import UserError
from tests.samples import decode, encoded

SIDE = 40
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
INK = np.zeros((SIDE, SIDE), bool)
INK[10:30, 18:22] = True


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits with 1 to 4 channels; Pillow writes but one."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_more_bits_keeps_its_range(bits, kind):
    values = (RAMP * (2**bits - 1)).astype(np.uint16)
    made = decode(saved(Image.fromarray(values), kind), "", SIDE, 1)[..., 0]
    assert np.array_equal(made, values >> (bits - 8))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colours_of_more_bits_keep_their_range(bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (SIDE, SIDE, 3)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    assert np.array_equal(decode(png16(values), "", SIDE, 3), values >> (bits - 8))
    opaque = np.dstack([values, np.full((SIDE, SIDE), 2**16 - 1, np.uint16)])
    assert np.array_equal(decode(png16(opaque), "", SIDE, 3), values >> (bits - 8))


def test_what_cannot_be_read_in_full_is_not_guessed():
    grey = np.dstack([RAMP * 4095, np.full((SIDE, SIDE), 4095)]).astype(np.uint16)
    with pytest.raises(UserError, match=r"x has 16 bits in a form \(LA;16B\) .* with 8 bits"):
        decode(png16(grey), "x", SIDE, 1)
    floats = Image.fromarray((RAMP * 2000 - 1000).astype(np.float32))
    with pytest.raises(UserError, match="x has values from -1000 to 1000, neither"):
        decode(saved(floats, "TIFF"), "x", SIDE, 1)
    floats = Image.fromarray((RAMP * 2).astype(np.float32))
    with pytest.raises(UserError, match="x has values from 0 to 2, neither 0 to 1 nor 0 to 255"):
        decode(saved(floats, "TIFF"), "x", SIDE, 1)
    with pytest.raises(UserError, match="x has more than 8 bits and a colour that is transparent"):
        clear = zlib.crc32(chunk := b"tRNS" + struct.pack(">H", 0))
        deep = saved(Image.fromarray((RAMP * 4095).astype(np.uint16)))
        at = deep.index(b"IDAT") - 4
        chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", clear)
        decode(deep[:at] + chunk + deep[at:], "x", SIDE, 1)
    dark = Image.open(io.BytesIO(png16(np.full((SIDE, SIDE, 3), 4095, np.uint16))))
    with pytest.raises(UserError, match="X has 16 bits a colour, of which Pillow has read the upp"):
        images.eight_bits(dark, "X")
    wide = Image.fromarray((RAMP * 1e6).astype(np.int32))
    with pytest.raises(UserError, match="x has values from 0 to 1000000, of more than 16 bits"):
        decode(saved(wide, "TIFF"), "x", SIDE, 1)


@pytest.mark.parametrize("top", [1, 255])
def test_floats_are_from_0_to_1_or_to_255(top):
    made = decode(saved(Image.fromarray((RAMP * top).astype(np.float32)), "TIFF"), "", SIDE, 1)
    assert np.array_equal(made[..., 0], np.rint((RAMP * top).astype(np.float32) * (255 / top)))


def test_what_a_resampling_added_beyond_1_is_white():
    made = decode(saved(Image.fromarray((RAMP * 1.05).astype(np.float32)), "TIFF"), "", SIDE, 1)
    assert np.array_equal(
        made[..., 0], np.rint((RAMP * 1.05).astype(np.float32) * 255).clip(0, 255)
    )


def test_five_and_six_bits_a_colour_are_eight():
    values = np.full((SIDE, SIDE), 15 << 11 | 31 << 5 | 15, "<u2")  # a dark grey
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 16, 3, values.nbytes, 0, 0, 0, 0)
    head += struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    start = 14 + len(head)
    file = (
        b"BM" + struct.pack("<IHHI", start + values.nbytes, 0, 0, start) + head + values.tobytes()
    )
    assert abs(decode(file, "x.bmp", SIDE, 3).astype(int) - 125).max() < 4


def transparent(mode: str) -> bytes:
    """Black ink on clear ground; what is clear is black, too."""
    rgba = np.zeros((SIDE, SIDE, 4), np.uint8)
    rgba[..., 3] = np.where(INK, 255, 0)
    if mode == "LA":
        return saved(Image.fromarray(rgba[..., [0, 3]]))
    if mode == "P":
        return saved(Image.fromarray(rgba).quantize(4))
    if mode == "WEBP":
        return saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    if mode in ("L", "RGB"):  # one colour of them is declared clear
        grey = Image.fromarray(np.where(INK, 0, 9).astype(np.uint8)).convert(mode)
        return saved(grey, transparency=9 if mode == "L" else (9, 9, 9))
    return saved(Image.fromarray(rgba))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_clear_is_white(mode, channels):
    made = decode(transparent(mode), "", SIDE, channels)
    assert np.array_equal(made, np.where(INK[..., None], 0, 255).repeat(channels, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_camera_was_held(orientation):
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[:20, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation](pixels)
    made = decode(saved(Image.fromarray(pixels), "PNG", exif=exif), "", SIDE, 1)
    assert np.array_equal(made[..., 0], upright)


def test_orientation_holds_for_more_bits_too():
    values = (RAMP * 4095).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = decode(saved(Image.fromarray(values), "PNG", exif=exif), "", SIDE, 1)
    assert np.array_equal(made[..., 0], np.rot90(values >> 4, -1))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "TGA", "PCX", "PNG", "WEBP", "QOI", "SGI"])
def test_lossless_formats_decode_exactly(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(saved(Image.fromarray(pixels), kind, **options), "", 8, 3), pixels)


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "JPEG2000", "AVIF", "ICO"])
def test_other_formats_are_close(kind):
    grey = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    try:
        content = saved(grey, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    assert abs(decode(content, "", 32, 3).astype(int) - 90).max() <= 3


def test_the_first_of_several_pictures_is_taken():
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (70, 200)]
    for kind in ("GIF", "PNG", "TIFF"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (decode(content, "", 8, 1) == 70).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.PNG", True), ("a.JpEg", True), ("a.jfif", True), ("a.bmp", True), ("a.tif", True)]
    + [("a.avif", True), ("a.webp", True), ("a.eps", False), ("a.pdf", False), ("a.txt", False)]
    + [("png", False), ("a.mpg", False), ("a.csv", False), ("a", False)],
)
def test_pictures_are_told_by_their_names(name, expected):
    assert is_image(name) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "cannot identify"),
        (encoded(np.zeros((60, 60, 3), np.uint8), "JPEG")[:-300], "runcated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
    ],
)
def test_what_is_no_whole_image_is_named(content, reason):
    with pytest.raises(Unreadable, match=f"a.png is not a whole image .*{reason}.*; get it again"):
        decode(content, "a.png", 8, 3)


def test_a_bomb_is_refused_and_a_large_picture_is_not():
    blank = saved(Image.new("RGB", (4000, 4000)))
    assert len(blank) < 60_000
    with pytest.raises(UserError, match="x is 4000x4000 in .* bytes: no picture but a bomb"):
        decode(blank, "x", 8, 3)
    noise = np.random.default_rng(0).integers(0, 256, (2100, 2100), np.uint8)
    assert 100 < decode(saved(Image.fromarray(noise)), "", 8, 1).mean() < 150


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 10)
    running, most, lock = 0, 0, threading.Lock()
    scale = images.to_array

    def counted(*args):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        result = scale(*args)
        with lock:
            running -= 1
        return result

    monkeypatch.setattr(preparation, "to_array", counted)
    content = saved(Image.fromarray((RAMP * 255).astype(np.uint8)))
    made = images.all_of(lambda n: decode(content, n, 8, 1), map(str, range(40)))
    assert made.shape == (40, 8, 8, 1) and most == 1


def test_every_broken_image_is_named_at_once():
    with pytest.raises(Unreadable) as caught:
        images.all_of(lambda n: decode(b"", n, 8, 1), [f"{n}.png" for n in range(13)])
    assert len(caught.value.faults) == 13
    assert str(caught.value).startswith("13 images cannot be used: 0.png is not a whole image")
    assert "9.png" in str(caught.value) and "10.png" not in str(caught.value)
    assert str(caught.value).endswith("and 3 more; correct them")


WHOLE = [
    saved(Image.fromarray((RAMP * 255).astype(np.uint8)), kind)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")
] + [transparent("P"), png16((RAMP * 4095).astype(np.uint16)[..., None].repeat(3, -1))]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of broken tags
@settings(deadline=None, max_examples=200)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_files_are_decoded_or_explained(content, data):
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert decode(content, "x", 8, 3).shape == (8, 8, 3)
    except UserError as error:
        assert str(error).startswith("x ") and "\n" not in str(error)


def tiff16(values: np.ndarray, photometric: int, planar: bool = False) -> bytes:
    """An uncompressed TIFF of 16 bits a colour, [H, W, C]; Pillow writes but grey ones."""
    height, width, channels = values.shape
    parts = np.moveaxis(values, -1, 0) if planar else values[None]
    strips = [part.astype("<u2").tobytes() for part in parts]
    body, places = b"", []
    for content in strips:
        places.append(8 + len(body))
        body += content

    def array(code: str, numbers: list[int]) -> int:
        nonlocal body
        body += struct.pack(f"<{len(numbers)}{code}", *numbers)
        return 8 + len(body) - struct.calcsize(f"<{len(numbers)}{code}")

    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [16] * channels), 259: (3, [1])}
    entries |= {262: (3, [photometric]), 273: (4, places), 277: (3, [channels]), 278: (4, [height])}
    entries |= {279: (4, [len(s) for s in strips]), 284: (3, [1 + planar])}
    directory = struct.pack("<H", len(entries))
    for tag, (kind, numbers) in sorted(entries.items()):
        code = {3: "H", 4: "I"}[kind]
        inside = struct.pack(f"<{len(numbers)}{code}", *numbers).ljust(4, b"\0")
        if len(inside) > 4:
            inside = struct.pack("<I", array(code, numbers))
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + inside
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + struct.pack("<I", 0)


def test_a_grey_tiff_of_16_bits_whose_0_is_white_is_not_a_negative():
    values = (RAMP * 65535).astype(np.uint16)[..., None]
    black, white = (
        decode(tiff16(v, k), "", SIDE, 1) for v, k in ((values, 1), (65535 - values, 0))
    )
    assert np.array_equal(black, white) and np.array_equal(black[..., 0], values[..., 0] >> 8)


def test_ink_of_16_bits_is_not_stretched():
    ink = np.full((SIDE, SIDE, 4), 0, np.uint16)
    ink[..., 0] = RAMP * 6000
    eight = Image.fromarray((ink >> 8).astype(np.uint8), "CMYK")
    assert np.array_equal(
        decode(tiff16(ink, 5), "", SIDE, 3), decode(saved(eight, "TIFF"), "", SIDE, 3)
    )


def test_colours_in_planes_of_16_bits_are_refused():
    values = (RAMP[..., None] * [65535, 40000, 20000]).astype(np.uint16)
    assert np.array_equal(decode(tiff16(values, 2), "", SIDE, 3), values >> 8)
    with pytest.raises(UserError, match="x has 16 bits a colour, in planes; save it with 8 bits"):
        decode(tiff16(values, 2, planar=True), "x", SIDE, 3)
