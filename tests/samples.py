"""Small data sets on disk, in the forms that the readers know."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.data import Dataset
from engine.data.bank import ClassBank
from engine.data.preparation import Preparation

SPLITS = ("train", "val", "test")


def decode(data: bytes, where: str, size: int, channels: int) -> np.ndarray:
    """uint8 [size, size, channels] of the image in a file, as pictures in folders are read."""
    return Preparation.of("folder", size, channels).decode(data, where)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and ends where its pixels would begin."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 99) + b"IDAT"


def tree_files(classes: int = 2, images: int = 3, side: int = 12) -> dict[str, bytes]:
    """``<split>/<class>/<n>.png`` → content; every image differs."""
    rng = np.random.default_rng(0)
    return {
        f"{split}/{split}{c}/{n}.png": encoded(rng.integers(0, 256, (side, side, 3), np.uint8))
        for split in SPLITS
        for c in range(classes)
        for n in range(images)
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def write_zip(file: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def mini_split(split: str, classes: int = 2, images: int = 4) -> dict:
    """The content of a pickle as it is published; rows of the classes interleave."""
    rng = np.random.default_rng(len(split))
    rows = np.arange(classes * images).reshape(images, classes).T.tolist()
    return {
        "image_data": rng.integers(0, 256, (classes * images, 84, 84, 3), np.uint8),
        "class_dict": {f"n{len(split)}{c:07d}": rows[c] for c in range(classes)},
    }


def write_pickles(folder: Path, protocol: int = 2) -> Path:
    for split, name in zip(SPLITS, ("train", "validation", "test"), strict=True):
        file = folder / f"mini-imagenet-cache-{name}.pkl"
        file.write_bytes(pickle.dumps(mini_split(split), protocol))
    return folder


def dataset(counts: list[int], side: int = 4, channels: int = 1, name: str = "made") -> Dataset:
    """In memory. Pixel (0, 0) is the class and pixel (0, 1) the image's place in it."""
    starts = torch.tensor([0, *counts]).cumsum(0)
    images = torch.zeros(int(starts[-1]), side, side, channels, dtype=torch.uint8)
    for c, count in enumerate(counts):
        images[starts[c] : starts[c + 1], 0, 0] = c
        images[starts[c] : starts[c + 1], 0, 1] = torch.arange(count, dtype=torch.uint8)[:, None]
    bank = ClassBank(images, starts, tuple(f"class{c}" for c in range(len(counts))))
    zero, one = (0.0,) * channels, (1.0,) * channels
    return Dataset(name, dict.fromkeys(SPLITS, bank), 1.0, zero, one, "identity")
