"""Data sets as pickles and npz archives, as other people's tools write them."""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.data import arrays
from engine.data.arrays import split_of
from engine.data.layout import split_named
from engine.data.tree import FolderTree
from engine.errors import UserError
from tests.array_files import NAMES, SEEN, assert_found, by_rows, found, images, refused, rows, save
from tests.samples import SPLITS, encoded, mini_split, write_pickles


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


def tiered(folder: Path, png: bool, labels: Callable[[str], object]) -> Path:
    for split in SPLITS:
        if png:
            files = [np.frombuffer(encoded(image), np.uint8) for image in images(split)]
            (folder / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files, 2))
        else:
            theirs = "label_specific" in labels(split)  # written as OpenCV has colours
            np.savez(
                folder / f"{split}_images.npz", images=images(split)[..., :: -1 if theirs else 1]
            )
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
