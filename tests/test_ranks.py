"""The tasks of an iteration among processes that torchrun starts: the same bits as in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import evaluate, train
from engine.runs.checkpoint import load
from engine.runtime import ranks
from tests import ranked
from tests.tiny import ROOT, finish, flags, same, wait_for

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not sys.platform.startswith("linux"),
    reason="torchrun needs torch.distributed, and these signals Linux",
)
MORE = "--tasks", 4, "--msl-epochs", 1, "--first-order-epochs", 1


def launch(module: str, *argv: object, count: int = 2) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(count), "-m", "--", module, *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def finished(process: subprocess.Popen, seconds: float) -> tuple[int, str, str]:
    """`finish`, and nothing left over."""
    try:
        return finish(process, seconds)
    finally:
        process.terminate()


def assert_same(folder: Path, other: Path) -> None:
    files = sorted(path.name for path in other.glob("*.pt"))
    assert files == sorted(path.name for path in folder.glob("*.pt")) and len(files) > 1
    for name in files:
        mine, theirs = (vars(load(f / name)) for f in (folder, other))
        for field in mine.keys() - {"meters"}:  # seconds
            assert same(mine[field], theirs[field]), (name, field)
    results = [json.loads((f / "result.json").read_text()) for f in (folder, other)]
    assert results[0] == results[1]


def rows(folder: Path) -> list[dict]:
    """Of the log, but for times."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    found = [{k: v for k, v in json.loads(x).items() if "second" not in k} for x in lines]
    return [row for row in found if row["kind"] != "time"]


@pytest.fixture(scope="module")
def alone(images):
    """A run of one process."""
    folder = images.parent / "of-one-process"
    assert train.main(flags(images, folder, *MORE)) == 0
    return folder


def test_two_ranks_train_to_the_bits_of_one_process(images, alone, tmp_path):
    code, out, err = finished(launch("engine.train", *flags(images, tmp_path / "two", *MORE)), 120)
    assert code == 0, err
    assert_same(tmp_path / "two", alone)
    assert rows(tmp_path / "two") == rows(alone)
    assert out.count("run folder") == 1  # the first alone speaks
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_a_stopped_run_of_two_ranks_is_continued_by_one(images, alone, tmp_path):
    argv = flags(images, tmp_path / "run", *MORE, "--prefetch", 0)
    process = launch("engine.train", *argv)
    wait_for(process, "iteration 2/12")
    process.send_signal(signal.SIGINT)
    _, _, err = finished(process, 60)
    told = [line for line in err.splitlines() if line.startswith("Ctrl-C: ")]
    assert told[-1] == "Ctrl-C: stopped; the same command continues"
    assert 1 < load(tmp_path / "run" / "latest.pt").state["iteration"] < 12
    assert train.main(argv) == 0
    assert_same(tmp_path / "run", alone)


def test_a_rank_that_is_killed_ends_the_others_by_name(images, tmp_path):
    process = launch("engine.train", *flags(images, tmp_path / "run", *MORE, "--epochs", 5000))
    wait_for(process, "iteration 2/")
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [int(pid) for each in lists for pid in each.read_text().split()]
    by_rank = {_environment(pid).get("RANK"): pid for pid in pids}
    os.kill(by_rank["1"], signal.SIGKILL)
    code, _, err = finished(process, 30)
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    gone = f"error: rank 1 (pid {by_rank['1']} on "
    assert code != 0 and len(told) == 1 and told[0].startswith(gone), err
    assert told[0].endswith("the last checkpoint is whole; the same command continues")
    assert load(tmp_path / "run" / "latest.pt").epoch >= 0


def _environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def test_a_network_of_ones_own_the_evaluation_and_refusals(images, alone, tmp_path, threads):
    arguments = tmp_path, alone / "latest.pt", images
    code, _, err = finished(launch("tests.ranked", *arguments), 120)
    assert code == 0, err
    thetas = [torch.load(tmp_path / f"ddp-{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*thetas) and thetas[0].isfinite().all()
    ranked.fitted(tmp_path / "alone")
    assert_same(tmp_path / "fit", tmp_path / "alone")
    written = tmp_path / "of-one.json"
    command = [str(alone / "latest.pt"), "--data", str(images), "--json", str(written)]
    assert evaluate.main(command) == 0
    assert json.loads(written.read_text()) == json.loads((tmp_path / "evaluation.json").read_text())
    assert json.loads((tmp_path / "refused.json").read_text()) == [
        "--tasks is 3 with 2 ranks: give a multiple of 2, or another number of ranks",
        "the ranks differ in torch: 2.0 on rank 0, 2.1 on rank 1; give all the same",
    ]


def test_one_process_is_alone_and_imports_nothing(monkeypatch):
    assert not ranks.launched()
    with ranks.joined() as team:
        assert team.size == 1 and team.share(5) == (0, 5)
        assert team.spread([1, 2], lambda n: -n) == [-1, -2] and team.by_first(lambda: 7) == 7
    assert ranks.current().size == 1
