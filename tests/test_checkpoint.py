"""Checkpoints: the same state back, whole files whatever is killed, clear lines for the rest."""

import contextlib
import fcntl
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import meta
from engine.config import Config
from engine.errors import UserError
from engine.files import RUN_FILES, replace_file
from engine.runs import checkpoint
from engine.runs.checkpoint import Checkpoint, load, open_run, save, write_atomic
from engine.runs.log import Meter, cut_log
from engine.runs.packed import pack, unpack
from engine.runs.run import Run
from engine.scores import score
from tests.tiny import environment, same, small_disk


def config(**explicit) -> Config:
    small = {"image_size": 16, "filters": 4, "stages": 2, "steps": 2, "ensemble": 2}
    return Config.of(dataset="folder", **small | explicit)


def content(cfg: Config, state: meta.State) -> Checkpoint:
    return Checkpoint(
        config=cfg.to_dict(),
        data_name="folder:x",
        data_identity="abc",
        state=pack(state),
        epoch=3,
        best=[[2, 0.75], [3, 0.5]],
        meters={"interval": vars(Meter(1, 0.1, 0.2, 0.3)), "whole": vars(Meter())},
        rng=torch.get_rng_state(),
    )


@pytest.fixture
def saved(tmp_path):
    cfg = config()
    path = tmp_path / "latest.pt"
    save(path, content(cfg, meta.init_state(cfg)))
    return path


def test_everything_comes_back_bit_for_bit(saved):
    cfg = config()
    state = meta.init_state(cfg)
    back, original = load(saved), content(cfg, state)
    restored = unpack(meta.layout(config(seed=1)), back.state, "cpu")
    assert type(restored) is meta.State and same(restored, state)
    assert restored.iteration == state.iteration
    assert {k: v for k, v in vars(back).items() if k not in ("state", "rng")} == {
        k: v for k, v in vars(original).items() if k not in ("state", "rng")
    }
    assert Config.from_dict(back.config) == cfg


def test_the_file_needs_no_code_to_be_loaded(saved):
    found = torch.load(saved, weights_only=True)
    assert found["data_name"] == "folder:x" and found["best"] == [[2, 0.75], [3, 0.5]]


def test_only_the_tensors_of_the_state_are_written_not_what_they_are_views_of():
    whole = torch.zeros(1000)
    assert pack((whole[:2],))[0].untyped_storage().nbytes() == 8


def test_a_state_of_another_network_is_refused(saved):
    with pytest.raises(UserError, match="params.theta of the checkpoint is torch.float32 "):
        unpack(meta.layout(config(filters=8)), load(saved).state, "cpu")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path_factory, data):
    cfg = config(filters=1)
    path = tmp_path_factory.mktemp("damage") / "latest.pt"
    save(path, content(cfg, meta.init_state(cfg)))
    whole, raw = load(path), bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[where] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[where:]
    path.write_bytes(raw)
    try:
        back = load(path)
    except UserError as error:
        assert str(path) in str(error) and "--fresh" in str(error)
    else:  # a byte that means nothing
        assert same(back.state, whole.state) and back.config == whole.config


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"not a zip at all" * 100])
def test_no_checkpoint_at_all(saved, raw):
    saved.with_name("epoch-0002.pt").write_bytes(saved.read_bytes())
    saved.write_bytes(raw)
    with pytest.raises(UserError, match=r"latest\.pt is damaged .*--fresh.*epoch-0002\.pt"):
        load(saved)


@pytest.mark.parametrize(("changed", "words"), [
    ({"format": 99}, f"format 99, this version reads up to {checkpoint.FORMAT}: a newer one"),
    ({"format": True}, "no checkpoint of this program"),
    ({"format": None}, "no checkpoint of this program"),
    ({"colour": 1}, r"no checkpoint of format \d: it lacks \[\] and has \[colour\]"),
])  # fmt: skip
def test_another_format_is_refused(saved, changed, words):
    torch.save(torch.load(saved, weights_only=True) | changed, saved)
    with pytest.raises(UserError, match=words):
        load(saved)


def test_a_file_of_the_first_format_is_read_with_neutral_values(saved):
    found = torch.load(saved, weights_only=True) | {"format": 1}
    for name in ("precisions", "fallen", "origin", "preparation", "own_network"):
        del found[name]
    torch.save(found, saved)
    back = load(saved)
    assert (back.precisions, back.fallen, back.origin) == (None, [], None)
    assert back.preparation is back.own_network is None
    del found["rng"]
    torch.save(found, saved)
    with pytest.raises(UserError, match=r"no checkpoint of format 1: it lacks \[rng\]"):
        load(saved)


def test_a_part_of_the_state_that_an_older_version_had_not_has_its_default():
    class Old(NamedTuple):
        a: torch.Tensor

    class New(NamedTuple):
        a: torch.Tensor
        b: int = 7

    packed = pack(Old(torch.ones(2)))
    assert unpack(New(torch.zeros(2), 1), packed, "cpu").b == 7
    assert unpack(New(torch.zeros(2), 1), {"b": 3} | packed, "cpu").b == 3
    for odd in ({"b": 3}, packed | {"c": 1}, [1]):
        with pytest.raises(UserError, match=r"state of the checkpoint has .*takes a, b"):
            unpack(New(torch.zeros(2), 1), odd, "cpu")


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before, names = saved.read_bytes(), os.listdir(saved.parent)
    monkeypatch.setattr(os, "replace", lambda *paths: os.rename(paths[0], saved.parent))
    with pytest.raises(UserError, match="cannot write run folder"):
        write_atomic(saved, b"new")
    assert saved.read_bytes() == before and os.listdir(saved.parent) == names


def test_of_several_writers_of_one_file_each_writes_it_whole(tmp_path):
    """As of two tables in one folder: none takes what another has not written to its end."""
    path = tmp_path / "table.md"

    def writes(byte: bytes) -> None:
        for _ in range(50):
            replace_file(path, byte * (1 << 16))
            assert len(set(found := path.read_bytes())) == 1 and len(found) == 1 << 16

    with ThreadPoolExecutor() as pool:
        list(pool.map(writes, (b"a", b"b", b"c")))
    assert os.listdir(tmp_path) == [path.name]


LOOP = """
import sys
from pathlib import Path
import torch
from engine.runs.checkpoint import load, save
path = Path(sys.argv[1])
found = load(path)
step = found.state["iteration"]
while True:
    step += 1
    found.state["iteration"] = step
    found.state["padding"] = torch.full((1 << 20,), float(step))
    save(path, found)
    print(step, flush=True)
"""


def test_kill_in_the_middle_of_a_write_leaves_a_whole_checkpoint(saved):
    rng, reached = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, saved], stdout=subprocess.PIPE, env=environment()
        )
        with process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            written = [reached, *map(int, process.stdout.read().split())]
        found = load(saved).state
        assert found["iteration"] >= max(reached, written[-1])
        assert (found["padding"] == found["iteration"]).all()
        reached = found["iteration"]
    assert reached > 3


def test_a_full_disk_is_one_line_and_the_old_checkpoint_survives(tmp_path):
    cfg = config()
    found = content(cfg, meta.init_state(cfg))
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "latest.pt"
        save(path, found)
        before = path.read_bytes()
        found.state["padding"] = torch.zeros(1 << 18)
        with pytest.raises(UserError, match="cannot write run folder .*No space left") as caught:
            save(path, found)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
        assert [p.name for p in disk.iterdir()] == ["latest.pt"]


def test_a_missing_latest_never_costs_the_saved_epochs(saved):
    saved.rename(saved.with_name("epoch-0002.pt"))
    with pytest.raises(UserError, match=r"holds epoch-0002\.pt but no latest\.pt.*--fresh"):
        Run.open(config(), saved.parent, None, torch.device("cpu"))
    assert saved.with_name("epoch-0002.pt").exists()


def test_a_run_folder_is_locked_and_cleaned_of_leftovers(tmp_path):
    (tmp_path / ".latest.pt.tmp").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    with open_run(tmp_path, fresh=False):
        assert not (tmp_path / ".latest.pt.tmp").exists()
        with pytest.raises(UserError, match="another process"), open_run(tmp_path, fresh=True):
            pass
    with open_run(tmp_path, fresh=False):
        pass
    assert (tmp_path / "notes.txt").exists()


def test_fresh_removes_the_files_of_the_run_and_no_others(tmp_path):
    own = [*RUN_FILES, "epoch-0003.pt"]
    for name in [*own, "notes.txt", "epoch-plan.md"]:
        (tmp_path / name).write_text("")
    (tmp_path / "tensorboard").mkdir()
    with open_run(tmp_path, fresh=True):
        assert {p.name for p in tmp_path.iterdir()} == {".lock", "notes.txt", "epoch-plan.md"}


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_file_where_the_run_folder_should_be(tmp_path, below):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(UserError, match="cannot write run folder")
    with refused, open_run(tmp_path / "file" / below, fresh=False):
        pass


def test_the_lock_is_free_after_a_mistake(tmp_path):
    with contextlib.suppress(UserError), open_run(tmp_path, fresh=False):
        raise UserError("mistake")
    with open(tmp_path / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_best_epochs_are_kept_and_the_earlier_of_equals_is_better(tmp_path):
    cfg = config(ensemble=3)
    run = Run(cfg, tmp_path, None, meta.init_state(cfg))
    for accuracy in (0.2, 0.5, 0.5, 0.1, 0.6):
        run.rank(accuracy)
    assert run.best == [[5, 0.6], [2, 0.5], [3, 0.5]]


def test_equal_epochs_are_equal_however_their_right_answers_lie(tmp_path):
    cfg = config(ensemble=1)
    run = Run(cfg, tmp_path, None, meta.init_state(cfg))
    halves = [1.0, 0.6] * 300, [0.8] * 600
    means = [score(torch.tensor(of, dtype=torch.float64)).accuracy for of in halves]
    assert means[1] > means[0]  # by the last bit
    for mean in means:
        run.rank(mean)
    assert run.best == [[1, means[0]]]


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path):
    rows = [
        {"kind": "train", "iteration": 1, "epoch": 1},
        {"kind": "train", "iteration": 2, "epoch": 1},
        {"kind": "validation", "iteration": 2, "epoch": 1},
        {"kind": "train", "iteration": 3, "epoch": 2},
        {"kind": "train", "iteration": 4, "epoch": 2},
        {"kind": "validation", "iteration": 4, "epoch": 2},
        {"kind": "train", "iteration": 5, "epoch": 3},
    ]
    path = tmp_path / checkpoint.LOG
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"kind": "train", "iter')
    cut_log(path, iteration=4, epoch=1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:5]
    cut_log(tmp_path / "absent.jsonl", iteration=0, epoch=0)


def test_meter_gives_means():
    meter = Meter()
    meter.add(1.0, 0.5, 2.0)
    meter.add(3.0, 1.0, 4.0)
    assert meter.means() == (2.0, 0.75, 3.0)
