"""Tasks: reproducible whatever the batch, disjoint, of the right images, and well laid out."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import Dataset, load
from engine.data.bank import ClassBank
from engine.episodes import EpisodeSampler
from engine.errors import UserError
from engine.runtime.prefetch import prefetch
from tests.samples import dataset


def sampler(data, split="train", **changes) -> EpisodeSampler:
    options = {"ways": 3, "shots": 2, "targets": 3, "seed": 0, "rotations": "none"}
    options |= {"flags": ("--ways", "--shots", "--targets")} | changes
    return EpisodeSampler(data, split, **options)


def equal(a, b) -> bool:
    return all(x.equal(y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def who(x: torch.Tensor) -> list[list[tuple[int, int]]]:
    """(class, place) of every image of every task of ``samples.dataset``."""
    return [[(int(i[0, 0, 0]), int(i[0, 0, 1])) for i in task] for task in x]


@st.composite
def draws(draw):
    shots, targets = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    least = shots + targets
    counts = draw(st.lists(st.integers(least, 40), min_size=1, max_size=12))
    return {
        "counts": counts,
        "ways": draw(st.integers(1, len(counts))),
        "shots": shots,
        "targets": targets,
        "seed": draw(st.integers(0, 2**40)),
        "iteration": draw(st.integers(0, 2**40)),
        "tasks": draw(st.integers(1, 6)),
    }


@settings(deadline=None, max_examples=60)
@given(draws())
def test_tasks_are_disjoint_class_major_and_independent_of_the_batch(d):
    options = {name: d[name] for name in ("ways", "shots", "targets", "seed")}
    made = sampler(dataset(d["counts"]), **options)
    episode = made.episode(d["iteration"], d["tasks"])
    for support, target in zip(who(episode.support_x), who(episode.target_x), strict=True):
        assert len({*support, *target}) == d["ways"] * (d["shots"] + d["targets"])
        assert all(place < d["counts"][c] for c, place in support + target)
        classes = [c for c, _ in support[:: d["shots"]]]
        assert len(set(classes)) == d["ways"]
        assert [c for c, _ in support] == [c for c in classes for _ in range(d["shots"])]
        assert [c for c, _ in target] == [c for c in classes for _ in range(d["targets"])]
    labels = torch.arange(d["ways"])
    assert episode.support_y.equal(labels.repeat_interleave(d["shots"]).repeat(d["tasks"], 1))
    assert episode.target_y.equal(labels.repeat_interleave(d["targets"]).repeat(d["tasks"], 1))
    again = sampler(dataset(d["counts"]), **options)
    for i in range(d["tasks"]):
        assert equal(again.episode(d["iteration"], 1, first_task=i), episode.slice(i, i + 1))


def test_seed_split_iteration_and_task_each_change_the_images():
    data = dataset([200] * 50)
    episodes = [
        sampler(data, split, seed=seed).episode(t, 1, first_task=i)
        for seed, split, t, i in itertools.product((0, 1), ("train", "val"), (0, 1), (0, 1))
    ]
    assert not any(equal(a, b) for a, b in itertools.combinations(episodes, 2))


def test_draws_are_fixed_for_ever():
    """A change here makes every recorded figure and every stopped run something else."""
    episode = sampler(dataset([31, 100, 200, 20, 50]), ways=2, seed=7).episode(3, 1)
    assert who(episode.support_x) == [[(2, 154), (2, 22), (4, 15), (4, 26)]]
    assert who(episode.target_x) == [[(2, 145), (2, 45), (2, 151), (4, 4), (4, 39), (4, 21)]]


def test_classes_and_images_are_drawn_evenly():
    counts = [5, 50, 20, 5]
    drawn = [
        image
        for t in range(100)
        for task in who(sampler(dataset(counts)).episode(t, 20).support_x)
        for image in task
    ]
    classes = np.bincount([c for c, _ in drawn], minlength=4) / len(drawn)
    assert np.abs(classes - 0.25).max() < 0.02
    for c, count in enumerate(counts):
        places = np.bincount([place for k, place in drawn if k == c], minlength=count)
        expected = len(drawn) / 4 / count
        assert ((places - expected) ** 2 / expected).sum() < count + 6 * np.sqrt(2 * count)


def huge(count: int) -> Dataset:
    """Two classes of so many images, all one pixel in memory."""
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(2 * count, 1, 1, 1)
    bank = ClassBank(images, torch.tensor([0, count, 2 * count]), ("a", "b"))
    return Dataset("huge", {"train": bank}, 1.0, (0.0,), (1.0,), "identity")


@pytest.mark.parametrize("count", [4096, 4097, 4100, 1_000_000])
def test_large_classes_are_drawn_evenly_and_without_repeats(count):
    made = sampler(huge(count), ways=2, shots=5, targets=15)
    rows = made.draw(0, 400).rows  # [T, ways, samples]
    assert all(len(set(task.flatten())) == 40 for task in rows)
    places = rows % count
    for part in (places[..., :5], places[..., 5:]):  # support and target alike
        shares = np.histogram(part, 10, (0, count))[0] / part.size
        assert np.abs(shares - 0.1).max() < 0.02


def test_a_class_may_be_drawn_whole():
    rows = sampler(huge(5000), ways=2, shots=4000, targets=1000).draw(0, 1).rows
    assert sorted(rows.flatten()) == list(range(10_000))


def test_a_draw_takes_no_longer_from_a_large_class():
    made = sampler(huge(50_000_000), ways=2, shots=5, targets=15)
    made.draw(0, 4)
    start = time.process_time()
    for t in range(20):
        made.draw(t, 4)
    assert time.process_time() - start < 1  # one hash for each image would take a minute


def test_small_classes_are_left_out_on_request():
    data = dataset([10, 2, 8, 1])
    with pytest.raises(
        UserError, match=r"2 of 4 in the train .* class1 \(2\), class3 \(1\); lower one of them$"
    ):
        sampler(data)
    with pytest.raises(UserError, match="or leave the classes out by --skip-small-classes$"):
        sampler(data, ways=2)
    made = sampler(data, ways=2, skip_small=True)
    assert made.classes == 2
    assert made.notes == [
        "left out: 2 of 4 classes of train, with fewer than 5 images (class1, class3)"
    ]
    drawn = {c for t in range(20) for c, _ in who(made.episode(t, 1).support_x)[0]}
    assert drawn == {0, 2}
    for ways, targets, words in (
        (3, 3, "2 classes after leaving out 2 classes with fewer than 5 images; give fewer, or "),
        (2, 9, "0 classes after leaving out 4 classes with fewer than 11 images; "),
    ):
        words = f"--ways is {ways}, .* has {words}lower --shots or --targets$"
        with pytest.raises(UserError, match=words):
            sampler(data, ways=ways, targets=targets, skip_small=True)


def marked(classes: int = 3, side: int = 4):
    """A data set whose images have one bright corner, so that their turn can be read."""
    data = dataset([12] * classes, side)
    for bank in data.banks.values():
        bank.images[:, 0, 1:] = 0
        bank.images[:, 1:] = 0
        bank.images[:, 0, 0] = torch.arange(classes).repeat_interleave(12)[:, None] + 1
    return data


def turns(x: torch.Tensor) -> torch.Tensor:
    """Class + 10 * quarter turns [T, N]; a quarter turn takes the upper left to the lower left."""
    corners = torch.stack([x[..., 0, 0, 0], x[..., 0, -1, 0], x[..., 0, -1, -1], x[..., 0, 0, -1]])
    assert ((corners > 0).sum(0) == 1).all()
    return corners.sum(0) + 10 * corners.argmax(0)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_turned_classes_are_classes_of_their_own(split):
    made = sampler(marked(), split, ways=12, rotations="classes")
    assert made.classes == 12
    episode = made.episode(0, 5)
    support, target = turns(episode.support_x), turns(episode.target_x)
    assert (
        support[:, ::2].sort()[0]
        == torch.arange(4).mul(10)[:, None].add(torch.arange(1, 4)).flatten()
    ).all()
    assert support[:, ::2].equal(support[:, 1::2])
    assert target[:, ::3].equal(support[:, ::2]) and target[:, 2::3].equal(support[:, ::2])


def test_augmentation_turns_whole_classes_in_training_only():
    episode = sampler(marked(), rotations="augment").episode(0, 40)
    support, target = turns(episode.support_x), turns(episode.target_x)
    assert support[:, ::2].equal(support[:, 1::2]) and support[:, ::2].equal(target[:, ::3])
    assert {int(v) // 10 for v in support.flatten()} == {0, 1, 2, 3}
    assert (support[:, ::2] % 10).sort()[0].unique(dim=0).tolist() == [[1, 2, 3]]
    for split in ("val", "test"):
        plain = sampler(marked(), split, rotations="none").episode(0, 4)
        assert equal(sampler(marked(), split, rotations="augment").episode(0, 4), plain)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rotations", ["none", "classes"])
def test_images_are_float_and_channels_last(channels, rotations):
    episode = sampler(dataset([20] * 4, 6, channels), rotations=rotations).episode(0, 2)
    assert episode.support_x.shape == (2, 6, channels, 6, 6)
    assert episode.target_x.shape == (2, 9, channels, 6, 6)
    for x in (episode.support_x, episode.target_x):
        assert x.dtype == torch.float32
        assert x.stride()[1:] == (36 * channels, 1, 6 * channels, channels)
        assert all(task.is_contiguous(memory_format=torch.channels_last) for task in x)


def test_values_are_normalised_per_channel():
    data = dataset([10] * 3, 4, 3)
    for bank in data.banks.values():
        bank.images.random_(generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    raw = sampler(data).episode(0, 1).support_x
    data = type(data)(
        **vars(data) | {"scale": 1 / 255, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    )
    expected = (raw / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(sampler(data).episode(0, 1).support_x, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 4}, "--ways is 4, but the train split of made has 3 classes; give fewer"),
        ({"ways": 13, "rotations": "classes"}, "has 12 classes"),
        ({"shots": 4}, "--shots 4 and --targets 3 need 7 images a class, but 1 of 3 in the train"),
        ({"shots": 0}, "--shots is 0: give a number >= 1"),
        ({"targets": -1}, "--targets is -1"),
        ({"rotations": "some"}, "--rotations is 'some': choose one of none, classes, augment"),
        ({"split": "other"}, "made has no split 'other'"),
    ],
)
def test_impossible_tasks_are_explained(changes, message):
    with pytest.raises(UserError, match=message):
        sampler(dataset([10, 6, 8]), **changes)


def test_a_program_s_arguments_are_named_as_it_gives_them():
    for changes, words in (
        ({"shots": 0}, "^shots is 0: give a number >= 1"),
        ({"ways": 4}, "^ways is 4, but"),
        ({"targets": 9, "ways": 1}, "^shots 2 and targets 9 .*; lower one of them$"),
    ):
        with pytest.raises(UserError, match=words):
            sampler(dataset([20, 6, 8]), **changes, flags=("ways", "shots", "targets"))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetching_gives_the_same_episodes_in_order(depth):
    made = sampler(dataset([10] * 5))
    ahead = list(prefetch(lambda t: made.episode(t, 2), range(4, 9), depth))
    assert len(ahead) == 5
    assert all(equal(a, made.episode(t, 2)) for t, a in zip(range(4, 9), ahead, strict=True))


def prefetchers() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_prefetching_stops_when_closed_and_never_runs_far_ahead():
    asked, made = [], sampler(dataset([10] * 5))
    endless = (asked.append(t) or t for t in itertools.count())
    episodes = prefetch(lambda t: made.episode(t, 1), endless, depth=2)
    next(episodes)
    time.sleep(0.2)
    assert len(asked) <= 4
    assert prefetchers() == 1
    episodes.close()
    assert prefetchers() == 0


@pytest.mark.parametrize("depth", [0, 2])
def test_exceptions_of_prefetching_arrive_in_their_place(depth):
    def failing():
        yield 0
        raise ValueError("iteration 1")

    made = sampler(dataset([10] * 5))
    episodes = prefetch(lambda t: made.episode(t, 1), failing(), depth)
    next(episodes)
    with pytest.raises(ValueError, match="iteration 1"):
        next(episodes)
    assert prefetchers() == 0


def test_classes_of_31_to_800_images(data_dir, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    archive = data_dir / "caltech101_84.zip"
    data = load("folder", archive, image_size=84, channels=3, cache=cache)
    for split in data.banks:
        made = sampler(data, split, ways=5, shots=5, targets=15)
        start = time.process_time()  # not the wall clock: other processes may want the cores
        for t in range(5):
            episode = made.episode(t, 4)
            images = torch.cat([episode.support_x, episode.target_x], 1).flatten(2)
            assert images.isfinite().all()
        assert time.process_time() - start < 5
    with pytest.raises(UserError, match="need 35 images a class"):
        sampler(data, "test", ways=5, shots=20, targets=15)
