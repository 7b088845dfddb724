"""Ranks that die, hang or are started again, and ranks of several machines.

Four of them, and kills while files are written, by MAMLPP_SLOW=1 python -m pytest
tests/test_ranks_faults.py
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import socket
import sys
from types import SimpleNamespace

import pytest
import torch

from engine import train
from engine.errors import UserError
from engine.runs.checkpoint import load
from engine.runtime import ranks
from engine.runtime.ranks import _patience
from tests.kills import Killed
from tests.tiny import flags, wait_for
from tests.torchrun import SLOW, assert_same, done, finished, launch, pids, send, told

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not sys.platform.startswith("linux"),
    reason="torchrun needs torch.distributed, and these signals Linux",
)
MORE = "--tasks", 4, "--first-order-epochs", 1
LAST = "did not answer in time: the last checkpoint is whole; the same command continues"


@pytest.fixture(scope="module")
def alone(images):
    """A run of one process."""
    folder = images.parent / "of-one-process"
    assert train.main(flags(images, folder, *MORE)) == 0
    return folder


def endless(images, folder) -> list[str]:
    return flags(images, folder, *MORE, "--epochs", 5000)


def test_a_rank_that_is_killed_ends_the_others_by_name(images, tmp_path):
    process = launch("engine.train", *endless(images, tmp_path / "run"))
    wait_for(process, "iteration 2/")
    pid = send(process, 1, signal.SIGKILL)
    code, _, err = finished(process, 30)
    assert code != 0 and len(told(err)) == 1, err
    assert told(err)[0].startswith(f"error: rank 1 (pid {pid} on ") and LAST in told(err)[0]
    assert load(tmp_path / "run" / "latest.pt").epoch >= 0


@SLOW
def test_a_rank_that_hangs_ends_the_others_by_name(images, tmp_path):
    process = launch(
        "engine.train", *endless(images, tmp_path / "run"), environment={"MAMLPP_RANK_TIMEOUT": "2"}
    )
    wait_for(process, "iteration 2/")
    pid = send(process, 1, signal.SIGSTOP)
    line = next(line for line in process.stderr if line.startswith("error: "))
    assert line.startswith(f"error: rank 1 (pid {pid} on ") and LAST in line
    send(process, 1, signal.SIGKILL)  # as torchrun does, after half a minute
    code, _, err = finished(process, 30)
    assert code != 0 and not told(err), err
    assert load(tmp_path / "run" / "latest.pt").epoch >= 0


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e30"])
def test_a_time_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("MAMLPP_RANK_TIMEOUT", text)
    with pytest.raises(UserError, match=f"^MAMLPP_RANK_TIMEOUT is {re.escape(text)}: give the"):
        _patience()


class Event:
    """Stands in for that of a device, which is there after some looks."""

    def __init__(self, looks: float):
        self.looks = looks

    def query(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def team(monkeypatch):
    """A rank, joined with none, that was told to end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in one.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "launched", lambda: True)
    monkeypatch.setattr(ranks, "_ALIVE", 0.0)
    interrupt = SimpleNamespace(received=0)
    with ranks.joined(interrupt) as joined:
        yield joined, interrupt
        joined.broken = False  # so that the group is ended


def test_a_device_that_waits_for_a_rank_is_not_waited_for_for_ever(team, monkeypatch):
    team, interrupt = team
    team.wait(Event(looks=3))
    line = r"^a rank \(the device waits for another\) is gone, or did not answer in time: the last"
    team._patience = 0.05
    with pytest.raises(UserError, match=line):
        team.wait(Event(looks=math.inf))
    assert team.broken
    team._patience, interrupt.received = 600.0, signal.SIGTERM
    monkeypatch.setattr(ranks, "_GRACE", 0.05)
    with pytest.raises(UserError, match=line):
        team.wait(Event(looks=math.inf))


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_what_is_left_undone_is_given_up_on_a_gpu(cuda, failed, broken):
    done = []
    nccl = SimpleNamespace(abort=lambda: done.append("aborted"))
    world = SimpleNamespace(_get_backend=lambda device: {"cuda": nccl}[device.type])
    team = SimpleNamespace(broken=broken, _host="gloo" if cuda else None)
    team._dist = SimpleNamespace(
        group=SimpleNamespace(WORLD=world), destroy_process_group=lambda: done.append("ended")
    )
    ranks.Ranks.close(team, failed)
    assert done == ["aborted"] * (cuda and failed) + ["ended"] * (not broken)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=SLOW)])
def test_torchrun_starts_all_again_and_the_run_goes_on(images, alone, tmp_path, rank):
    options = "--standalone", "--max-restarts", 1, "--monitor-interval", 0.1
    process = launch("engine.train", *flags(images, tmp_path / "run", *MORE), options=options)
    wait_for(process, "iteration 6/12")
    killed = send(process, rank, signal.SIGKILL)
    wait_for(process, "continuing after iteration ")
    assert killed not in pids(process).values()
    done(process)
    assert_same(tmp_path / "run", alone)


@SLOW
@pytest.mark.parametrize(
    ("local", "shared"),
    [(1, False), (1, True), (2, False), (2, True)],
)
def test_two_machines_have_a_cache_each_or_share_one(images, alone, tmp_path, local, shared):
    """An agent of torchrun each; where they share no disk, the second one has no run folder."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = ["--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    options += ["--rdzv-id", "two", "--local-addr", "localhost"]
    agents, places = [], [tmp_path / ("one" if shared else f"disk{n}") for n in (0, 1)]
    for place in dict.fromkeys(places):
        shutil.copytree(images, place / "tiny")
    for place in places:
        argv = flags(place / "tiny", place / "run", *MORE)
        agents.append(launch("tests.ranked", "built", place, *argv, count=local, options=options))
    outs = [done(agent) for agent in agents]
    assert sorted(out.count("run folder") for out in outs) == [0, 1]
    builders = {path.name for path in tmp_path.glob("*/built-*")}
    assert builders <= {"built-0-0", "built-1-0"}  # one process a machine
    (run,) = tmp_path.glob("*/run")
    assert_same(run, alone)
    for place in places:
        assert len([*(place / "cache").glob("*.bank")]) == 1
    if not shared:
        assert len(builders) == 2


@SLOW
def test_nothing_is_lost_when_ranks_are_killed(tmp_path):
    """Two of the kills that ``python -m tests.kills 100 --ranks 2`` makes a hundred of: while files
    are written, and while the cache is.
    """
    killed = Killed(tmp_path, seed=6, ranks=2)
    killed.run(2)
    assert killed.finished >= 1 and sum(killed.kills.values()) >= 2
