"""What the GPU benchmark makes of times, and its trainings, without a GPU."""

import json
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import clock, environment, graph, launches, training
from bench.gpu.launches import Work
from bench.gpu.progress import LeftOut, Request
from engine.config import Config
from engine.runs.interrupt import Stopped
from tests.gpu_request import CPU, request_in
from tests.tiny import make_images


@pytest.fixture
def request_(tmp_path) -> Request:
    return request_in(tmp_path)


def test_launches_are_counted_and_gaps_are_where_nothing_runs():
    done = [
        Work("conv", 10.0, 14.0),
        Work("conv", 0.0, 4.0),
        Work("Memcpy HtoD", 5.0, 6.0),
        Work("norm", 2.0, 5.0),  # on another stream
        Work("sum", 11.0, 12.0),
    ]
    found = launches.count(done)
    assert found == (
        4, 1, 14.0, 10.0, 4.0, {"conv": (2, 8.0), "norm": (1, 3.0), "sum": (1, 1.0)}
    )  # fmt: skip
    with pytest.raises(LeftOut, match="saw no work"):
        launches.count([])


def test_a_profile_has_the_clock_under_load(monkeypatch):
    played = []

    class Stepping(nullcontext):
        def __init__(self, cfg, device, graph=True):
            super().__init__(self)
            self.graph = graph

        def iterations(self, count: int) -> None:
            played.append((self.graph, count))

        def iteration(self) -> None:
            played.append((self.graph, "profiled"))

    def profiled(call):
        call()
        return launches.count([Work("conv", 0.0, 4.0)])

    def smi(asked: str) -> dict[str, str]:
        time.sleep(0.05)
        return {asked: "read"}

    monkeypatch.setattr(graph, "Stepping", Stepping)
    monkeypatch.setattr(graph, "profiled", profiled)
    monkeypatch.setattr(environment, "SETTLING", 0.02)
    monkeypatch.setattr(environment, "_nvidia_smi", smi)
    item = json.loads(json.dumps(graph._profile(None, CPU)))
    assert item["load"] == {"clocks.sm,power.draw,temperature.gpu": "read"}
    assert item["graph"] == item["eager"] and item["graph"]["by_name"] == {"conv": [1, 4.0]}
    assert played[:2] == [(True, 3), (True, "profiled")]
    assert played[-2:] == [(False, 3), (False, "profiled")]
    assert set(played[2:-2]) == {(True, graph.REPLAYS)}


def test_turns_are_taken_forth_and_back_with_as_much_as_fits_in_one():
    played = []

    def player(name: str, seconds: float):
        def play(count: int) -> float:
            played.append((name, count))
            return count * seconds

        return play

    taken = clock.take_turns({"fast": player("fast", 0.25), "slow": player("slow", 4.0)}, 1.0, 3)
    assert taken == {"fast": [0.25] * 3, "slow": [4.0] * 3}
    once = [("fast", 1), ("fast", 1), ("slow", 1), ("slow", 1)]
    forth, back = [("fast", 4), ("slow", 1)], [("slow", 1), ("fast", 4)]
    assert played == once + forth + back + forth
    taken = clock.take_turns({"slow": player("slow", 6.0)}, 1.0, 3)
    assert taken == {"slow": [6.0]}


def test_a_call_is_timed_by_its_median(monkeypatch):
    times = iter([0.02, 0.5, 0.02, 0.03, 0.01, 0.02])
    monkeypatch.setattr(clock, "elapsed", lambda call, device: next(times))
    assert clock.of_call(lambda: None, CPU) == 0.02


@pytest.fixture
def tiny_training(tmp_path, monkeypatch) -> Path:
    images = make_images(tmp_path / "images")
    sizes = dict(image_size=16, filters=4, stages=3, steps=2, tasks=2, targets=2, ways=3)
    length = dict(epochs=2, iterations=3, eval_tasks=4, ensemble=2, log_every=1, threads=1)
    places = dict(data=str(images), cache=str(tmp_path / "cache"), run=str(tmp_path / "run"))
    cfg = Config.of("maml++", "folder", **sizes, **length, **places, device="cpu")
    monkeypatch.setattr(training, "configuration", lambda seed, request: cfg)
    return tmp_path / "run"


def test_a_training_ends_in_time_and_continues(tiny_training, request_, monkeypatch):
    def until(seconds: float) -> training.Until:
        return training.Until(request_.interrupt, time.monotonic() + seconds)

    assert training._seed(0, request_, until(-1))["seconds"] == 0.0 and not tiny_training.exists()
    soon, checks = until(60), iter([True, True, False])
    check = soon.check

    def ends() -> None:
        check()
        if not next(checks):
            raise Stopped(signal.SIGALRM)

    monkeypatch.setattr(soon, "check", ends)
    item = training._seed(0, request_, soon)
    assert item["unfinished"] and item["seconds"] > 0
    soon_log = (tiny_training / "log.jsonl").read_text().splitlines()
    assert 1 <= len(soon_log) < 6
    # On another machine, where only the folder has been brought.
    carried = tiny_training.parent / "carried"
    carried.mkdir()
    for file in (tiny_training, training.Spent(tiny_training).file):
        file.rename(carried / file.name)
    cfg = replace(training.configuration(0, request_), run=str(carried / "run"))
    monkeypatch.setattr(training, "configuration", lambda seed, request: cfg)
    whole = training._seed(0, request_, until(60))
    log = (carried / "run" / "log.jsonl").read_text()
    assert log.startswith("\n".join(soon_log)) and not tiny_training.exists()
    assert whole["seconds"] > item["seconds"] and len(whole["validation"]) == 2
    assert 0 <= whole["ensemble"]["accuracy"] <= 1 and "run" not in whole["settings"]
    json.dumps(whole)
    assert training._seed(0, request_, until(60)) == whole  # showing a result takes no time


def test_ctrl_c_in_a_training_is_no_end_of_time(tiny_training, request_):
    class CtrlC(training.Until):
        def check(self) -> None:
            raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        training._seed(0, request_, CtrlC(request_.interrupt, time.monotonic() + 60))
    assert request_.progress.part("training")["seed 0"]["unfinished"]
    assert not request_.progress.done("training", "seed 0", "a table")


def test_the_paper_protocol_is_what_is_trained(request_):
    cfg = training.configuration(1, request_._replace(quick=False))
    assert cfg == Config.of(
        "maml++", "omniglot", ways=20, shots=1, seed=1, device="cpu",
        run=str(request_.out / "made" / "seed1"),
    )  # fmt: skip
