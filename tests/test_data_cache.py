"""The cache of decoded images: what others do to it while it is in use, and what becomes of it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data import Dataset, bank, load, shelf
from engine.data import __main__ as command
from engine.episodes import EpisodeSampler
from tests.samples import encoded, tree_files, write_files, write_zip
from tests.tiny import environment


def load_folder(path: Path, cache: Path, size: int = 12) -> Dataset:
    return load("folder", path, image_size=size, channels=3, cache=cache)


@pytest.fixture
def tree(tmp_path):
    return write_files(tmp_path / "tree", tree_files())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def overwrite(file: Path, content: bytes, place: int = 0) -> None:
    with open(file, "r+b") as opened:
        opened.seek(place)
        opened.write(content)


def grow(file: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(b"x" * 1000)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def swapped(file: Path) -> None:
    """Another data set's bank under this one's name."""
    other = write_files(file.parent.parent / "other", {n: WHITE for n in tree_files()})
    load_folder(other, file.parent.parent / "cache2")
    (bank_file,) = (file.parent.parent / "cache2").iterdir()
    os.replace(bank_file, file)


WHITE = encoded(np.full((12, 12, 3), 255, np.uint8))
SIZE = 18 * 12 * 12 * 3  # bytes of the images
DAMAGES = {
    "cut to nothing": lambda file: os.truncate(file, 0),
    "cut to a byte": lambda file: os.truncate(file, 1),
    "cut in the images": lambda file: os.truncate(file, SIZE // 2),
    "cut in the footer": lambda file: os.truncate(file, SIZE + 20),
    "cut by a byte": lambda file: os.truncate(file, file.stat().st_size - 1),
    "cut and grown again": lambda file: (os.truncate(file, 0), os.truncate(file, SIZE + 900)),
    "zeros over all": lambda file: overwrite(file, bytes(file.stat().st_size)),
    "zeros over the images": lambda file: overwrite(file, bytes(SIZE)),
    "zeros over a class": lambda file: overwrite(file, bytes(3 * 432), 432 * 3),
    "one other byte": lambda file: overwrite(file, b"\x07", 5000),
    "another footer": lambda file: overwrite(file, b"{}", SIZE),
    "another trailer": lambda file: overwrite(file, b"m", file.stat().st_size - 8),
    "noise": lambda file: overwrite(file, np.random.default_rng(0).bytes(SIZE)),
    "grown": grow,
    "removed": lambda file: file.unlink(),
    "renamed": lambda file: file.rename(file.with_suffix(".old")),
    "the folder removed": lambda file: shutil.rmtree(file.parent),
    "the folder renamed": lambda file: file.parent.rename(file.parent.with_name("moved")),
    "of another data set": swapped,
    "without permissions": lambda file: file.chmod(0),
    "a folder": become_a_folder,
    "a pipe": become_a_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_happens_to_the_file_changes_nothing_that_was_loaded(damage, tree, cache):
    dataset = load_folder(tree, cache)
    before = {split: b.images.clone() for split, b in dataset.banks.items()}
    sampler = EpisodeSampler(dataset, "train", ways=2, shots=1, targets=1, seed=0)
    episode = sampler.episode(0, 4)
    (file,) = cache.iterdir()
    DAMAGES[damage](file)
    for split, images in before.items():
        assert dataset.banks[split].images.equal(images)
    again = sampler.episode(0, 4)
    assert again.support_x.equal(episode.support_x) and again.target_x.equal(episode.target_x)
    if damage in ("a folder", "a pipe") or (damage == "without permissions" and os.geteuid()):
        with pytest.raises(Exception, match="cannot read the image cache"):
            load_folder(tree, cache)
    else:
        fresh = load_folder(tree, cache)  # and the next one is built anew
        assert fresh.identity == dataset.identity
        assert all(b.images.equal(before[split]) for split, b in fresh.banks.items())


def test_a_bank_too_large_for_memory_is_a_nameless_file(tree, cache, monkeypatch):
    plain = load_folder(tree, cache)
    monkeypatch.setattr(bank, "_memory", lambda: 1000)
    dataset = load_folder(tree, cache)
    (file,) = cache.iterdir()
    overwrite(file, bytes(SIZE))
    file.unlink()
    for split, b in dataset.banks.items():
        assert b.images.equal(plain.banks[split].images)
    dataset.banks["train"].images.zero_()


def test_a_disk_too_small_for_it_is_told(tree, cache, monkeypatch):
    load_folder(tree, cache)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank, "_memory", lambda: 1000)
    monkeypatch.setattr(bank.os, "posix_fallocate", full)
    with pytest.raises(bank.UserError, match="No space left on device; make room for 7,776 bytes"):
        load_folder(tree, cache)


def test_a_newer_bank_takes_the_place_of_the_older(tree, cache):
    for n in range(4):
        overwrite_image(tree, n)
        load_folder(tree, cache)
        load_folder(tree, cache, 6)
        assert len(list(cache.iterdir())) == 2  # one of each size


def flat(shade: int) -> bytes:
    """A file whose size does not depend on what it shows."""
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8), (shade,) * 3).save(file, "BMP")
        return file.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_other_files_of_one_name_size_and_time_are_other_files(packed, tmp_path, cache):
    def load_made(shade: int) -> Dataset:
        files = {name.replace("png", "bmp"): flat(shade + i) for i, name in enumerate(tree_files())}
        made = write_files(tmp_path / f"made{shade}", files)
        if packed:
            made = write_zip(tmp_path / f"made{shade}.zip", files)
        for path in [made, *made.rglob("*.bmp")]:
            os.utime(path, (0, 0))
        place = tmp_path / ("here.zip" if packed else "here")
        if place.exists():
            place.rename(tmp_path / "away")
        made.rename(place)
        return load_folder(place, cache, 8)

    first, second = load_made(0), load_made(100)
    assert first.identity != second.identity
    assert not torch.equal(first.banks["train"].images, second.banks["train"].images)


def test_a_bank_is_of_the_formats_that_were_read(tree, cache, monkeypatch):
    load_folder(tree, cache)
    (first,) = shelf.banks(cache)
    load_folder(tree, cache)
    assert [*shelf.banks(cache)] == [first]
    monkeypatch.setattr(bank, "suffixes", lambda: (".png", ".of-a-newer-pillow"))
    load_folder(tree, cache)
    (second,) = shelf.banks(cache)
    assert second != first


def overwrite_image(tree: Path, shade: int) -> None:
    file = tree / "train/train0/0.png"
    file.write_bytes(encoded(np.full((12, 12, 3), shade, np.uint8)))
    os.utime(file, ns=(shade + 1, shade + 1))


def test_others_banks_and_files_stay_until_they_are_old(tree, cache):
    load_folder(tree, cache, 6)
    (other,) = cache.iterdir()
    old = cache / f"mini-{'a' * 20}.bank"  # of before a bank's name had its place
    mine = cache / "notes.bank"
    for file in (old, mine):
        file.touch()
    load_folder(tree, cache, 7)
    assert {other, old, mine} < set(cache.iterdir())
    for file in (other, old, mine):
        os.utime(file, (0, 0))
    load_folder(tree, cache, 8)
    assert mine.exists() and not other.exists() and not old.exists()


def test_use_keeps_a_bank_young(tree, cache):
    load_folder(tree, cache)
    (file,) = cache.iterdir()
    os.utime(file, (0, 0))
    load_folder(tree, cache)
    assert time.time() - file.stat().st_mtime < 60


def test_the_cache_command_lists_and_clears(tree, cache, capsys, monkeypatch):
    monkeypatch.setenv("MAMLPP_CACHE", str(cache))
    assert command.main(["cache"]) == 0
    assert "0 data sets, 0.0 MiB" in capsys.readouterr().out
    load_folder(tree, cache)
    load_folder(tree, cache, 6)
    banks = sorted(file.name for file in cache.iterdir())
    (cache / f"{banks[0]}.{'0' * 32}.tmp").touch()
    (cache / "mine.txt").touch()
    assert command.main(["cache"]) == 0
    out = capsys.readouterr().out
    assert "2 data sets, 0.0 MiB" in out and all(name in out for name in banks)
    assert "last used 20" in out
    assert command.main(["cache", "--clear"]) == 0
    assert "removed 3 files" in capsys.readouterr().out
    assert [file.name for file in cache.iterdir()] == ["mine.txt"]


def test_a_writer_that_is_killed_leaves_what_the_next_one_removes(tree, cache):
    script = (
        "import os, signal\n"
        "from engine.data import bank, load\n"
        "bank.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"load('folder', {str(tree)!r}, image_size=12, channels=3, cache={str(cache)!r})\n"
    )
    (tree.parent / "writer.py").write_text(script)
    process = subprocess.run([sys.executable, tree.parent / "writer.py"], env=environment())
    assert process.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.name.endswith(".tmp") and left.stat().st_size > SIZE
    load_folder(tree, cache)
    (whole,) = cache.iterdir()
    assert whole.suffix == ".bank" and shelf.banks(cache) == [whole]
