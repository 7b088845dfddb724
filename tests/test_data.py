"""Folders and zips as data sets, the cached bank, and the errors of both."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import Dataset, bank, load
from engine.data.bank import ClassSource, Content, read_bank, write_bank
from engine.data.preparation import Preparation
from engine.errors import UserError
from engine.runs.locks import lock
from tests.samples import decode, encoded, tree_files, write_files, write_zip


def load_folder(path: Path, cache: Path, size: int = 12, channels: int = 3) -> Dataset:
    return load("folder", path, image_size=size, channels=channels, cache=cache)


@pytest.fixture
def tree(tmp_path):
    return write_files(tmp_path / "tree", tree_files())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def only_bank(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def test_folder_and_zip_give_the_same_images(tree, tmp_path, cache):
    archive = write_zip(tmp_path / "tree.zip", tree_files())
    folder, zipped = load_folder(tree, cache), load_folder(archive, cache)
    assert folder.name == zipped.name == "folder:tree"
    assert folder.identity == zipped.identity
    assert list(folder.banks) == ["train", "val", "test"]
    bank = zipped.banks["val"]
    assert bank.names == ("val0", "val1")
    assert bank.starts.tolist() == [0, 3, 6]
    expected = decode(tree_files()["val/val1/2.png"], "", 12, 3)
    assert np.array_equal(bank.images[5].numpy(), expected)


@pytest.mark.parametrize("prefix", ["set", "a/b", "__MACOSX_not"])
def test_a_tree_may_lie_deeper(prefix, tmp_path, cache):
    files = {f"{prefix}/{name}": content for name, content in tree_files().items()}
    files |= {"notes.txt": b"", "__MACOSX/train/x/._1.png": b"", f"{prefix}/train/.hidden": b""}
    if prefix.startswith("__"):
        with pytest.raises(UserError, match="holds no images in a form that is known"):
            load_folder(write_zip(tmp_path / "x.zip", files), cache)
    else:
        assert (
            len(load_folder(write_zip(tmp_path / "x.zip", files), cache).banks["test"].names) == 2
        )


def test_validation_may_be_spelt_out(tree, cache):
    (tree / "val").rename(tree / "validation")
    assert load_folder(tree, cache).banks["val"].names == ("val0", "val1")


def test_other_splits_and_names_change_the_identity(tree, cache):
    before = load_folder(tree, cache).identity
    (tree / "train" / "train0").rename(tree / "train" / "another")
    assert load_folder(tree, cache).identity != before


def test_sizes_and_channels_are_made_to_fit(tree, cache):
    small = load_folder(tree, cache, size=7, channels=1)
    assert small.banks["train"].images.shape == (6, 7, 7, 1)
    assert (len(small.mean), len(small.std)) == (1, 1)
    source = Image.open(tree / "train/train0/0.png").convert("L")
    expected = np.asarray(source.resize((7, 7), Image.Resampling.LANCZOS))
    assert np.array_equal(small.banks["train"].images[0, ..., 0].numpy(), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_formats_decode_exactly(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(decode(encoded(pixels, kind), "", 8, 3), pixels)


def test_jpeg_16_bit_and_transparent_images_are_read(tmp_path):
    smooth = np.full((8, 8, 3), 90, np.uint8)
    assert abs(decode(encoded(smooth, "JPEG"), "", 8, 3).astype(int) - 90).max() <= 2
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    assert np.array_equal(decode(encoded(deep), "", 8, 1)[..., 0], deep >> 8)
    palette = Image.fromarray(smooth).convert("P")
    palette.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert decode((tmp_path / "p.png").read_bytes(), "", 8, 3).shape == (8, 8, 3)


def test_the_second_load_reads_the_cache(tree, cache, monkeypatch):
    first = load_folder(tree, cache)
    monkeypatch.setattr(bank, "write_bank", None)
    second = load_folder(tree, cache)
    assert second.identity == first.identity
    assert second.banks["test"].images.equal(first.banks["test"].images)
    assert second.banks["test"].names == first.banks["test"].names


def test_a_changed_file_is_read_again(tree, cache):
    before = load_folder(tree, cache)
    file = tree / "train/train0/0.png"
    file.write_bytes(encoded(np.zeros((12, 12, 3), np.uint8)))
    os.utime(file, ns=(1, 1))
    after = load_folder(tree, cache)
    assert after.banks["train"].images[0].count_nonzero() == 0
    assert before.banks["train"].images[0].count_nonzero() > 0
    assert after.identity != before.identity


@pytest.mark.parametrize("damage", ["empty", "cut", "pixel", "footer", "foreign"])
def test_a_broken_cache_is_rebuilt(damage, tree, cache):
    whole = load_folder(tree, cache).identity
    file = only_bank(cache)
    content = bytearray(file.read_bytes())
    content[100 if damage == "pixel" else -80] ^= 1
    broken = {"empty": b"", "cut": content[:-1000], "foreign": b"not a bank" * 100}
    file.write_bytes(broken.get(damage, bytes(content)))
    assert read_bank(file) is None
    assert load_folder(tree, cache).identity == whole
    assert read_bank(file) is not None


def test_nothing_is_left_when_reading_fails_half_way(tree, cache):
    (tree / "val/val1/2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val1/2\.png is not a whole image"):
        load_folder(tree, cache)
    assert list(cache.iterdir()) == []


def test_leftovers_of_writers_that_are_no_more_are_removed(tree, cache):
    load_folder(tree, cache)
    file = only_bank(cache)
    file.unlink()
    dead, alive = (cache / f"{file.name}.{n * 32}.tmp" for n in "ab")
    dead.touch()
    with open(alive, "xb") as writer:
        assert lock(writer.fileno())
        load_folder(tree, cache)
        assert sorted(cache.iterdir()) == sorted([file, alive])


def test_a_full_disk_says_what_to_do(tree, cache, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device; make room .* --cache"):
        load_folder(tree, cache)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_a_folder_is_an_error(tree, tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/cache"):
        words = f"cannot write the image cache in .*/{place}: .* a file, no folder; .* --cache"
        with pytest.raises(UserError, match=words):
            load_folder(tree, tmp_path / place)


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_a_read_only_cache_still_serves_what_it_has(tree, cache):
    known = load_folder(tree, cache).identity
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert load_folder(tree, cache).identity == known
        with pytest.raises(UserError, match="allow writing there"):
            load_folder(tree, cache, size=5)
    finally:
        cache.chmod(stat.S_IRWXU)


def test_the_bank_never_writes_to_its_file(tree, cache):
    dataset = load_folder(tree, cache)
    content = only_bank(cache).read_bytes()
    dataset.banks["train"].images.zero_()
    assert only_bank(cache).read_bytes() == content


def test_classes_of_differing_counts_are_contiguous(tmp_path):
    counts = [1, 800, 31]
    sources = [
        ClassSource(str(c), n, lambda c=c, n=n: np.full((n, 2, 2, 1), c, np.uint8))
        for c, n in enumerate(counts)
    ]
    splits = [("train", sources), ("test", sources[:1])]
    write_bank(tmp_path / "x", Content("made", lambda: splits, ("train", "test")), "x")
    banks = read_bank(tmp_path / "x").splits
    assert banks["train"].counts.tolist() == counts
    assert banks["train"].images[:, 0, 0, 0].bincount().tolist() == counts
    assert banks["test"].images.shape == (1, 2, 2, 1)


def without_test(files):
    return {name: content for name, content in files.items() if "test" not in name}


def twice(files):
    return files | {f"other/{name}": content for name, content in files.items()}


def shared_class(files):
    return files | {"test/train0/0.png": files["train/train0/0.png"]}


def flat(files):
    return {name.replace("/", "_"): content for name, content in files.items()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_test, "has no images for test"),
        (twice, "holds several data sets"),
        (shared_class, "class 'train0' is in train and in test"),
        (flat, "holds no images in a form that is known"),
    ],
)
def test_wrong_trees_are_explained(spoil, message, tmp_path, cache):
    for path in (
        write_files(tmp_path / "tree", spoil(tree_files())),
        write_zip(tmp_path / "tree.zip", spoil(tree_files())),
    ):
        with pytest.raises(UserError, match=message):
            load_folder(path, cache)
    assert not cache.exists()


def test_a_truncated_zip_is_an_error(tmp_path, cache):
    file = write_zip(tmp_path / "x.zip", tree_files())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="not|neither a folder nor a whole zip"):
        load_folder(file, cache)


def test_a_corrupt_zip_member_is_an_error(tmp_path, cache):
    file = write_zip(tmp_path / "x.zip", tree_files())
    content = bytearray(file.read_bytes())
    content[120] ^= 255
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*train0/0\.png \(Bad CRC"):
        load_folder(file, cache)


def test_member_names_cannot_leave_the_archive(tmp_path, cache):
    files = tree_files() | {"../../train/escape/0.png": tree_files()["train/train0/0.png"]}
    load_folder(write_zip(tmp_path / "x.zip", files), cache)
    assert set(tmp_path.iterdir()) == {tmp_path / "x.zip", cache}
    assert not list(tmp_path.parent.glob("train"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"GIF89a" + bytes(50), "is not a whole image"),
        (encoded(np.zeros((60, 60, 3), np.uint8), "JPEG")[:-300], "is not a whole image"),
        (encoded(np.ones((60, 60, 3), np.uint8))[:-40], "is not a whole image"),
    ],
)
def test_broken_images_are_named(content, message, tmp_path, cache):
    files = tree_files() | {"test/test1/0.png": content}
    with pytest.raises(UserError, match=message) as caught:
        load_folder(write_files(tmp_path / "tree", files), cache)
    assert "test/test1/0.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loop_of_links_ends(tree, cache):
    (tree / "train" / "loop").symlink_to(tree)
    assert load_folder(tree, cache).banks["train"].names == ("train0", "train1")


@pytest.mark.parametrize(
    ("dataset", "path", "message"),
    [
        ("", "x", "choose one of omniglot, mini, folder"),
        ("imagenet", "x", "--dataset is 'imagenet'"),
        ("folder", None, "needs --data"),
        ("folder", "", "--data is empty"),
        ("folder", "nowhere", "nowhere does not exist"),
        ("omniglot", "nowhere", "does not exist; get it by `python -m engine.data fetch omniglot`"),
        ("omniglot", None, "datasets/omniglot does not exist"),
        ("mini", "nowhere", "nowhere does not exist; run `python -m engine.data fetch mini`"),
    ],
)
def test_missing_data_is_explained(dataset, path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(dataset, path, image_size=28, channels=1, cache=tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_cache_path_is_not_the_working_directory(tree):
    with pytest.raises(UserError, match="--cache is empty"):
        load("folder", tree, image_size=12, channels=3, cache="")


def test_natural_images_of_the_shared_archive(data_dir, cache):
    dataset = load_folder(data_dir / "caltech101_84.zip", cache, size=84)
    counts = {split: bank.counts for split, bank in dataset.banks.items()}
    assert {split: len(c) for split, c in counts.items()} == {"train": 64, "val": 16, "test": 20}
    assert [int(c.sum()) for c in counts.values()] == [5755, 1240, 1247]
    assert min(int(c.min()) for c in counts.values()) == 31


def test_images_are_read_as_a_network_of_another_kind_saw_its_own(tmp_path):
    """Of files and of arrays, beside the usual ones in one cache."""
    rng, splits = np.random.default_rng(0), ("train", "val", "test")
    inked = np.where(rng.random((3, 2, 5, 20, 20, 1)) < 0.3, 40, 230).astype(np.uint8)
    usual, ink = (Preparation.of(kind, 12, 1) for kind in ("folder", "omniglot"))
    files, arrays = tmp_path / "files", tmp_path / "arrays"
    arrays.mkdir()
    for split, classes in zip(splits, inked, strict=True):
        for c, images in enumerate(classes):
            place = files / split / f"{split}{c}"
            place.mkdir(parents=True)
            for n, image in enumerate(images):
                (place / f"{n}.png").write_bytes(encoded(image[..., 0]))
        np.savez(arrays / f"{split}.npz", images=classes.reshape(10, 20, 20, 1),
                 labels=np.repeat([f"{split}{c}" for c in range(2)], 5))  # fmt: skip
    for place in (files, arrays):
        for seen in (usual, ink, usual):
            data = load("folder", place, image_size=12, channels=1, cache=tmp_path / "cache",
                        preparation=seen)  # fmt: skip
            expected = [
                seen.array(Image.fromarray(i[..., 0])) for i in inked[2].reshape(10, 20, 20, 1)
            ]
            assert np.array_equal(data.banks["test"].images.numpy(), np.stack(expected))
            assert (data.scale, data.mean, data.std) == (seen.scale, seen.mean, seen.std)
            assert (data.banks["test"].images.unique().tolist() == [0, 1]) == seen.binary
    assert len([*(tmp_path / "cache").glob("*.bank")]) == 4
