"""Broken and hostile npz archives, and those that come back as they were."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.data.arrays.npz import read_npz
from tests.array_files import NAMES, images, refused, save


def npz(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    save(folder, lambda s: {"x": images(s), "y": np.repeat(NAMES[s], 4)}, "{}.npz")
    file = folder / "test.npz"
    file.write_bytes(change(file.read_bytes()))
    return folder


def written(name: str = "x.npy", kind: int = zipfile.ZIP_STORED, content: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[: len(b) // 2], "is truncated or no npz"),
        (lambda b: b"", "is truncated or no npz"),
        (lambda b: b[:300] + b"\xff" + b[301:], "is truncated or no npz (Bad CRC-32"),
        (lambda b: written(content=b"text"), "x is no array"),
        (lambda b: written(content=b"\x93NUMPY\x01\x00"), "is truncated or no npz"),
        (
            lambda b: written(content=npy(np.array([{}]))),
            "x was not read, as it is no array of numbers or text: {'descr': '|O'",
        ),
        (lambda b: written(content=npy(np.zeros(3, "u1,u1"))), "{'descr': [('f0', '|u1')"),
        (
            lambda b: written(content=npy(np.zeros((2, 3))).replace(b"(2, 3)", b"(9, 9)")),
            "x claims shape [9, 9] of float64, but has 48 bytes",
        ),
        (
            lambda b: written(content=npy(np.zeros(10)).replace(b"(10,), }   ", b"(10**9,), }")),
            "no array of numbers or text: {'descr': '<f8'",
        ),
        (
            lambda b: written(content=npy(np.zeros((0, 1))).replace(b"(0, 1)", b"(0,99)")),
            "claims shape [0, 99] of float64, but has 0 bytes",
        ),
        (
            lambda b: written(content=npy(np.zeros((1, 0))).replace(b"(1, 0)", b"(-1,0)")),
            "no array of numbers or text",
        ),
        (
            lambda b: written(content=npy(np.array(["a"])).replace(b"a\0\0\0", b"\xff" * 4)),
            "x has letters that are not Unicode",
        ),
        (
            lambda b: written("x.npy", zipfile.ZIP_DEFLATED, bytes(1 << 25)),
            "is compressed more than 200 times, as no images are: x.npy (33,554,432 bytes in",
        ),
    ],
)
def test_broken_and_hostile_npz_are_explained(change, message, tmp_path):
    refused(npz(tmp_path, change), message, "test.npz")


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
def test_arrays_of_npz_come_back_as_they_were(save_as):
    given = {
        kind + order: np.asarray(np.arange(24).reshape(2, 3, 4), kind, order=order)
        for kind in ("u1", "<i8", ">i4", "?", "<f2", ">f4", "U5", ">U5", "S3")
        for order in "CF"
    } | {"0-d": np.array(3), "empty": np.zeros((0,)), "a/b": np.arange(3)}
    file = io.BytesIO()
    save_as(file, **given)
    back = read_npz(file, "x.npz")
    assert list(back) == list(given)
    for name, array in given.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)
    old = written("x.npy", content=npy(np.zeros((2, 3))).replace(b"(2, 3), }  ", b"(2L, 3L), }"))
    assert read_npz(io.BytesIO(old), "x.npz")["x"].shape == (2, 3)


def test_files_that_exceed_memory_are_not_read(tmp_path, monkeypatch):
    npz(tmp_path, lambda b: b)
    (tmp_path / "test.npz").unlink()
    (tmp_path / "test.pkl").write_bytes(bytes(5000))
    monkeypatch.setattr("engine.data.arrays.pickles.free_memory", lambda: 1000)
    refused(
        tmp_path,
        "train.npz needs 5,584 bytes of memory, but 1,000 are free",
        "test.pkl needs 5,000 bytes of memory, but 1,000 are free",
    )
