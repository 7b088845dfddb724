"""mini-ImageNet in its forms, what may bear its name, and lists of images as people write them."""

from __future__ import annotations

import collections
import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import load, mini
from engine.data.preparation import Preparation
from engine.data.recognise import recognise
from engine.data.tree import open_tree
from engine.errors import UserError
from tests.samples import (
    SPLITS,
    encoded,
    mini_split,
    tree_files,
    write_files,
    write_pickles,
    write_zip,
)


def load_mini(path: Path, size: int = 84, channels: int = 3):
    cache = path.parent / "cache"
    return load("mini", path, image_size=size, channels=channels, cache=cache)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mini").mkdir()
    return tmp_path / "mini"


def test_published_pickles_are_read(folder):
    dataset = load_mini(write_pickles(folder))
    assert (dataset.name, dataset.notice) == ("mini-like:mini", None)
    for split in SPLITS:
        content, bank = mini_split(split), dataset.banks[split]
        assert bank.names == tuple(content["class_dict"])
        for c, rows in enumerate(content["class_dict"].values()):
            images = bank.images[bank.starts[c] : bank.starts[c + 1]].numpy()
            assert np.array_equal(images, content["image_data"][rows])


def test_pickles_are_resized_on_request(folder):
    bank = load_mini(write_pickles(folder), 20, 1).banks["val"]
    assert bank.images.shape == (8, 20, 20, 1)


def test_a_malicious_pickle_stops_the_loading(folder):
    write_pickles(folder)
    content = b"cposix\nsystem\n(S'touch ran'\ntR."
    (folder / "mini-imagenet-cache-test.pkl").write_bytes(content)
    with pytest.raises(UserError, match="asks for 'posix.system'"):
        load_mini(folder)
    assert list((folder.parent / "cache").iterdir()) == []


def test_folders_of_wnids_are_read(tmp_path):
    dataset = load_mini(write_files(tmp_path / "mini", tree_files(side=84)))
    assert dataset.name == "mini-like:mini"
    assert dataset.banks["train"].images.shape == (6, 84, 84, 3)


def csv_files(names: dict[str, list[tuple[str, str]]]) -> dict[str, bytes]:
    return {
        f"splits/{split}.csv": "\n".join(["filename,label", *map(",".join, lines)]).encode()
        for split, lines in names.items()
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_csv_files_with_named_images_are_read(zipped, tmp_path):
    table, files = {}, {}
    for split, content in tree_files(side=84).items():
        part, label, number = split.removesuffix(".png").split("/")
        name = f"{label}0000000{number}.jpg"
        table.setdefault(part, []).append((name, label))
        files[f"images/{name}"] = content
    files |= csv_files(table)
    path = write_zip(tmp_path / "m.zip", files) if zipped else write_files(tmp_path / "m", files)
    by_csv = load_mini(path)
    by_folder = load_mini(write_files(tmp_path / "folders", tree_files(side=84)))
    assert by_csv.identity == by_folder.identity and by_csv.notes == ()
    (path.parent / "cache").rename(tmp_path / "old")
    files.pop("images/val100000002.jpg")
    lacking = write_files(tmp_path / "lacking", files)
    with pytest.raises(UserError, match=r"lacks the image val100000002\.jpg of class val1"):
        load_mini(lacking)


def test_csv_names_are_places_among_imagenets_numbers(tmp_path):
    shades = {7: 10, 30: 20, 101: 30}  # ImageNet's number → grey
    files = {
        f"n{c:08d}/n{c:08d}_{n}.JPEG": encoded(np.full((8, 8, 3), grey, np.uint8), "JPEG")
        for c in range(3)
        for n, grey in shades.items()
    }
    table = {s: [(f"n{c:08d}{3:08d}.jpg", f"n{c:08d}")] for c, s in enumerate(SPLITS)}
    path = write_files(tmp_path / "m", files | csv_files(table))
    bank = load_mini(path).banks["test"]
    assert bank.names == ("n00000002",)
    assert bank.images[0].float().mean() == 30
    (path / "n00000002" / "n00000002_7.JPEG").unlink()
    with pytest.raises(UserError, match=r"lacks the image n0000000200000003\.jpg"):
        load_mini(path)


SPREADSHEETS = {
    "a byte order mark": lambda t: b"\xef\xbb\xbf" + t.encode(),
    "UTF-16": lambda t: t.encode("utf-16"),
    "semicolons": lambda t: t.replace(",", ";").encode(),
    "tabs": lambda t: t.replace(",", "\t").encode(),
    "spaces": lambda t: t.replace(",", " , ").encode(),
    "an upper-case header": lambda t: t.replace("filename,label", "Filename,LABEL").encode(),
    "other words": lambda t: t.replace("filename,label", "Image Path,class_name").encode(),
    "no header": lambda t: t.replace("filename,label\n", "").encode(),
    "lines of Windows": lambda t: t.replace("\n", "\r\n").encode(),
    "quotes": lambda t: (
        "\n".join(f'"{line}"' for line in t.split("\n")).replace(",", '","').encode()
    ),
    "an index": lambda t: "\n".join(f"{n},{row}" for n, row in enumerate(t.split("\n"))).encode(),
    "paths": lambda t: re.sub(r"^(\w+)\.", r"images/\1.", t, flags=re.M).encode(),
    "paths of elsewhere": lambda t: re.sub(r"^(\w+)\.", r"C:\\\\me\\\\\1.", t, flags=re.M).encode(),
    "another suffix": lambda t: t.replace(".png", ".JPEG").encode(),
    "no suffix": lambda t: t.replace(".png", "").encode(),
    "blank lines": lambda t: t.replace("\n", "\n\n,\n").encode(),
}


@pytest.mark.parametrize("form", SPREADSHEETS)
def test_csv_files_of_spreadsheets_are_read(form, tmp_path):
    files, tables = {}, {split: "filename,label" for split in SPLITS}
    for name, content in tree_files().items():
        split, label, number = name.split("/")
        files[f"images/{label}x{number}"] = content
        tables[split] += f"\n{label}x{number},{label}"
    expected = load_mini(write_files(tmp_path / "tree", tree_files()), 12).identity
    files |= {f"{split}.csv": SPREADSHEETS[form](text) for split, text in tables.items()}
    assert load_mini(write_files(tmp_path / "csv", files), 12).identity == expected


CELLS = ["filename", "label", "a.png", "b.png", "c/a.png", "n1", "n2", "", '"', "\x00", "é", "\\"]
LINES = st.lists(st.lists(st.sampled_from(CELLS), max_size=4), max_size=6)


@settings(deadline=None, max_examples=150)
@given(tables=st.lists(LINES, min_size=3, max_size=3), separator=st.sampled_from(",;\t"))
def test_any_csv_file_is_read_or_explained(tmp_path_factory, tables, separator):
    image = tree_files()["train/train0/0.png"]
    files = {"c/a.png": image, "d/a.png": image, "b.png": image}
    for split, lines in zip(SPLITS, tables, strict=True):
        files[f"{split}.csv"] = "\n".join(map(separator.join, lines)).encode()
    archive = write_zip(tmp_path_factory.mktemp("fuzz") / "x.zip", files)
    try:
        load("folder", archive, image_size=8, channels=3, cache=archive.parent / "cache")
    except UserError as error:
        assert "\n" not in str(error) and "\x00" not in str(error)


def test_equal_names_in_several_classes_are_told_apart(tmp_path):
    files = {name.replace("train/", "").replace("val/", ""): c for name, c in tree_files().items()}
    files = {f"pool/{name.removeprefix('test/')}": content for name, content in files.items()}
    table = {split: [] for split in SPLITS}
    for name in tree_files():
        split, label, file = name.split("/")
        table[split].append((file, label))
    path = write_files(tmp_path / "csv", files | csv_files(table))
    expected = load_mini(write_files(tmp_path / "tree", tree_files()), 12).identity
    assert load_mini(path, 12).identity == expected
    (path / "pool/train0/1.png").unlink()  # another class's 1.png is not it
    with pytest.raises(UserError, match="lacks the image 1.png of class train0"):
        load_mini(path, 12)


def test_an_image_that_may_be_any_of_several_is_not_guessed(tmp_path):
    image = tree_files()["train/train0/0.png"]
    files = {f"{part}/{split}.png": image for part in "ab" for split in SPLITS}
    files |= csv_files({split: [(f"{split}.png", split)] for split in SPLITS})
    with pytest.raises(UserError, match="several files for 3 .*: train.png of class train"):
        load_mini(write_files(tmp_path / "m", files))


def test_all_that_is_missing_is_counted(tmp_path):
    table = {split: [(f"{split}{n}.jpg", split) for n in range(20)] for split in SPLITS}
    with pytest.raises(UserError, match="lacks 60 images: train0.jpg of .* and 50 more, which"):
        load_mini(write_files(tmp_path / "m", csv_files(table)))
    files = csv_files(table)
    files["splits/val.csv"] += b"\n,val\nx.jpg\n"
    with pytest.raises(UserError, match="val.csv, lines 22, 23: a file name or its label is"):
        load_mini(write_files(tmp_path / "m", files))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("splits/test.csv"), "has no images for test"),
        (lambda f: f.update({"splits/val.csv": b"a,b\n1,2\n"}), "no columns filename and label"),
        (lambda f: f.update({"splits/val.csv": b"filename,label\n"}), "has no rows"),
        (lambda f: f.update({"splits/val.csv": b"\xff\xfe\x00"}), "no columns filename and label"),
        (lambda f: f.update({"splits/val.csv": b"filename,label\nval.jpg\n"}), "line 2: a file"),
        (lambda f: f.update({"splits/val.csv": b"filename,label\n,val\n"}), "line 2: a file"),
        (
            lambda f: f.update({"splits/val.csv": b"filename,label\n" + b"x" * (1 << 18)}),
            r"val\.csv is no CSV file \(field larger",
        ),
        (
            lambda f: f.update({"splits/val.csv": b"filename,label\nval.jpg,val\nval.jpg,other\n"}),
            "val.jpg is of class val in val and of class other in val",
        ),
        (
            lambda f: f.update({"splits/test.csv": b"filename,label\ntrain.jpg,test\n"}),
            "train.jpg is of class train in train and of class test in test",
        ),
    ],
)
def test_wrong_csv_files_are_explained(change, message, tmp_path):
    files = {f"images/{s}.jpg": encoded(np.zeros((8, 8, 3), np.uint8)) for s in SPLITS}
    files |= csv_files({s: [(f"{s}.jpg", s)] for s in SPLITS})
    change(files)
    with pytest.raises(UserError, match=message) as caught:
        load_mini(write_files(tmp_path / "m", files))
    assert "\n" not in str(caught.value)


def test_the_split_files_of_ravi_are_understood(data_dir):
    tables = data_dir / "mini-imagenet-splits"
    with pytest.raises(
        UserError, match=r"lacks 60,000 images: n0153282900000005\.jpg of class n01"
    ):
        recognise(open_tree(tables), Preparation.of("mini", 84, 3))
    labels = {split: _labels(tables / f"{split}.csv") for split in SPLITS}
    assert mini.is_mini(labels)
    labels["val"]["n01855672"] -= 1
    assert not mini.is_mini(labels)


def _labels(table: Path) -> dict[str, int]:
    rows = csv.DictReader(table.read_text().splitlines())
    return dict(collections.Counter(row["label"] for row in rows))


def test_an_unfinished_download_is_not_replaced_by_the_stand_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = tmp_path / "datasets/mini/mini-imagenet-cache-train.pkl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    with pytest.raises(UserError, match="holds no images in a form that is known; run `python"):
        load("mini", image_size=84, channels=3, cache=tmp_path / "cache")
