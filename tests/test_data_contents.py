"""Pickles and npz archives whose content is none of the forms that are read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.array_files import NAMES, SIDE, by_rows, found, images, refused, save


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
    save(tmp_path, by_rows(np.array))
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(content, 4))
    refused(tmp_path, message, "train.pkl")


def test_every_file_is_looked_at(tmp_path):
    save(tmp_path, by_rows(np.array))
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
    save(tmp_path, by_rows(np.array))
    (tmp_path / "val.pkl").write_bytes(pickle.dumps(classes(a=[0], b=[2])))
    (tmp_path / "test.pkl").write_bytes(pickle.dumps(catnames([0] * 4, {"c": 0, "d": 1})))
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(classes(e=[0, 1, 2, 3])))
    _, content = found(tmp_path)
    assert f"{tmp_path}/val.pkl: left out, 2 images that belong to no class" in content.notes
    assert f"{tmp_path}/test.pkl: left out, 1 classes without images: d" in content.notes
