"""Omniglot: exact pixels, splits, and incomplete copies; the real archives are decoded once."""

from __future__ import annotations

import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from engine.data import load, omniglot
from engine.data.preparation import Preparation
from engine.errors import UserError
from tests.samples import encoded, write_zip
from tests.slow import slow

SEEN = Preparation.of("omniglot", 28, 1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("omniglot-cache")


@pytest.fixture(scope="session")
def source(data_dir):
    return data_dir / "omniglot"


@pytest.fixture(scope="session")
def paper(source, cache):
    return load("omniglot", source, image_size=28, channels=1, seed=0, cache=cache)


def test_the_paper_split(paper):
    counts = {split: (len(b.names), len(b.images)) for split, b in paper.banks.items()}
    assert counts == {"train": (1150, 23000), "val": (50, 1000), "test": (423, 8460)}
    assert paper.name == "omniglot"
    names = [name for bank in paper.banks.values() for name in bank.names]
    assert not omniglot.is_it({"train": dict.fromkeys(["Alphabet/character01", *names[1:]], 20)})
    assert len(set(names)) == 1623
    assert paper.banks["train"].images.unique().tolist() == [0, 1]
    assert paper.banks["train"].images.float().mean() > 0.8  # paper is 1
    assert (paper.name, paper.scale, paper.mean, paper.std) == ("omniglot", 1.0, (0.0,), (1.0,))


def test_pixels_are_the_references(paper, source):
    """Its loader opens, resizes by Lanczos, which PIL ignores for 1 bit, and converts."""
    name = paper.banks["test"].names[3]
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(source / f"images_{part}.zip") as archive:
            files = sorted(n for n in archive.namelist() if f"/{name}/" in n)
            pictures = [Image.open(io.BytesIO(archive.read(n))) for n in files]
        if pictures:
            resized = [p.resize((28, 28), Image.Resampling.LANCZOS) for p in pictures]
            expected = np.stack([np.array(p, np.float32) for p in resized])
            bank = paper.banks["test"]
            images = bank.images[bank.starts[3] : bank.starts[4], :, :, 0].numpy()
            assert np.array_equal(images, expected)


def test_the_seed_shuffles_the_classes(source):
    found = omniglot.find(source, omniglot.trees(source))
    first, again, other = (omniglot.split_names(found, "paper", seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(sum(first.values(), [])) == sorted(sum(other.values(), []))


def test_the_official_split(source):
    found = omniglot.find(source, omniglot.trees(source))
    names = omniglot.split_names(found, "background", 0)
    assert {split: len(n) for split, n in names.items()} == {"train": 914, "val": 50, "test": 659}
    assert set(names["train"]) | set(names["val"]) == set(found["background"])
    assert names["test"] == sorted(found["evaluation"])
    with pytest.raises(UserError, match="choose paper or background"):
        omniglot.split_names(found, "other", 0)


@pytest.fixture
def mixed(source, tmp_path):
    """One half in its archive, the other as folders."""
    shutil.copy(source / "images_background.zip", tmp_path)
    with zipfile.ZipFile(source / "images_evaluation.zip") as archive:
        archive.extractall(tmp_path / "python")
    return tmp_path


@slow("decodes all images again")
def test_unpacked_folders_are_the_same_data(paper, mixed, tmp_path):
    again = load("omniglot", mixed, image_size=28, channels=1, cache=tmp_path / "cache")
    assert again.identity == paper.identity


def test_unpacked_folders_are_found(source, mixed, tmp_path):
    assert len(omniglot.find(tmp_path, omniglot.trees(tmp_path))["evaluation"]) == 659
    shutil.rmtree(tmp_path / "python" / "images_evaluation" / "Angelic" / "character01")
    with pytest.raises(UserError, match="images_evaluation has 658 characters of 659"):
        omniglot.find(tmp_path, omniglot.trees(tmp_path))
    shutil.copy(source / "images_evaluation.zip", tmp_path / "python")
    assert len(omniglot.find(tmp_path, omniglot.trees(tmp_path))["evaluation"]) == 659


def test_one_set_alone_is_an_error(source, tmp_path, cache):
    shutil.copy(source / "images_background.zip", tmp_path)
    with pytest.raises(UserError, match="has no images_evaluation; get it by: python -m engine"):
        load("omniglot", tmp_path, image_size=28, channels=1, cache=cache)


def archive_of(folder, change):
    """An archive of images_evaluation that has all files, one of them changed."""
    white = encoded(np.full((105, 105), 255, np.uint8))
    files = {
        f"images_evaluation/A{c // 50}/character{c % 50 + 1:02d}/{c:04d}_{n:02d}.png": white
        for c in range(659)
        for n in range(1, 21)
    }
    change(files, next(iter(files)))
    return write_zip(folder / "images_evaluation.zip", files)


def test_incomplete_and_wrong_drawings_are_explained(tmp_path, source, cache):
    shutil.copy(source / "images_background.zip", tmp_path)
    small = encoded(np.zeros((28, 28), np.uint8))
    for change, message in (
        (lambda files, name: files.pop(name), "images_evaluation: A0/character01 has 19 draw"),
        (lambda files, name: files.update({name: small}), "0000_01.png is 28x28, but Omniglot"),
        (lambda files, name: files.update({name: b"x"}), "0000_01.png is not a whole image"),
    ):
        archive_of(tmp_path, change)
        with pytest.raises(UserError, match=message):
            content = omniglot.open_source(tmp_path, SEEN, "background", 0).content()
            {split: [c.read() for c in classes[:1]] for split, classes in content.splits()}


def test_other_data_is_not_omniglot(tmp_path, cache):
    (tmp_path / "x.png").touch()
    with pytest.raises(UserError, match="holds no Omniglot"):
        load("omniglot", tmp_path, image_size=28, channels=1, cache=cache)


def test_other_sizes_and_channels(source):
    picture = omniglot.open_source(source, Preparation.of("omniglot", 20, 3), "paper", 0)
    _, classes = next(iter(picture.content().splits()))
    images = classes[0].read()
    assert images.shape == (20, 20, 20, 3)
    assert np.array_equal(images[..., 0], images[..., 2])


def test_a_drawing_is_read_as_a_network_of_pictures_sees_it():
    pixels = np.random.default_rng(0).random((105, 105)) < 0.7
    drawing = encoded(pixels)
    seen = Preparation.of("folder", 28, 3)
    assert np.array_equal(omniglot._decode(drawing, "x", seen), seen.decode(drawing, "x"))
    ink = omniglot._decode(drawing, "x", SEEN)
    assert np.array_equal(ink, SEEN.decode(drawing, "x")) and set(np.unique(ink)) == {0, 1}


@pytest.mark.parametrize("kind", ["folder", "mini"])
def test_it_is_known_where_another_kind_is_asked_for(kind, source, cache):
    with pytest.raises(UserError, match="that is known; it is Omniglot: give --dataset omniglot"):
        load(kind, source, image_size=28, channels=1, cache=cache)
