"""What of a data set is never chosen in silence: images, lists and folders that could be others."""

import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from engine.config import Config
from engine.data import __main__ as command
from engine.data.preparation import Preparation
from engine.data.recognise import recognise
from engine.data.tree import open_tree
from engine.episodes import EpisodeSampler
from engine.errors import UserError
from tests.samples import encoded, tree_files, write_files
from tests.test_data_layouts import read, renamed

IMAGE = encoded(np.zeros((12, 12, 3), np.uint8))


def counts(path: Path) -> dict[str, dict[str, int]]:
    """Images of each class of each split."""
    content = recognise(open_tree(path), Preparation.of("folder", 12, 3))
    return {split: {c.name: c.count for c in classes} for split, classes in content.splits()}


def rows(*pairs: str) -> bytes:
    return "\n".join(["filename,label", *pairs, ""]).encode()


def test_an_image_of_another_folder_is_not_that_of_a_row(tmp_path):
    files = {f"images/{name}.png": IMAGE for name in ("dogs/001", "cats/002", "birds/003")}
    files["train.csv"] = rows("cats/001.png,cat", "cats/002.png,cat")
    files["test.csv"] = rows("birds/003.png,bird")
    with pytest.raises(UserError, match="lacks the image cats/001.png of class cat, which its CSV"):
        read(write_files(tmp_path / "tree", files))
    files["train.csv"] = rows("old/birds/003.png,cat", "cats/002.png,cat")
    files["test.csv"] = rows("dogs/001.png,bird")
    found = counts(write_files(tmp_path / "other", files))  # above it the root may be another
    assert found == {"train": {"cat": 2}, "test": {"bird": 1}}


def test_a_mask_is_not_taken_for_a_picture_that_is_missing(tmp_path):
    files = {f"images/{name}.jpg": IMAGE for name in ("cat_1", "dog_1", "owl_1")}
    files |= {f"masks/{name}.png": IMAGE for name in ("cat_1", "cat_2")}
    files["train.csv"] = rows("cat_1.jpg,cat", "cat_2.jpg,cat", "dog_1.jpg,dog")
    files["test.csv"] = rows("owl_1.jpg,owl")
    with pytest.raises(UserError, match="lacks the image cat_2.jpg of class cat"):
        read(write_files(tmp_path / "tree", files))


def test_some_files_of_a_folder_may_have_another_suffix_than_the_list_has(tmp_path):
    names = {"cat_1.jpg": "cat_1.jpg", "cat_2.jpg": "cat_2.png", "owl_1.jpg": "owl_1.jpg"}
    files = {f"images/{there}": IMAGE for there in names.values()}
    files["train.csv"] = rows("cat_1.jpg,cat", "cat_2.jpg,cat")
    files["test.csv"] = rows("owl_1.jpg,owl")
    found = counts(write_files(tmp_path / "tree", files))
    assert found == {"train": {"cat": 2}, "test": {"owl": 1}}


def test_a_list_and_its_files_may_write_a_letter_in_two_ways(tmp_path):
    letter = unicodedata.normalize("NFD", "é")
    files = {f"caf{letter}/1.png": IMAGE, f"caf{letter}/2.png": IMAGE, "b/1.png": IMAGE}
    files |= {
        "c/1.png": IMAGE,
        "train.csv": rows("café/1.png,café", "café/2.png,café", "b/1.png,b"),
    }
    files["test.csv"] = rows("c/1.png,c")
    found = counts(write_files(tmp_path / "tree", files))
    assert found == {"train": {"b": 1, "café": 2}, "test": {"c": 1}}


def test_lists_of_splits_are_not_chosen_among(tmp_path):
    files = {f"images/{name}.png": IMAGE for name in "abcdef"}
    one = {"train.csv": rows("a.png,a", "b.png,b"), "test.csv": rows("c.png,c")}
    two = {"train.csv": rows("c.png,c"), "test.csv": rows("a.png,a", "b.png,b")}
    lists = {
        f"splits/{f}/{n}": v for f, of in (("mine", one), ("ravi", two)) for n, v in of.items()
    }
    with pytest.raises(
        UserError, match="has several lists of the splits .splits/mine/train.csv, sp"
    ):
        read(write_files(tmp_path / "tree", files | lists))
    twice = {**one, "meta-train.csv": one["train.csv"]}
    with pytest.raises(UserError, match="has meta-train.csv and train.csv, both a list of train"):
        read(write_files(tmp_path / "twice", files | twice))


def test_an_image_that_is_listed_twice_is_one(tmp_path):
    names = [f"00{c}.x/{i}.png" for c in range(3) for i in range(2)]
    files = {f"images/{name}": IMAGE for name in names}
    lines = [f"{number} {name}" for number, name in enumerate([*names, names[0]], 1)]
    files["images.txt"] = "\n".join(lines).encode()
    found = read(write_files(tmp_path / "cub", files), split_ratio="1/1/1")
    assert {bank.counts.item() for bank in found.banks.values()} == {2}
    assert any(
        "1 further lines of images.txt for the same image (000.x/0.png)" in n for n in found.notes
    )


def test_a_split_has_one_folder(tmp_path):
    files = renamed(tree_files(), train="base") | renamed(tree_files(), val=None, test=None)
    with pytest.raises(UserError, match="has base and train, both train by their names: bring the"):
        read(write_files(tmp_path / "tree", files))


def test_what_may_be_one_class_is_not_divided(tmp_path):
    files = {f"{name}/{i}.png": IMAGE for name in ("Cat", "cat", "dog", "fox") for i in range(2)}
    with pytest.raises(UserError, match="the classes 'Cat' and 'cat' differ in the form"):
        read(write_files(tmp_path / "tree", files), split_ratio="2/1/1")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("train",), "--split-ratio 64/16/20 --ways 3 --targets 1"),
        (("train", "test"), "--ways 4 --targets 1"),
        (("train", "val"), "not to be trained on as it is: {} has no images for test"),
        (("test",), "not to be trained on as it is: {} has no images for train"),
        (("val", "test"), "not to be trained on as it is: {} has no images for train"),
    ],
)
def test_the_line_that_is_printed_is_one_that_trains(parts, words, tmp_path, capsys):
    files = {f"{p}/{p}{c}/{i}.png": IMAGE for p in parts for c in range(20) for i in range(2)}
    tree = write_files(tmp_path / "tree", files)
    assert command.main(["info", str(tree)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    if words.startswith("not"):
        assert line.startswith(words.format(tree))
        return
    assert line.endswith(f"{tree} {words}".rstrip())
    cfg = Config.resolve(shlex.split(line.partition("engine.train ")[2]))
    dataset = read(tree, split_ratio=cfg.split_ratio)
    assert {*dataset.banks} == {"train", "val", "test"}
    for part in dataset.banks:
        EpisodeSampler.of(cfg, dataset, part, 0)


@pytest.mark.parametrize(
    ("classes", "images", "words"),
    [(1, 3, "has 1 class in test"), (3, 1, "has 3 classes in train of fewer than 2 images")],
)
def test_data_that_make_no_task_are_told_as_such(classes, images, words, tmp_path, capsys):
    sizes = {"train": 3, "val": 3, "test": classes}
    files = {
        f"{p}/{p}{c}/{i}.png": IMAGE
        for p, n in sizes.items()
        for c in range(n)
        for i in range(images)
    }
    assert command.main(["info", str(write_files(tmp_path / "tree", files))]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("not to be trained on as it is: ") and words in line
