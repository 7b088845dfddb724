"""Tasks of one's own data: what is drawn, in which forms, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import engine
from engine.errors import UserError
from engine.tasks import Tasks
from tests.samples import tree_files, write_files

TASK = {"ways": 3, "shots": 2, "targets": 4, "tasks": 5}
LABELS = ["d", "a", "c", "b"] * 10
X = torch.arange(40.0)[:, None].expand(-1, 2)  # a sample is its place, twice


def belongs(episode, labels=LABELS) -> None:
    """Classes are pure, tasks without repeats, labels class-major."""
    for t in range(TASK["tasks"]):
        support, target = episode.support_x[t][:, 0].int(), episode.target_x[t][:, 0].int()
        assert len({*support.tolist(), *target.tolist()}) == 18
        of_class = [
            {
                labels[i]
                for i in (*support[episode.support_y[t] == c], *target[episode.target_y[t] == c])
            }
            for c in range(3)
        ]
        assert all(len(names) == 1 for names in of_class) and len(set.union(*of_class)) == 3


class Pairs(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return X[i].numpy(), LABELS[i]


class Changed(Pairs):
    """As torchvision's: what lies there, and what a pair has of it."""

    targets = [*range(40)]

    def target_transform(self, y: int) -> str:
        return LABELS[y]


@pytest.mark.parametrize(
    "data",
    [
        Changed(),
        (X, LABELS),
        (X.numpy(), np.array(LABELS)),
        TensorDataset(X, torch.tensor([ord(c) for c in LABELS])),
        Pairs(),
    ],
)
def test_arrays_and_data_sets_are_drawn_by_class(data):
    tasks = Tasks(data, **TASK)
    belongs(tasks.episode(0))
    assert tasks.episode(3).support_x.equal(Tasks(data, **TASK).episode(3).support_x)
    assert not tasks.episode(3).support_x.equal(tasks.episode(4).support_x)
    assert not tasks.episode(3).support_x.equal(Tasks(data, seed=1, **TASK).episode(3).support_x)
    assert tasks.episode(0).support_x.shape == (5, 6, 2)
    assert tasks.episode(0).target_y.tolist() == [[c for c in range(3) for _ in range(4)]] * 5


def test_inputs_may_be_dicts():
    episode = Tasks(({"place": X, "twice": 2 * X}, LABELS), **TASK).episode(0)
    assert episode.tasks == 5 and episode.support_x["place"].shape == (5, 6, 2)
    assert episode.target_x["twice"].equal(2 * episode.target_x["place"])


def test_whole_numbers_of_another_library_are_taken():
    task = {name: np.int64(value) for name, value in TASK.items()}
    made = Tasks((X, LABELS), length=np.int64(3), seed=np.uint8(1), **task)
    assert len(list(made)) == 3
    assert made.episode(0).support_x.equal(Tasks((X, LABELS), seed=1, **TASK).episode(0).support_x)


def test_an_iteration_ends_where_it_is_told_to():
    assert len(list(Tasks((X, LABELS), length=3, **TASK))) == 3
    endless = iter(Tasks((X, LABELS), **TASK))
    assert [next(endless).tasks for _ in range(5)] == [5] * 5


def test_folders_of_pictures_are_drawn_as_the_engine_does(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMLPP_CACHE", str(tmp_path / "cache"))
    folder = write_files(tmp_path / "tree", tree_files())
    tasks = Tasks(folder, ways=2, shots=1, targets=2, part="val", image_size=8)
    episode = tasks.episode(0)
    assert episode.support_x.shape == (4, 2, 3, 8, 8) and episode.support_x.dtype == torch.float32


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X, LABELS), {"part": "test"}, "^part is 'test', which is of pictures at a path alone"),
        (Pairs(), {"split_ratio": "64/16/20"}, "^split_ratio is '64/16/20', which is of pictures"),
        ((X, LABELS), {"image_size": 28}, "^image_size is 28, which is of pictures at a path"),
        ((X, LABELS), {"channels": 1}, "^channels is 1, which is of pictures at a path alone"),
        ((X, LABELS, LABELS), {}, r"data is a tuple of 3: give \(x, y\)"),
        ((LABELS, LABELS), {}, r"^x is no array of numbers \(.*\): give one"),
        (({"a": np.array([object()] * 40)}, LABELS), {}, r"^x\['a'\] is no array of numbers"),
        ((7, LABELS), {}, "^x is 7: give an array of samples"),
        ((X, 7), {}, r"y of shape \[\]: give a label for each sample"),
        ((X, LABELS[:-1]), {}, "x and y have 39 and 40 samples"),
        ((X, torch.eye(40)), {}, r"y of shape \[40, 40\]: give a label for each sample"),
        ((X, LABELS), {"ways": 5}, "^ways is 5, but the train split of data has 4 classes"),
        ((X, LABELS), {"shots": 9}, "^shots 9 and targets 4 need 13 images a class, but 4 of 4"),
        (7, {}, r"data is a int: give \(x, y\), a torch Dataset of pairs, or a path"),
    ],
)
def test_what_cannot_be_drawn_from_is_explained(data, options, message):
    with pytest.raises(UserError, match=message):
        Tasks(data, **TASK | options)


def test_samples_of_several_shapes_are_explained():
    class Ragged(Pairs):
        def __getitem__(self, i):
            return torch.zeros(1 + i % 3), LABELS[i]

    with pytest.raises(
        UserError, match=r"samples have shapes \(1,\), \(2,\), \(3,\): give them one"
    ):
        Tasks(Ragged(), **TASK).episode(0)


def test_the_public_names_are_imported_when_asked_for():
    for name in engine.__all__:
        assert getattr(engine, name).__name__ == name and name in dir(engine)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(engine, "nothing")  # noqa: B009


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    x, many = np.zeros((4, 2), np.float32), {"ways": 2, "shots": 1, "targets": 1}
    for y in (["a", None, "b", "b"], [0, float("nan"), 1, 1], np.array([1, np.nan, 2, 2])):
        with pytest.raises(UserError, match="label 1 is (None|nan): give each sample one"):
            Tasks((x, y), **many)
    for name, value, words in (
        ("tasks", 0, "^tasks is 0: give a number >= 1"),
        ("tasks", 2.5, "tasks is 2.5, of type float"),
        ("ways", 1, "^ways is 1: give a number >= 2"),
        ("ways", 2.0, "ways is 2.0, of type float"),
        ("shots", "1", "shots is '1', of type str"),
        ("targets", 0, "^targets is 0: give a number >= 1"),
        ("seed", -1, "^seed is -1: give a number >= 0"),
        ("seed", 2**70, "^seed is 1180591620717411303424: give a number up to"),
        ("length", -1, "length is -1: give a number of episodes"),
        ("length", 1.5, "length is 1.5: give a number of episodes"),
    ):
        with pytest.raises(UserError, match=words):
            Tasks((x, [0, 0, 1, 1]), **many | {name: value})
    with pytest.raises(UserError, match="y has labels that cannot be sorted: give labels of one"):
        Tasks((x, np.array(["a", "a", 1, 1], dtype=object)), **many)
    drawn = Tasks((x, torch.tensor([0.0, 0, 1, 1], requires_grad=True)), **many)
    assert drawn.episode(2**63 - 1).tasks == 4
    for i in (-1, 1.5, 2**70, True, "1"):
        with pytest.raises(UserError, match=f"episode {i!r}: they are counted from 0"):
            drawn.episode(i)


def test_what_is_wrong_with_a_folder_is_told_by_arguments(tmp_path):
    folder = write_files(tmp_path / "flat", {f"c{i}/0.png": b"x" for i in range(3)})
    task = {"ways": 2, "shots": 1, "targets": 1}
    for given, words in (
        ({"data": folder}, "split_ratio"),
        ({"data": tmp_path / "none"}, "does not exist; correct data"),
        ({"data": folder, "image_size": 0}, "^image_size is 0"),
        ({"data": folder, "image_size": 28.0}, "^image_size is 28.0, of type float: it takes int"),
        ({"data": folder, "image_size": "28"}, "^image_size is '28', of type str: it takes int"),
        ({"data": folder, "channels": 2}, "^channels is 2: choose one of 1, 3"),
        ({"data": folder, "split_ratio": (1, 1, 1)}, r"^split_ratio is \(1, 1, 1\), of type tuple"),
        ({"data": folder, "part": "tset"}, "^part is 'tset': did you mean test"),
        ({"data": folder, "part": ["test"]}, "^part is "),
    ):
        with pytest.raises(UserError, match=words) as caught:
            Tasks(**given, **task)
        assert "--" not in str(caught.value)


def test_what_a_folder_leaves_out_is_told(tmp_path, capsys):
    files = tree_files() | {"train/notes.doc": b"x"}
    found = Tasks(write_files(tmp_path / "tree", files), ways=2, shots=1, targets=1, image_size=8)
    assert "left out: 1 files that are no images by their names (train/notes.doc)" in found.notes
    assert f"folder:tree: {found.notes[-1]}" in capsys.readouterr().out
