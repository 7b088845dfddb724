"""The tasks of an iteration among processes that torchrun starts: the same bits as in one.

Two of them; four as well by MAMLPP_SLOW=1 python -m pytest tests/test_ranks.py
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from engine import evaluate, train
from engine.errors import UserError
from engine.runs.checkpoint import load
from engine.runtime import machine, ranks
from engine.runtime.parcel import Parcel
from tests import device_ranks, ranked
from tests.tiny import ROOT, environment, finish, flags, start, wait_for
from tests.torchrun import SLOW, assert_same, done, finished, launch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not sys.platform.startswith("linux"),
    reason="torchrun needs torch.distributed, and these signals Linux",
)
MORE = "--tasks", 4, "--msl-epochs", 1, "--first-order-epochs", 1
COUNTS = [2, pytest.param(4, marks=SLOW)]


@pytest.fixture(scope="module")
def alone(images):
    """A run of one process."""
    folder = images.parent / "of-one-process"
    assert train.main(flags(images, folder, *MORE)) == 0
    return folder


@pytest.mark.parametrize("count", COUNTS)
def test_ranks_train_to_the_bits_of_one_process(images, alone, tmp_path, count):
    out = done(launch("engine.train", *flags(images, tmp_path / "many", *MORE), count=count))
    assert_same(tmp_path / "many", alone)
    assert out.count("run folder") == 1  # the first alone speaks
    assert [path.name for path in tmp_path.iterdir()] == ["many"]


@pytest.mark.parametrize("counts", [(2, 1), pytest.param((1, 2, 4, 1), marks=SLOW)])
def test_a_stopped_run_is_continued_by_any_number(images, alone, tmp_path, counts):
    argv, iteration = flags(images, tmp_path / "run", *MORE, "--prefetch", 0), 0
    for count in counts[:-1]:
        many = {"count": count} if count > 1 else None
        process = launch("engine.train", *argv, **many) if many else start("engine.train", *argv)
        wait_for(process, f"iteration {iteration + 2}/12")
        process.send_signal(signal.SIGINT)
        _, _, err = finished(process, 60)
        told = [line for line in err.splitlines() if line.startswith("Ctrl-C: ")]
        assert told[-1] == "Ctrl-C: stopped; the same command continues"
        before, iteration = iteration, load(tmp_path / "run" / "latest.pt").state["iteration"]
        assert before < iteration < 12
    assert train.main(argv) == 0
    assert_same(tmp_path / "run", alone)


class Many(NamedTuple):
    """What so many ranks left and said."""

    count: int
    folder: Path
    out: str


@pytest.fixture(scope="module", params=COUNTS)
def many(request, images, alone, tmp_path_factory) -> Many:
    folder, given = tmp_path_factory.mktemp("many"), (alone / "latest.pt", images)
    process = launch("tests.ranked", "all_of_it", folder, *given, count=request.param)
    return Many(request.param, folder, done(process, 300))


def test_a_devices_graphs_with_the_gather_between_them(many, images, tmp_path):
    assert f"{many.count} on cpu: graph A, gather, graph B: the bits of one" in many.out
    assert train.main(flags(images, tmp_path / "one", *device_ranks.MORE)) == 0
    assert_same(many.folder / "device", tmp_path / "one")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Runs of networks of one's own, on three threads: as many ranks have other ones."""
    folder, before = tmp_path_factory.mktemp("own"), torch.get_num_threads()
    torch.set_num_threads(3)
    for name in ranked.OWN:
        ranked.fitted(folder / name, name)
    yield folder
    torch.set_num_threads(before)


def test_networks_of_ones_own_by_any_number(many, own):
    folder, stops = many.folder / "own", {1: 5, many.count: 0}  # 0: to the end
    for count, stop in stops.items():
        for name in ranked.OWN:  # as the ranks, and then one process, left them
            assert load(folder / name / "latest.pt").state["iteration"] < 9
        if count == 1:
            ranked.stage(folder, stop)
        else:
            done(launch("tests.ranked", "stage", folder, stop, count=count))
    for name in ranked.OWN:
        assert_same(folder / name, own / name)


def test_every_way_of_passes_and_another_network(many, images, tmp_path):
    ranked.trained(tmp_path, str(images))
    for name in ranked.TRAINED:
        assert_same(many.folder / "trained" / name, tmp_path / name)


def test_the_evaluation_torchs_own_ranks_and_refusals(many, images, alone):
    folder, count = many.folder, many.count
    thetas = [torch.load(folder / f"ddp-{rank}.pt") for rank in (0, count - 1)]
    assert torch.equal(*thetas) and thetas[0].isfinite().all()
    written = folder / "of-one.json"
    command = [str(alone / "latest.pt"), "--data", str(images), "--json", str(written)]
    assert evaluate.main(command) == 0
    assert json.loads(written.read_text()) == json.loads((folder / "evaluation.json").read_text())
    each = ranked.TASKS // count
    vmapped = (
        f"with {each} tasks a rank: bits depend on which tasks vmap takes together; give a number "
        f"that divides {each}, or False, in every run that is to be the same"
    )
    assert json.loads((folder / "refused.json").read_text()) == [
        f"--tasks is 3 with {count} ranks: give a multiple of {count}, or another number of ranks",
        "the ranks differ in torch: 2.0 on rank 0, 2.1 on rank 1; give all the same",
        f"vectorize is 'auto' {vmapped}",
        f"vectorize is 3 {vmapped}",
        "Dropped draws random numbers, so that all threads compute one task, and bits depend on "
        "their number: give threads, as threads=1, in every run that is to be the same",
    ]
    assert not (folder / "vmap").exists() and not (folder / "dropout").exists()


def test_a_run_keeps_its_threads_where_they_matter(own, tmp_path):
    ranked.fitted(tmp_path, "dropout", stop=3)
    with pytest.raises(UserError, match=r"another configuration \(threads: 1 -> 2\)"):
        ranked.fitted(tmp_path, "dropout", settings={"threads": 2})
    ranked.fitted(tmp_path / "free", "one-by-one", stop=3)
    ranked.fitted(tmp_path / "free", "one-by-one", settings={"threads": 2})
    assert_same(tmp_path / "free", own / "one-by-one")


def test_each_rank_has_a_gpu_or_is_told_that_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    team = SimpleNamespace(alone=False, local=1, local_size=2)
    monkeypatch.setattr(ranks, "_current", team)
    assert machine._device() == torch.device("cuda", 1)
    team.local_size = 3
    with pytest.raises(UserError, match="^3 ranks are on a machine of 2 GPUs: start at most one a"):
        machine._device()


def test_one_process_is_alone(monkeypatch):
    assert not ranks.launched()
    with ranks.joined() as team:
        assert team.size == 1 and team.share(5) == (0, 5)
        assert team.spread([1, 2], lambda n: -n) == [-1, -2] and team.by_first(lambda: 7) == 7
        assert team.by_first(lambda: 7, told=False) == 7
    assert ranks.current().size == 1


IMPORTED = """
import sys, torch
before = {*sys.modules}
from engine import train
code = train.main(sys.argv[1:])
found = {n for n in {*sys.modules} - before if "distributed" in n or "c10d" in n}
print(code, sorted(found))
"""


def test_one_process_imports_nothing_of_ranks(images, tmp_path):
    argv = flags(images, tmp_path / "run", "--epochs", 1)
    command = [sys.executable, "-c", IMPORTED, *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, **pipes)
    code, out, err = finish(process)
    assert (code, out.splitlines()[-1]) == (0, "0 []"), err


def test_a_parcel_keeps_the_precision_of_each_of_its_rows():
    rows = [torch.ones(2, dtype=torch.bfloat16), torch.rand(2, 3), torch.rand(2, 4, 1)]
    parcel = Parcel(rows, 1)
    parcel.pack(rows, torch.tensor(3))
    parcel.every.copy_(parcel.own)
    signal, found = parcel.unpacked()
    assert signal == 3
    for ours, own in zip(found, rows, strict=True):
        assert ours.dtype == own.dtype and torch.equal(ours, own)
