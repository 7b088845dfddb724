"""The forms in which people keep pictures: what becomes of each image, and what is said of it."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.data import Dataset, archives, load
from engine.data import __main__ as command
from engine.data.layout import split_named
from engine.data.preparation import Preparation
from engine.data.recognise import recognise
from engine.data.tree import open_tree
from engine.errors import UserError
from tests.samples import SPLITS, encoded, tree_files, write_files, write_pickles, write_zip


def read(path: Path, cache: Path | None = None, **options) -> Dataset:
    cache = cache or path.parent / "cache"
    return load("folder", path, image_size=12, channels=3, cache=cache, **options)


def renamed(files: dict[str, bytes], **splits: str) -> dict[str, bytes]:
    """With other names for the splits, or without one (None)."""
    parted = ((name.partition("/"), content) for name, content in files.items())
    return {
        f"{splits.get(split, split)}/{rest}": content
        for (split, _, rest), content in parted
        if splits.get(split, split)
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Dataset:
    return read(write_files(tmp_path_factory.mktemp("plain") / "tree", tree_files()))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("base", "val", "novel"),
        ("meta-train", "meta-val", "meta-test"),
        ("meta_train", "metaval", "metatest"),
        ("training", "validation", "testing"),
        ("Train", "VALID", "Test"),
        ("train", "validation", "novel"),
    ],
)
def test_splits_have_many_names(train, val, test, plain, tmp_path):
    files = renamed(tree_files(), train=train, val=val, test=test)
    assert read(write_files(tmp_path / "tree", files)).identity == plain.identity


@pytest.mark.parametrize("word", ["trains", "metal", "evaluation", "", "t", "meta", "meta-"])
def test_other_words_name_no_split(word):
    assert split_named(word) is None


def nested(files):
    return {n.replace("/0.png", "/more/deep/0.png"): content for n, content in files.items()}


def in_upper_case(files):
    return {name.replace(".png", ".PNG"): content for name, content in files.items()}


def of_another_format(files):
    """A lossless one under its own name: the same pixels."""
    found = {}
    for name, content in files.items():
        image = Image.open(io.BytesIO(content))
        found[name.replace(".png", ".bmp")] = encoded(np.asarray(image), "BMP")
    return found


@pytest.mark.parametrize("change", [nested, in_upper_case, of_another_format])
def test_no_image_is_lost(change, plain, tmp_path):
    dataset = read(write_files(tmp_path / "tree", change(tree_files())))
    for split in SPLITS:
        mine, theirs = dataset.banks[split], plain.banks[split]
        assert (mine.names, mine.counts.tolist()) == (theirs.names, theirs.counts.tolist())
        pixels = [sorted(i.numpy().tobytes() for i in bank.images) for bank in (mine, theirs)]
        assert pixels[0] == pixels[1]
    assert dataset.notes == (
        ("6 images lie in folders below their class",) if change is nested else ()
    )


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    files = tree_files() | {
        "train/train0/notes.txt": b"",
        "train/train0/model.eps": b"",
        "README.md": b"",
        "train/loose.png": tree_files()["train/train0/0.png"],
        "train/train1/.DS_Store": b"",
        "train/train1/Thumbs.db": b"",
    }
    folder = write_files(tmp_path / "tree", files)
    os.mkfifo(folder / "train/train0/9.png")
    (folder / "train/train0/8.png").symlink_to("nowhere.png")
    (folder / "train/again").symlink_to(folder)
    expected = (
        "left out: 1 images in no class of a split (train/loose.png)",
        "left out: 3 files that are no images by their names (README.md, train/train0/model.eps, "
        "train/train0/notes.txt)",
        "left out: 1 links that lead nowhere (No such file or directory) (train/train0/8.png)",
        "left out: 1 links to a folder that they lie in (train/again)",
        "left out: 1 pipes, sockets or devices (train/train0/9.png)",
    )
    assert sorted(read(folder).notes) == sorted(expected)
    assert sorted(read(folder).notes) == sorted(expected)  # from the cache, too
    assert command.main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {line}\n" in shown for line in expected)


def test_a_class_that_loses_all_its_images_is_an_error_unless_asked_for(tmp_path):
    files = tree_files() | {"train/train2/a.txt": b"", "val/val2/b.psb": b"", "test/x/y.pdf": b""}
    folder = write_files(tmp_path / "tree", files)
    (folder / "train" / "bare").mkdir()
    with pytest.raises(UserError, match=r"has 4 classes without an image .*: test/x, train/bare, "):
        read(folder)
    dataset = read(folder, skip_small=True)
    assert dataset.banks["train"].names == ("train0", "train1")
    assert dataset.notes[-1] == (
        "left out: 4 classes without an image (test/x, train/bare, train/train2 and 1 more)"
    )
    with pytest.raises(UserError, match="has 4 classes without an image"):
        read(folder)  # what was cached meanwhile changes nothing


@pytest.mark.parametrize("pool", ["a_pool", "z_pool", "train_pool"])
def test_links_to_folders_elsewhere_in_the_tree_are_followed(pool, plain, tmp_path):
    folder = tmp_path / "tree"
    for name, content in tree_files().items():
        split, label, file = name.split("/")
        write_files(folder, {f"{pool}/{label}/{file}": content})
        (folder / split).mkdir(exist_ok=True)
        if not (folder / split / label).exists():
            (folder / split / label).symlink_to(f"../{pool}/{label}")
    assert read(folder).identity == plain.identity


def test_links_that_multiply_without_end_are_refused(tmp_path):
    for n in range(30):
        (tmp_path / "tree" / f"d{n}").mkdir(parents=True)
    for n in range(29):
        for name in "ab":
            (tmp_path / "tree" / f"d{n}" / name).symlink_to(f"../d{n + 1}")
    with pytest.raises(UserError, match="lead to .* in more than 1000 ways; remove some"):
        open_tree(tmp_path / "tree")


def test_one_class_by_two_links_is_refused(tmp_path):
    folder = write_files(tmp_path / "tree", tree_files())
    (folder / "test" / "other").symlink_to("../train/train0")
    with pytest.raises(UserError, match="train/train0 is the same folder as|is the same folder"):
        read(folder)


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_differ_in_case_or_unicode_form_are_one(one, other, tmp_path):
    image = tree_files()["train/train0/0.png"]
    files = tree_files() | {f"train/{one}/0.png": image, f"test/{other}/0.png": image}
    with pytest.raises(UserError, match=f"class '{one}' is in train and in test as '{other}'"):
        read(write_zip(tmp_path / "tree.zip", files))


def test_every_class_in_two_splits_is_named(tmp_path):
    image = tree_files()["train/train0/0.png"]
    both = {f"{split}/c{n:02}/0.png": image for split in ("train", "test") for n in range(12)}
    with pytest.raises(UserError, match="c00.*c09' is in train and in test and 2 more, but"):
        read(write_files(tmp_path / "tree", tree_files() | both))


def test_every_broken_image_of_every_class_is_named(tmp_path):
    broken = {f"{split}/{split}0/{n}.png": b"x" for split in SPLITS for n in range(2)}
    with pytest.raises(
        UserError, match="6 images cannot be used: .*train/train0/0.png is not"
    ) as e:
        read(write_files(tmp_path / "tree", tree_files() | broken))
    assert "test/test0/1.png" in str(e.value)
    assert list((tmp_path / "cache").iterdir()) == []


FLAT = {
    f"class{c:02}/{n}.png": encoded(np.full((12, 12, 3), 10 * c, np.uint8))
    for c in range(20)
    for n in range(2)
}


def test_class_folders_without_splits_are_divided_by_ratio(tmp_path):
    folder = write_files(tmp_path / "tree", FLAT | {"loose.png": FLAT["class00/0.png"]})
    with pytest.raises(UserError, match="holds classes but no splits: give --split-ratio 64/16/20"):
        read(folder)
    dataset = read(folder, split_ratio="64/16/20")
    names = {split: bank.names for split, bank in dataset.banks.items()}
    assert [len(n) for n in names.values()] == [13, 3, 4]
    assert sorted(sum(names.values(), ())) == sorted({name.split("/")[0] for name in FLAT})
    assert dataset.notes == (
        "divided 64/16/20 by seed 0",
        "left out: 1 images in no class folder (loose.png)",
    )
    for bank in dataset.banks.values():
        for c, name in enumerate(bank.names):
            assert (bank.images[bank.starts[c]] == 10 * int(name[-2:])).all()
    again = read(write_zip(tmp_path / "x.zip", {f"a/b/{n}": v for n, v in FLAT.items()}), **RATIO)
    assert again.identity == dataset.identity
    assert read(folder, split_ratio="64/16/20", seed=1).identity != dataset.identity
    with pytest.raises(UserError, match="20 classes divided 1/1/1000 leave none for"):
        read(folder, split_ratio="1/1/1000")


RATIO = {"split_ratio": "64/16/20"}


def test_a_tree_of_one_split_may_be_divided_too(tmp_path):
    files = {f"train/{name}": content for name, content in FLAT.items()}
    files |= {f"test/{n}.png": FLAT["class00/0.png"] for n in range(3)}  # unlabelled
    folder = write_files(tmp_path / "tree", files)
    with pytest.raises(UserError, match="no images for test: .* or give --split-ratio to divide"):
        read(folder)
    dataset = read(folder, split_ratio="64/16/20")
    assert sum(len(bank.names) for bank in dataset.banks.values()) == 20
    assert "left out: 3 images in no class of a split" in dataset.notes[1]


def test_without_val_training_classes_validate(tmp_path):
    files = {f"train/{n}": c for n, c in FLAT.items()}
    files |= {n: c for n, c in tree_files().items() if n.startswith("test/")}
    folder = write_files(tmp_path / "tree", files)
    dataset = read(folder)
    sizes = {split: len(bank.names) for split, bank in dataset.banks.items()}
    assert sizes == {"train": 16, "val": 4, "test": 2}
    assert not set(dataset.banks["train"].names) & set(dataset.banks["val"].names)
    assert dataset.notes == ("no val: 4 of 20 training classes by seed 0 validate",)
    assert len(read(folder, split_ratio="1/1/5").banks["val"].names) == 10


def test_a_ratio_for_data_with_splits_is_refused(tmp_path):
    with pytest.raises(UserError, match="--split-ratio is 1/1/1, but .* has its own train, val"):
        read(write_files(tmp_path / "tree", tree_files()), split_ratio="1/1/1")
    with pytest.raises(UserError, match="--split-ratio is '1/0/1': give three shares"):
        read(write_files(tmp_path / "tree2", tree_files()), split_ratio="1/0/1")


def test_cub_is_read_by_its_list(tmp_path):
    names = [f"{c:03}.Bird_{c}/B_{n}.png" for c in range(1, 11) for n in range(2)]
    image = FLAT["class00/0.png"]
    files = {f"CUB_200_2011/images/{name}": image for name in names}
    listing = "".join(f"{n} {name}\n" for n, name in enumerate(names, 1))
    files |= {
        "CUB_200_2011/images.txt": listing.encode(),
        "CUB_200_2011/classes.txt": b"1 001.Bird_1\n",
        "segmentations/001.Bird_1/B_0.png": image,
    }
    folder = write_files(tmp_path / "cub", files)
    dataset = read(folder, split_ratio="5/2/3")
    assert [len(bank.names) for bank in dataset.banks.values()] == [5, 2, 3]
    assert "001.Bird_1" in sum((bank.names for bank in dataset.banks.values()), ())
    assert any("images that CUB_200_2011/images.txt does not name" in n for n in dataset.notes)
    assert not any("images.txt)" in note for note in dataset.notes)
    (folder / "CUB_200_2011/images" / names[3]).unlink()
    with pytest.raises(UserError, match="lacks 1 images that .*images.txt names: 002.Bird_2/B_1"):
        read(folder, split_ratio="5/2/3")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "linked"])
def test_tar_archives_are_read(kind, plain, tmp_path):
    folder = write_files(tmp_path / "tree", tree_files())
    if kind == "linked":
        os.link(folder / "train/train0/0.png", folder / "train/train0/00.png")
        (folder / "train/train0/0.png").unlink()
        os.link(folder / "train/train0/00.png", folder / "train/train0/0.png")
        (folder / "train/train0/00.png").unlink()
    compression = {"tar": "", "linked": ""}.get(kind, {"tgz": "gz"}.get(kind, kind[4:]))
    file = tmp_path / f"tree.{'tar' if kind == 'linked' else kind}"
    with tarfile.open(file, f"w:{compression}") as archive:
        archive.add(folder, "." if kind == "tar" else "tree")
    dataset = read(file)
    assert (dataset.identity, dataset.name) == (plain.identity, "folder:tree")


def test_a_zip_made_on_windows_is_read(plain, tmp_path):
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name, content in tree_files().items():
            archive.writestr(zipfile.ZipInfo(name.replace("/", "\\")), content)
    assert read(tmp_path / "tree.zip").identity == plain.identity


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    blank = bytes(1 << 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(400):
            archive.writestr(f"train/a/{n}.png", blank)
    with pytest.raises(
        UserError, match=r"x.zip unpacks to 419,430,400 bytes: no images but a bomb"
    ):
        open_tree(tmp_path / "x.zip")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        (tmp_path / "blank").write_bytes(blank)
        for n in range(400):
            archive.add(tmp_path / "blank", f"train/a/{n}.png")
    with pytest.raises(
        UserError, match="x.tgz unpacks to more than .* bytes: no images but a bomb"
    ):
        open_tree(tmp_path / "x.tgz")


@pytest.mark.parametrize("keep", [0, 10, 600, 2000])
def test_archives_that_are_cut_are_explained(keep, tmp_path):
    folder = write_files(tmp_path / "tree", tree_files())
    for kind in ("gz", "bz2", "xz"):
        file = tmp_path / f"x.tar.{kind}"
        with tarfile.open(file, f"w:{kind}") as archive:
            archive.add(folder, "tree")
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(UserError, match="is neither a folder nor a whole zip or tar archive"):
            read(file)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe, socket or device"):
            load("folder", path, image_size=8, channels=3, cache=tmp_path / "cache")


names = st.sampled_from(
    ["train", "val", "test", "a", "b", "Train", "base", "x.png", "y.PNG", "z.txt", "train.csv"]
)


@settings(deadline=None, max_examples=150)
@given(
    paths=st.lists(st.lists(names, min_size=1, max_size=5).map(tuple), max_size=25, unique=True),
    windows=st.booleans(),
)
def test_no_tree_loses_an_image_without_a_word(tmp_path_factory, paths, windows):
    """Each is in a class, or counted among what is left out; or the whole is refused in a line."""
    image = FLAT["class00/0.png"]
    slash = "\\" if windows else "/"
    archive = tmp_path_factory.mktemp("fuzz") / "x.zip"
    write_zip(archive, {slash.join(path): image for path in paths})
    try:
        content = recognise(open_tree(archive), Preparation.of("folder", 8, 3))
        if content is None:
            return
        used = sum(source.count for _, sources in content.splits() for source in sources)
    except UserError as error:
        assert "\n" not in str(error)
        return
    pictures = {path for path in paths if path[-1].lower().endswith(".png")}
    left = [re.match(r"left out: (\d+) images", note) for note in content.notes]
    assert used + sum(int(found[1]) for found in left if found) == len(pictures)


def test_many_files_and_deep_folders_take_little_time(tmp_path):
    folder = write_files(tmp_path / "tree", tree_files())
    for c in range(2):
        for n in range(2000):
            os.link(folder / "train/train0/0.png", folder / f"train/train{c}/x{n}.png")
    deep = folder / "train/train0"
    for _ in range(400):
        deep /= "d"
    deep.mkdir(parents=True)
    read(folder)
    start = time.process_time()
    assert read(folder).banks["train"].counts.tolist() == [2003, 2003]
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_pickles_in_an_archive_are_read(kind, tmp_path):
    (tmp_path / "mini").mkdir()
    folder = write_pickles(tmp_path / "mini")
    file = tmp_path / f"mini.{kind}"
    if kind == "zip":
        write_zip(file, {f"a/{p.name}": p.read_bytes() for p in folder.iterdir()})
    else:
        with tarfile.open(file, "w:gz") as archive:
            archive.add(folder, "a")
    assert read(file).identity == read(folder).identity
    assert read(file).notes == read(folder).notes
    assert "read by image_data and class_dict" in read(file).notes


def test_folders_beside_that_of_the_data_are_none_of_its_splits(tmp_path):
    for name in ("birds/train/wren", "birds/val/crow", "birds/test/robin", "birds_test/magpie"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (16, 16), 99 + i).save(tmp_path / name / f"{i}.png")
    found = load("folder", tmp_path, image_size=16, channels=1)
    assert {split: bank.names for split, bank in found.banks.items()} == {
        "train": ("wren",),
        "val": ("crow",),
        "test": ("robin",),
    }
    assert any("birds_test" in note for note in found.notes)


@pytest.mark.parametrize("name", ["a//b", "./a/b/", "/a/./b", "././a/b"])
def test_names_in_an_archive_are_as_unpacking_has_them(name):
    assert archives._inside(name) == "a/b" and archives._inside("../a") == "../a"
