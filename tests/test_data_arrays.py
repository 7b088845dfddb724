"""Data sets as pickles and npz archives, as other people's tools write them."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.data import arrays
from engine.data.arrays import split_of
from engine.data.arrays.npz import read_npz
from engine.data.bank import Content
from engine.data.layout import split_named
from engine.data.preparation import Preparation
from engine.data.tree import FolderTree
from engine.errors import UserError
from tests.samples import SPLITS, encoded, mini_split, write_pickles

SIDE = 12
SEEN = Preparation.of("folder", SIDE, 3)
NAMES = {split: [f"n{s}{c}" for c in range(3)] for s, split in enumerate(SPLITS)}


def found(path: Path, size: int = SIDE, channels: int = 3) -> tuple[dict, Content]:
    """Split → class → images, and the rest."""
    content = arrays.find(FolderTree(path), Preparation.of("folder", size, channels))
    read = {}
    for split, classes in content.splits():
        read[split] = {source.name: source.read() for source in classes}
        for source in classes:
            images = read[split][source.name]
            assert images.dtype == np.uint8
            assert images.shape == (source.count, size, size, channels)
    return read, content


def refused(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        found(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def images(split: str, side: int = SIDE, channels: int = 3) -> np.ndarray:
    """12 of 3 classes, whose rows lie together."""
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (12, side, side, channels), np.uint8)


def rows(split: str) -> dict[str, list[int]]:
    return {name: list(range(c * 4, c * 4 + 4)) for c, name in enumerate(NAMES[split])}


def save(folder: Path, content: Callable[[str], object], name: str = "{}.pkl", protocol=None):
    """``content`` of each split, pickled, or as npz by the name."""
    for split in SPLITS:
        file = folder / name.format(split)
        if name.endswith("npz"):
            np.savez(file, **content(split))
        else:
            file.write_bytes(pickle.dumps(content(split), protocol))
    return folder


def assert_found(folder: Path, names=NAMES, pixels=images, note: str = "", **size) -> None:
    read, content = found(folder, **size)
    assert list(read) == list(SPLITS)
    for split in SPLITS:
        assert list(read[split]) == names[split]
        expected = pixels(split).reshape(3, 4, *pixels(split).shape[1:])
        assert np.array_equal(np.stack(list(read[split].values())), expected)
    assert note in "\n".join(content.notes)


def by_rows(convert: Callable) -> Callable:
    return lambda s: {
        "image_data": images(s),
        "class_dict": {name: convert(r) for name, r in rows(s).items()},
    }


def numbered(first: int) -> list[int]:
    return [first + i // 4 for i in range(12)]


FORMS = {
    "arrays of rows": by_rows(np.array),
    "rows as [N, 1]": by_rows(lambda r: np.array(r)[:, None]),
    "lists of numpy integers": by_rows(lambda r: [np.int64(i) for i in r]),
    "unsigned rows": by_rows(lambda r: np.array(r, np.uint64)),
    "ranges": by_rows(lambda r: range(r[0], r[-1] + 1)),
    "tuples": by_rows(tuple),
    "sets": by_rows(set),
    "defaultdict": lambda s: {
        "image_data": images(s),
        "class_dict": collections.defaultdict(list, rows(s)),
    },
    "OrderedDict": lambda s: collections.OrderedDict(
        image_data=images(s), class_dict=collections.OrderedDict(rows(s))
    ),
    "keys as bytes": lambda s: {
        b"image_data": images(s),
        b"class_dict": {name.encode(): r for name, r in rows(s).items()},
    },
    "data, labels, catname2label": lambda s: {
        "data": images(s),
        "labels": numbered(0),
        "catname2label": {name: c for c, name in enumerate(NAMES[s])},
    },
    "labels of numpy integers": lambda s: {
        "data": images(s),
        "labels": list(np.arange(12) // 4),
        "catname2label": {name: np.int32(c) for c, name in enumerate(NAMES[s])},
    },
    "names as labels": lambda s: {"x": images(s), "y": np.repeat(NAMES[s], 4)},
    "names as a list of labels": lambda s: {
        "x": images(s),
        "y": [name.encode() for name in NAMES[s] for _ in range(4)],
    },
    "a list of arrays": lambda s: {"image_data": list(images(s)), "class_dict": rows(s)},
    "an array a class": lambda s: {name: images(s)[r] for name, r in rows(s).items()},
    "a list of arrays a class": lambda s: {name: list(images(s)[r]) for name, r in rows(s).items()},
    "a reversed view": lambda s: {"image_data": images(s)[::-1][::-1], "class_dict": rows(s)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, tmp_path):
    assert_found(save(tmp_path, FORMS[form], "mini-imagenet-cache-{}.pkl"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", ["ranges", "defaultdict", "sets", "keys as bytes"])
def test_every_protocol_is_read(form, protocol, tmp_path):
    assert_found(save(tmp_path, FORMS[form], protocol=protocol))


def test_numbers_name_classes_where_splits_share_none(tmp_path):
    side = {"size": 32}
    save(
        tmp_path,
        lambda s: {"data": images(s, 32), "labels": numbered(9 + 3 * SPLITS.index(s))},
        "CIFAR_FS_{}.pickle",
    )
    names = {s: [str(9 + 3 * k + c) for c in range(3)] for k, s in enumerate(SPLITS)}
    assert_found(tmp_path, names, lambda s: images(s, 32), "named by their numbers", **side)


def test_numbers_that_each_split_begins_at_0_are_its_own(tmp_path):
    counts = {"train": 12, "val": 2, "test": 3}
    save(
        tmp_path,
        lambda s: {"data": images(s, 8), "labels": [i % counts[s] for i in range(12)]},
        "{}.npz",
    )
    read, content = found(tmp_path)
    assert list(read["val"]) == ["val-0", "val-1"]
    assert list(read["train"]) == [f"train-{c}" for c in range(12)]
    assert "each split numbers its own from 0" in "\n".join(content.notes)


def test_numbers_that_may_be_the_same_classes_are_refused(tmp_path):
    save(tmp_path, lambda s: {"data": images(s, 8), "labels": numbered(0)}, "{}.npz")
    refused(tmp_path, "3 numbers of classes without names", "0 (train, val, test), 1 (", "2 (train")
    first = {"train": 0, "val": 2, "test": 9}
    save(tmp_path, lambda s: {"data": images(s, 8), "labels": numbered(first[s])}, "{}.npz")
    refused(tmp_path, "1 numbers of classes without names are in several: 2 (train, val)")


def test_class_dict_by_number_is_named_alike(tmp_path):
    save(
        tmp_path,
        lambda s: {
            "image_data": images(s),
            "class_dict": {3 * SPLITS.index(s) + c: r for c, r in enumerate(rows(s).values())},
        },
    )
    assert_found(tmp_path, {s: [str(3 * k + c) for c in range(3)] for k, s in enumerate(SPLITS)})


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


def tiered(folder: Path, png: bool, labels: Callable[[str], object]) -> Path:
    for split in SPLITS:
        if png:
            files = [np.frombuffer(encoded(image), np.uint8) for image in images(split)]
            (folder / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files, 2))
        else:
            np.savez(folder / f"{split}_images.npz", images=images(split))
        (folder / f"{split}_labels.pkl").write_bytes(pickle.dumps(labels(split), 2))
    return folder


def specific(split: str) -> dict:
    return {
        "label_specific": np.array(numbered(0)),
        "label_specific_str": NAMES[split],
        "label_general": np.zeros(12, np.int64),
        "label_general_str": ["any"],
    }


@pytest.mark.parametrize("png", [False, True])
def test_tiered_imagenet_is_read(png, tmp_path):
    tiered(tmp_path, png, specific)
    assert_found(tmp_path, note="read by")
    assert "tiered-ImageNet" in found(tmp_path)[1].kind


def test_names_that_classes_share_are_told_apart(tmp_path):
    def labels(split: str) -> dict:
        return specific(split) | {"label_specific_str": [f"{split} crane"] * 2 + [f"{split} owl"]}

    read, content = found(tiered(tmp_path, False, labels))
    assert list(read["val"]) == ["val crane (0)", "val crane (1)", "val owl"]
    assert "several classes have one name, told apart by number: test crane" in content.notes[-1]


def test_labels_may_be_a_bare_array(tmp_path):
    tiered(tmp_path, False, lambda s: np.array(numbered(3 * SPLITS.index(s))))
    assert_found(tmp_path, {s: [str(3 * k + c) for c in range(3)] for k, s in enumerate(SPLITS)})


def test_a_broken_png_is_named(tmp_path):
    tiered(tmp_path, True, specific)
    files = [encoded(image) for image in images("val")]
    files[5] = files[5][:100]
    (tmp_path / "val_images_png.pkl").write_bytes(pickle.dumps(files, 4))
    refused(tmp_path, "val_images_png.pkl, image 5 is not a whole image")
    files[5] = files[7] = b"GIF89a"
    (tmp_path / "val_images_png.pkl").write_bytes(pickle.dumps(files, 4))
    refused(tmp_path, "2 of 12 images are no PNG, JPEG or WebP files, rows 5, 7")


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("mini-imagenet-cache-train", "train"),
        ("mini-imagenet-cache-val", "val"),
        ("miniImageNet_category_split_train_phase_train", "train"),
        ("miniImageNet_category_split_train_phase_val", None),
        ("miniImageNet_category_split_test", "test"),
        ("CIFAR_FS_train", "train"),
        ("FC100_train", "train"),
        ("train", "train"),
        ("TEST", "test"),
        ("validation", "val"),
        ("cub_base", "train"),
        ("cub-novel", "test"),
        ("meta-train", "train"),
        ("MetaTest", "test"),
        ("train_images_png", "train"),
        ("TrainLabels", "train"),
        ("latest", None),
        ("retrieval", None),
        ("database", None),
        ("trainval", None),
        ("train_test", None),
        ("", None),
    ],
)
def test_file_names_name_splits(stem, split):
    assert split_of(stem) == split


def test_folder_names_name_splits():
    words = {
        "train": ["train", "Training", "base", "meta-train", "meta_train"],
        "val": ["val", "valid", "VALIDATION", "meta-val", "metavalid"],
        "test": ["test", "testing", "novel", "meta-test"],
    }
    for split, names in words.items():
        assert {split_named(name) for name in names} == {split}
    assert [split_named(w) for w in ("", "n0153", "tests", "trains", "valley")] == [None] * 5


def test_val_may_be_absent_and_further_files_are_noted(tmp_path):
    save(tmp_path, FORMS["ranges"], "mini_{}.pickle")
    (tmp_path / "mini_val.pickle").rename(tmp_path / "mini_train_phase_val.pickle")
    (tmp_path / "extra.npz").write_bytes(b"")
    read, content = found(tmp_path)
    assert list(read) == ["train", "test"]
    assert content.kind == "pickles"
    assert content.notes[:2] == [
        "left out, further images of the training classes: mini_train_phase_val.pickle",
        "left out, as their names name no split or two: extra.npz",
    ]


def test_other_folders_are_none_of_this(tmp_path):
    assert arrays.find(FolderTree(tmp_path), SEEN) is None
    (tmp_path / "latest.pkl").write_bytes(b"")
    (tmp_path / "train.csv").write_bytes(b"")
    (tmp_path / "train_labels.pkl").write_bytes(b"")
    assert arrays.find(FolderTree(tmp_path), SEEN) is None


def test_missing_and_doubled_files_are_all_named(tmp_path):
    for name in ("a/train.pkl", "b/train.pickle", "val_labels.pkl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    refused(
        tmp_path,
        "2 files of images for train (a/train.pkl, b/train.pickle)",
        "labels but no images for val (val_labels.pkl)",
        "nothing for test",
        "python -m engine.data fetch mini",
    )


def test_one_split_is_read_at_a_time(tmp_path):
    save(tmp_path, FORMS["arrays of rows"])
    (tmp_path / "val.pkl").write_bytes(b"broken")
    splits = arrays.find(FolderTree(tmp_path), SEEN).splits()
    assert next(splits)[0] == "train"
    with pytest.raises(UserError, match=r"val\.pkl is truncated or no pickle"):
        next(splits)


def pixels(shape, dtype=np.uint8):
    return {"image_data": np.zeros(shape, dtype), "class_dict": {"n00000000": [0]}}


def classes(**given):
    return {"image_data": np.zeros((4, 8, 8, 3), np.uint8), "class_dict": given}


def labels(given, **more):
    return {"data": np.zeros((4, 8, 8, 3), np.uint8), "labels": given, **more}


def catnames(given, numbers):
    return labels(given, catname2label=numbers)


WRONG = [
    ([1, 2], "holds a list"),
    ({"x": 1}, "has keys x; known are image_data and class_dict"),
    ({}, "has keys ; known are"),
    ({"a": np.zeros((2, 8, 8, 3)), "b": 1}, "has keys a, b; known are"),
    (pixels((2, 84, 84, 2)), "are uint8 [2, 84, 84, 2], but must be"),
    (pixels((2, 84, 84, 4)), "are uint8 [2, 84, 84, 4], but must be"),
    (pixels((84, 84, 3)), "are uint8 [84, 84, 3], but must be"),
    (pixels((2, 3072)), "are uint8 [2, 3072], but must be"),
    (pixels((0, 84, 84, 3)), "[0, 84, 84, 3]"),
    (pixels((2, 0, 84, 3)), "[2, 0, 84, 3]"),
    (classes() | {"image_data": np.full((2, 8, 8), -0.5)}, "are float64 from -0.5 to -0.5, but"),
    (classes() | {"image_data": np.full((2, 8, 8), 256)}, "are int64 from 256 to 256, but"),
    (classes() | {"image_data": np.full((2, 8, 8), np.nan)}, "are float64 from nan to nan, but"),
    (classes() | {"image_data": [[1]]}, "the images are no array of numbers"),
    (classes() | {"image_data": []}, "the images are no array of numbers"),
    (classes() | {"image_data": np.array(["a"])}, "the images are no array of numbers"),
    (
        {"image_data": [np.zeros((8, 8, 3)), np.zeros((8, 9, 3)), np.zeros((8, 8, 3))]},
        "has keys image_data",
    ),
    (
        classes(a=[0]) | {"image_data": [np.zeros((8, 8)), np.zeros((8, 9)), np.zeros((8, 8))]},
        "differ in shape or type: 2 of float64 [8, 8], 1 of float64 [8, 9]",
    ),
    (classes(), "class_dict is no dict of classes"),
    (classes(a=[0]) | {"class_dict": [0]}, "class_dict is no dict of classes"),
    (classes(a=[0, 4], b=[9, 1], c=[2]), "rows outside the 4 images in a (0 to 4), b (1 to 9)"),
    (classes(a=[-1, 0]), "a (-1 to 0)"),
    (classes(a=[0.5], b=[], c=[1], d="0"), "no list of row numbers for 3 classes: a, b, d"),
    (classes(a=[0, 1], b=[1, 2]), "1 images belong to two classes or twice to one: 1 (a, b)"),
    (classes(a=[0, 0], b=[1, 2]), "0 (a, a)"),
    (classes(a=[[0, 1]]), "no list of row numbers for 1 classes: a"),
    (classes(a=[[0], [1, 2]]), "no list of row numbers"),
    (classes(a=[True]), "no list of row numbers"),
    (classes(a=[2**70]), "no list of row numbers"),
    (classes(a=np.array([2**64 - 1], np.uint64)), "no list of row numbers"),
    (classes(a=range(0)), "no list of row numbers"),
    (classes(a=[9], b=["x"]), "1 classes: b; rows outside the 4 images in a (9 to 9)"),
    (catnames([0, 1, 1, 2], {}), "3 labels have no name: 0, 1, 2"),
    (catnames([0] * 4, []), "catname2label is no dict"),
    (catnames([0] * 4, {"a": [0], "b": "0", "c": 1}), "but does not to a, b"),
    (catnames([0] * 4, {"a": 0, "b": 0, "c": 1}), "catname2label gives a, b one number"),
    (labels([0, 0, 1]), "4 images have 3 labels"),
    (labels([[0, 1]]), "the labels are no list of whole numbers or names"),
    (labels([[0], [0, 1]]), "the labels are no list of whole numbers or names"),
    (labels([0, "a", 1, 2]), "the labels are no list of whole numbers or names"),
    (labels([0.0, 1.0, 0.0, 1.0]), "the labels are no list of whole numbers or names"),
    (labels(np.eye(4)), "the labels are no list of whole numbers or names"),
    (labels([0] * 4, label_specific_str=3), "label_specific_str is no list"),
    ({"a": np.zeros((2, 8, 8, 2)), "b": np.ones((1, 8, 8, 3)), "c": np.zeros((9, 8, 8, 5))},
     "class a: the images are float64 [2, 8, 8, 2]"),
    ({1: np.zeros((2, 8, 8, 3)), "1": np.ones((1, 8, 8, 3))}, "a class by its number and as text"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_contents_are_explained(content, message, tmp_path):
    save(tmp_path, FORMS["arrays of rows"])
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(content, 4))
    refused(tmp_path, message, "train.pkl")


def test_every_file_is_looked_at(tmp_path):
    save(tmp_path, FORMS["arrays of rows"])
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(classes(a=[7])))
    (tmp_path / "test.pkl").write_bytes(pickle.dumps({"x": 1}))
    refused(tmp_path, "train.pkl: rows outside the 4 images in a (7", "test.pkl has keys x")


def test_classes_in_two_splits_are_all_named(tmp_path):
    names = {"train": ["Café", "b", "c"], "val": ["CAFE\u0301", "e", "f"], "test": ["B", "é", "C"]}
    save(tmp_path, lambda s: {name: images(s)[:2] for name in names[s]})
    refused(
        tmp_path,
        "class 'Café' is in train and in val as 'CAFÉ'".replace("CAFÉ", "CAFE\u0301"),
        "class 'b' is in train and in test as 'B', class 'c' is in train and in test as 'C'",
    )


def test_splits_of_different_forms_are_refused(tmp_path):
    sides = {"train": SIDE, "val": SIDE, "test": 32}
    save(tmp_path, lambda s: {"data": images(s, sides[s]), "labels": np.repeat(NAMES[s], 4)})
    refused(tmp_path, "12x12x3 up to 255 in", "train.pkl, 32x32x3 up to 255 in", "test.pkl")
    save(
        tmp_path,
        lambda s: {
            "data": images(s) / (255 if s == "val" else 1),
            "labels": np.repeat(NAMES[s], 4),
        },
    )
    refused(tmp_path, "12x12x3 up to 1 in", "val.pkl")


def test_images_without_a_class_are_noted(tmp_path):
    save(tmp_path, FORMS["arrays of rows"])
    (tmp_path / "val.pkl").write_bytes(pickle.dumps(classes(a=[0], b=[2])))
    (tmp_path / "test.pkl").write_bytes(pickle.dumps(catnames([0] * 4, {"c": 0, "d": 1})))
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(classes(e=[0, 1, 2, 3])))
    _, content = found(tmp_path)
    assert f"{tmp_path}/val.pkl: left out, 2 images that belong to no class" in content.notes
    assert f"{tmp_path}/test.pkl: left out, 1 classes without images: d" in content.notes


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


class ZipTree(FolderTree):
    def __init__(self, path: Path):
        self.path = path
        self.archive = zipfile.ZipFile(path)
        self.names = tuple(sorted(self.archive.namelist()))

    def size(self, name: str) -> int:
        return self.archive.getinfo(name).file_size

    def open(self, name: str):
        return self.archive.open(name)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_inside_a_zip_are_read(kind, tmp_path):
    tiered(tmp_path, False, specific)
    (tmp_path / "val_labels.pkl").unlink()
    (tmp_path / "val_images.npz").unlink()
    (tmp_path / "val.pkl").write_bytes(pickle.dumps(FORMS["ranges"]("val"), 2))
    with zipfile.ZipFile(tmp_path / "all.zip", "w", kind) as archive:
        for file in sorted(tmp_path.glob("*.[np]*")):
            archive.write(file, f"tiered/{file.name}")
    tree = ZipTree(tmp_path / "all.zip")
    with tree.archive:
        content = arrays.find(tree, SEEN)
        read = {split: [c.read() for c in classes] for split, classes in content.splits()}
    for split in SPLITS:
        assert np.array_equal(np.concatenate(read[split]), images(split))


def test_published_pickles_are_read(tmp_path):
    read, content = found(write_pickles(tmp_path), 84)
    for split in SPLITS:
        expected = mini_split(split)
        assert list(read[split]) == list(expected["class_dict"])
        for name, r in expected["class_dict"].items():
            assert np.array_equal(read[split][name], expected["image_data"][r])
    assert content.notes == ["read by image_data and class_dict"]
