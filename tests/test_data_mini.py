"""mini-ImageNet in its four forms, and pickles that are not what they should be."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from engine.data import load, mini
from engine.data.pickles import read_pickle
from engine.data.tree import Tree
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


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_published_pickles_are_read(protocol, folder):
    dataset = load_mini(write_pickles(folder, protocol))
    assert (dataset.name, dataset.notice) == ("mini", None)
    for split in SPLITS:
        content, bank = mini_split(split), dataset.banks[split]
        assert bank.names == tuple(content["class_dict"])
        for c, rows in enumerate(content["class_dict"].values()):
            images = bank.images[bank.starts[c] : bank.starts[c + 1]].numpy()
            assert np.array_equal(images, content["image_data"][rows])


def test_pickles_are_resized_on_request(folder):
    bank = load_mini(write_pickles(folder), 20, 1).banks["val"]
    assert bank.images.shape == (8, 20, 20, 1)


def test_pickles_by_label_are_read(folder):
    for split in ("train_phase_train", "train_phase_val", "val", "test"):
        content = mini_split(split)
        names = list(content["class_dict"])
        labels = [c for _ in range(4) for c in range(2)]
        numbers = {name: c for c, name in enumerate(names)}
        content = {"data": content["image_data"], "labels": labels, "catname2label": numbers}
        file = folder / f"miniImageNet_category_split_{split}.pickle"
        file.write_bytes(pickle.dumps(content, 2))
    dataset = load_mini(folder)
    content = mini_split("train_phase_train")
    assert dataset.banks["train"].names == tuple(content["class_dict"])
    assert np.array_equal(dataset.banks["train"].images[:4].numpy(), content["image_data"][::2])


def python2_pickle(text: bytes, array: np.ndarray) -> bytes:
    """{text: array} as Python 2 and numpy 1 wrote it in protocol 2: byte strings throughout."""

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    )
    state = b"(K\x01" + shape + dtype + b"\x89" + string(array.tobytes()) + b"tb"
    return b"\x80\x02}" + string(text) + empty + state + b"s."


def test_pickles_of_python_2_are_read(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x").write_bytes(python2_pickle(b"image_data", array))
    content = read_pickle(tmp_path / "x")
    assert list(content) == ["image_data"]
    assert np.array_equal(content["image_data"], array)


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "?", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were(dtype, order, tmp_path):
    array = np.asarray(np.arange(6).reshape(2, 3), dtype, order=order)
    (tmp_path / "x").write_bytes(pickle.dumps({"a": array, "n": [1, 2.5, None, "é"]}, 2))
    content = read_pickle(tmp_path / "x")
    assert content["a"].dtype == array.dtype
    assert np.array_equal(content["a"], array)
    assert content["n"] == [1, 2.5, None, "é"]


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def persistent() -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 2)
    pickler.persistent_id = lambda value: "id" if value == "x" else None
    pickler.dump(["x"])
    return file.getvalue()


MALICIOUS = {
    "a command": pickle.dumps(Call(os.system, "touch ran")),
    "evaluation": pickle.dumps(Call(eval, "open('ran', 'w')")),
    "a file": pickle.dumps(Call(open, "ran", "w")),
    "another codec": pickle.dumps(Call(codecs.encode, "abc", "rot13"), 2),
    "objects": pickle.dumps(np.array([Call(os.system, "touch ran")], dtype=object), 2),
    "only objects": pickle.dumps(np.array([None], dtype=object), 2),
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__dict__\x93.",
    "old instance": b"(S'touch ran'\nios\nsystem\n.",
    "a name of two lines": b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.",
    "numpy's loader": pickle.dumps(Call(np.load, "x.npy")),
    "a persistent object": persistent(),
    "a changed function": b"cnumpy.core.multiarray\n_reconstruct\nN}S'__defaults__'\nNs\x86b.",
    "a changed class": b"cnumpy\nndarray\nN}S'value'\nNs\x86b.",
    "too few bytes": python2_pickle(b"x", np.zeros((2, 3, 4), np.uint8)).replace(
        b"J\x02\x00\x00\x00", b"J\xff\xff\xff\x7f"
    ),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_pickles_run_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(MALICIOUS[name])
    with pytest.raises(UserError, match="nothing in it was run|truncated or no pickle") as caught:
        read_pickle(tmp_path / "x.pkl")
    assert [f.name for f in tmp_path.iterdir()] == ["x.pkl"]
    assert "\n" not in str(caught.value)


def test_a_malicious_pickle_stops_the_loading(folder):
    write_pickles(folder)
    (folder / "mini-imagenet-cache-test.pkl").write_bytes(MALICIOUS["a command"])
    with pytest.raises(UserError, match=r"asks for '(posix|nt)\.system'"):
        load_mini(folder)
    assert list((folder.parent / "cache").iterdir()) == []


@pytest.mark.parametrize("keep", [0, 1, 40, 100_000, -1])
def test_truncated_pickles_are_explained(keep, folder):
    file = write_pickles(folder) / "mini-imagenet-cache-train.pkl"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="is truncated or no pickle"):
        load_mini(folder)


def images(shape, dtype=np.uint8):
    return {"image_data": np.zeros(shape, dtype), "class_dict": {"n00000000": [0]}}


def rows(**classes):
    return {"image_data": np.zeros((4, 84, 84, 3), np.uint8), "class_dict": classes}


def by_label(labels, numbers):
    return {"data": np.zeros((4, 84, 84, 3), np.uint8), "labels": labels, "catname2label": numbers}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"x": 1}, r"has keys \['x'\]"),
        (images((2, 84, 84, 1)), r"are uint8 \[2, 84, 84, 1\], but must be"),
        (images((2, 84, 84, 3), np.float32), "the images are float32"),
        (images((0, 84, 84, 3)), r"\[0, 84, 84, 3\]"),
        ({"image_data": [[1]], "class_dict": {"a": [0]}}, "the images are no array"),
        (rows(), "no dict of classes"),
        (rows(a=[0, 4]), "class a names rows 0 to 4 of 4 images"),
        (rows(a=[-1, 0]), "class a names rows -1 to 0"),
        (rows(a=[0.5]), "class a has no list of row numbers"),
        (rows(a=[]), "class a has no list of row numbers"),
        (rows(a=[0, 1], b=[1, 2]), "belongs to two classes or twice to one"),
        (rows(a=[[0, 1]]), "class a has no list of row numbers"),
        (rows(a=[[0], [1, 2]]), "class a has no list of row numbers"),
        (rows(a=[2**70]), "class a has no list of row numbers"),
        (by_label([0], {}), "label 0 has no name"),
        (by_label([0], []), "catname2label is no dict"),
        (by_label([0], {"a": [0]}), "must give each class a whole number"),
        (by_label([0], {"a": "0"}), "must give each class a whole number"),
        (by_label([0], {"a": 0, "b": 0}), "gives two classes one number"),
        (by_label([[0, 1]], {"a": 0, "b": 1}), "the labels are no list of whole numbers"),
        (by_label([[0], [0, 1]], {"a": 0, "b": 1}), "the labels are no list of whole numbers"),
        (by_label(["a"], {"a": 0}), "the labels are no list of whole numbers"),
    ],
)
def test_wrong_contents_are_explained(content, message, folder):
    write_pickles(folder)
    (folder / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UserError, match=message) as caught:
        load_mini(folder)
    assert "\n" not in str(caught.value)


def test_missing_doubled_and_overlapping_pickles_are_explained(folder):
    write_pickles(folder)
    train, test = (folder / f"mini-imagenet-cache-{s}.pkl" for s in ("train", "test"))
    kept = test.read_bytes()
    test.write_bytes(train.read_bytes())
    with pytest.raises(UserError, match="class 'n50000000' is in train and in test"):
        load_mini(folder)
    test.unlink()
    with pytest.raises(UserError, match="none for test; finish it by: python -m engine.data fetch"):
        load_mini(folder)
    test.write_bytes(kept)
    (folder / "train.pickle").write_bytes(train.read_bytes())
    with pytest.raises(UserError, match="two pickles for train"):
        load_mini(folder)


def test_folders_of_wnids_are_read(tmp_path):
    dataset = load_mini(write_files(tmp_path / "mini", tree_files(side=84)))
    assert dataset.name == "mini"
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
    assert by_csv.identity == by_folder.identity
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("splits/val.csv"), r"has no val\.csv"),
        (lambda f: f.update({"splits/val.csv": b"a,b\n1,2\n"}), "not filename and label"),
        (lambda f: f.update({"splits/val.csv": b"filename,label\n"}), "has no rows"),
        (lambda f: f.update({"splits/val.csv": b"\xff\xfe\x00"}), "not filename and label|no CSV"),
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
    assert len(Tree(tables).names) >= 3
    with pytest.raises(UserError, match=r"lacks the image n0153282900000005\.jpg"):
        mini.find(tables)


def test_an_unfinished_download_is_not_replaced_by_the_stand_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = tmp_path / "datasets/mini/mini-imagenet-cache-train.pkl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    with pytest.raises(UserError, match="holds no mini-ImageNet that could be recognised; run"):
        load("mini", image_size=84, channels=3, cache=tmp_path / "cache")
