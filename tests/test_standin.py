"""The generated stand-in: announced, deterministic, and a problem that raw pixels do not solve."""

from __future__ import annotations

import hashlib
import time

import pytest
import torch

from bench import centroid
from engine.data import load, standin
from engine.episodes import EpisodeSampler
from engine.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty working directory, so that no data is found; the cache is inside."""
    return tmp_path_factory.mktemp("standin")


@pytest.fixture(scope="module")
def made(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        start = time.process_time()  # not the wall clock: other processes may want the cores
        dataset = load("mini", image_size=84, channels=3, cache=place / "cache")
        return dataset, time.process_time() - start


def test_it_has_the_shape_of_mini_imagenet_and_says_what_it_is(made):
    dataset, seconds = made
    assert seconds < 30
    assert dataset.name == "mini-standin"
    counts = {split: len(bank.names) for split, bank in dataset.banks.items()}
    assert counts == {"train": 64, "val": 16, "test": 20}
    for bank in dataset.banks.values():
        assert bank.images.shape[1:] == (84, 84, 3)
        assert bank.counts.min() >= 100
    for part in ("NOT mini-ImageNet", "python -m engine.data fetch mini", "--data FOLDER"):
        assert part in dataset.notice
    assert {len(line) for line in dataset.notice.splitlines()} == {80}


def test_raw_pixels_hardly_solve_it(made):
    sampler = EpisodeSampler(made[0], "test", ways=5, shots=1, targets=15, seed=0)
    # the deviations of the channels are nearly alike: these are distances of raw pixels
    right = torch.cat([centroid.accuracies(sampler.episode(t, 5)) for t in range(30)])
    assert 0.25 < right.mean() < 0.45


def test_it_is_the_same_on_every_machine():
    digest = hashlib.sha256(standin.draw(0).tobytes() + standin.draw(99).tobytes()).hexdigest()
    assert digest == "4abd24c9ee8dbe5caf95c700a9e7167da8c42d4a29293c468b210a22c052e325"


def test_classes_and_images_differ(made):
    images = made[0].banks["val"].images.flatten(1).float()
    picked = images[::40]
    distance = torch.cdist(picked, picked) + torch.eye(len(picked)) * 1e9
    assert distance.min() > 1000


def test_other_sizes_follow(place, monkeypatch):
    monkeypatch.setattr(standin, "CLASSES", {"train": 2, "val": 1, "test": 1})
    monkeypatch.chdir(place)
    dataset = load("mini", image_size=20, channels=1, cache=place / "small")
    assert dataset.banks["train"].images.shape == (2 * standin.IMAGES, 20, 20, 1)


def test_strict_data_makes_it_an_error(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=r"--strict-data: no data at datasets.mini; run `python"):
        load("mini", image_size=84, channels=3, strict=True, cache=place / "cache")


def test_an_empty_default_folder_counts_as_no_data(made, place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "datasets/mini").mkdir(parents=True)
    dataset = load("mini", image_size=84, channels=3, cache=place / "cache")
    assert dataset.identity == made[0].identity


def test_it_has_splits_of_its_own(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--split-ratio is 1/1/1, but the generated stand-in has"):
        load("mini", image_size=20, channels=1, cache=cache, split_ratio="1/1/1")
