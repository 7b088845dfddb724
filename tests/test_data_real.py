"""Real mini-ImageNet in the forms that it goes around in: the same bank to the byte from each.

Not one of its images is kept: what is made of them lies in the test's temporary folder. It takes a
minute: MAMLPP_SLOW=1 python -m pytest tests/test_data_real.py
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from engine.data import Dataset, load
from tests.samples import SPLITS
from tests.slow import slow

pytestmark = slow("decodes 60,000 images twice")


def load_mini(path: Path, cache: Path) -> Dataset:
    try:
        return load("mini", path, image_size=84, channels=3, cache=cache)
    finally:
        shutil.rmtree(cache)


@pytest.fixture(scope="module")
def archive(data_dir) -> Path:
    file = data_dir / "mini-imagenet.zip"
    if not file.is_file():
        pytest.skip(f"no mini-ImageNet at {file}")
    return file


@pytest.fixture(scope="module")
def original(archive, tmp_path_factory) -> Dataset:
    return load_mini(archive, tmp_path_factory.mktemp("real") / "cache")


def test_it_bears_its_name_and_has_its_shape(original):
    assert original.name == "mini" and original.notes == ()
    shapes = {split: tuple(bank.images.shape) for split, bank in original.banks.items()}
    images = {"train": 38400, "val": 9600, "test": 12000}
    assert shapes == {split: (count, 84, 84, 3) for split, count in images.items()}


def test_its_pickles_give_the_same_bank(original, tmp_path):
    (tmp_path / "mini").mkdir()
    for split in SPLITS:
        bank = original.banks[split]
        starts = bank.starts.tolist()
        content = {
            "image_data": bank.images.numpy(),
            "class_dict": {n: list(range(*starts[c : c + 2])) for c, n in enumerate(bank.names)},
        }
        with open(tmp_path / f"mini/mini-imagenet-cache-{split}.pkl", "wb") as file:
            pickle.dump(content, file, protocol=4)
    again = load_mini(tmp_path / "mini", tmp_path / "cache")
    assert (again.name, again.identity) == ("mini", original.identity)
    assert all(torch.equal(again.banks[s].images, original.banks[s].images) for s in SPLITS)


def test_its_csv_files_give_the_same_bank(original, archive, tmp_path):
    """Ravi's files beside one folder of images."""
    tables = {split: ["filename,label"] for split in SPLITS}
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(tmp_path / "m.zip", "w") as made:
        for name in source.namelist():
            if name.endswith(".jpg"):
                split, label, file = name.split("/")[-3:]
                tables[split].append(f"{file},{label}")
                made.writestr(f"images/{file}", source.read(name))
        for split, lines in tables.items():
            made.writestr(f"{split}.csv", "\n".join(lines))
    again = load_mini(tmp_path / "m.zip", tmp_path / "cache")
    assert (again.name, again.identity) == ("mini", original.identity)
    assert all(torch.equal(again.banks[s].images, original.banks[s].images) for s in SPLITS)
