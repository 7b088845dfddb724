"""Numbers as pixels in pickles and npz archives: types, sides, channels, black and white."""

from __future__ import annotations

import numpy as np
import pytest

from tests.array_files import NAMES, assert_found, found, images, refused, rows, save
from tests.samples import SPLITS


@pytest.mark.parametrize("side", [32, 84])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_sides_and_channels_are_fitted(side, channels, tmp_path):
    value = {"train": 10, "val": 20, "test": 30}
    save(
        tmp_path,
        lambda s: {
            "data": np.full((12, 32, 32, channels), value[s], np.uint8),
            "labels": np.repeat(NAMES[s], 4),
        },
        "{}.npz",
    )
    for wanted in (1, 3):
        read, _ = found(tmp_path, side, wanted)
        assert {s: int(read[s][NAMES[s][1]].mean()) for s in SPLITS} == value


GREY = {s: np.random.default_rng(k).integers(0, 256, (12, 28, 28)) for k, s in enumerate(SPLITS)}


@pytest.mark.parametrize(
    ("convert", "note"),
    [
        (lambda x: x.astype(np.uint8), ""),
        (lambda x: x.astype(np.uint8)[..., None], ""),
        (lambda x: x.astype(np.uint8)[:, None], "stored as [N, C, H, W]"),
        (lambda x: x, "images are int64: rounded to uint8"),
        (lambda x: x.astype(">u2"), "rounded to uint8"),
        (lambda x: x.astype(np.float64), "images are float64"),
        (lambda x: (x / 255).astype(np.float32), "from 0 to 1: multiplied by 255"),
        (lambda x: (x / 255).astype(np.float64)[:, None], "from 0 to 1: multiplied by 255"),
    ],
)
def test_numbers_of_other_types_are_converted(convert, note, tmp_path):
    save(tmp_path, lambda s: {"images": convert(GREY[s]), "labels": np.repeat(NAMES[s], 4)})
    assert_found(
        tmp_path,
        pixels=lambda s: GREY[s].astype(np.uint8)[..., None],
        note=note,
        size=28,
        channels=1,
    )


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float16])
def test_black_and_white_is_0_and_255(kind, tmp_path):
    ink = {s: GREY[s] > 99 for s in SPLITS}
    save(tmp_path, lambda s: {"images": ink[s].astype(kind), "labels": np.repeat(NAMES[s], 4)})
    assert_found(tmp_path, pixels=lambda s: ink[s][..., None] * 255, size=28, channels=1)


def test_fractions_a_little_above_1_are_fractions(tmp_path):
    def once(split: str) -> dict:
        values = images(split) / 255
        values.flat[:2] = {"train": (1.0000001, 0), "val": (1, -0.02), "test": (1.05, 0)}[split]
        return {"images": values, "labels": np.repeat(NAMES[split], 4)}

    def twice(split: str) -> dict:
        return once(split) | {"images": once(split)["images"] * 2}

    save(tmp_path, once)
    content = found(tmp_path)[1]
    assert "images are from 0 to 1: multiplied by 255, and cut off there from 1.05" in content.notes
    for split, classes in content.splits():
        pixels = np.concatenate([c.read() for c in classes])
        assert pixels.max() == 255 and pixels.mean() > 50, split
    save(tmp_path, twice)
    refused(tmp_path, "from 0 to 255 or from 0 to 1")


def test_a_dark_class_is_not_brightened_alone(tmp_path):
    def dark(split: str) -> dict:
        return {name: images(split)[r] // (255 if name.endswith("0") else 1)
                for name, r in rows(split).items()}  # fmt: skip

    read, _ = found(save(tmp_path, dark))
    assert all(read[s][NAMES[s][0]].max() <= 1 for s in SPLITS)


def test_channels_first_is_turned(tmp_path):
    save(
        tmp_path,
        lambda s: {"data": images(s).transpose(0, 3, 1, 2), "labels": np.repeat(NAMES[s], 4)},
    )
    assert_found(tmp_path, note="stored as [N, C, H, W]")
    for file in tmp_path.iterdir():
        file.unlink()
    save(
        tmp_path,
        lambda s: {
            "data": images(s).transpose(0, 3, 1, 2).copy(),
            "labels": np.repeat(NAMES[s], 4),
        },
        "{}.npz",
    )
    assert_found(tmp_path)
