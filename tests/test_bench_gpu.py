"""The GPU benchmark without a GPU: its dry run, how it continues, and its logic with stand-ins."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench import results
from bench.gpu import __main__ as entry
from bench.gpu import (
    checks,
    launch_table,
    parts,
    progress,
    report,
    tuning,
)
from bench.gpu.__main__ import PARTS, main
from bench.gpu.progress import LeftOut, Progress, Request, work_through
from engine.runs.interrupt import Stopped
from kernels import dispatch
from kernels.triton import launch
from tests import golden
from tests.gpu_request import CPU, request_in

TABLE = launch.TUNED


@pytest.fixture
def request_(tmp_path) -> Request:
    return request_in(tmp_path)


@pytest.fixture
def one_golden_file(tmp_path, monkeypatch) -> None:
    """The smallest one, if there are any."""
    folder = tmp_path / "golden"
    folder.mkdir()
    for file in sorted(golden.files(), key=lambda f: f.stat().st_size)[:1]:
        (folder / file.name).symlink_to(file)
    monkeypatch.setenv("GOLDEN_DIR", str(folder))


def test_a_dry_run_goes_through_every_part_and_continues(
    tmp_path, monkeypatch, one_golden_file, capsys
):
    monkeypatch.chdir(tmp_path)  # no Omniglot in datasets/
    command = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--name", "dry"]
    assert main(command) == 0
    run = results.load(tmp_path / "dry.json")
    assert list(run["parts"]) == list(PARTS)
    items = {(part, n): item for part in PARTS for n, item in run["parts"][part].items()}
    assert not [key for key, item in items.items() if "failed" in item]
    for part in ("compile", "bits", "profile", "tune", "memory"):
        assert "this run is on cpu" in items[part, "all of it"]["left_out"]
    assert "no Omniglot at" in items["training", "all of it"]["left_out"]
    judged = [i for (part, _), i in items.items() if part in ("passes", "kernels", "gradients")]
    judged = [i for i in judged if i.get("replayed")]
    assert len(judged) > 8 and all(item["repeats"] for item in judged)
    assert all(part["within"] for item in judged for part in item["parts"].values())
    played = {name for (part, _), i in items.items() for name in i.get("rounds", ())}
    networks = {"ours", "ours, launched anew"}
    assert played == {"ours, fp32", "ours, fp32, eager", "loop", "vmap"} | networks
    page = (tmp_path / "dry.md").read_text()
    titles = "Outer iterations", "Networks of one's own", "Ops and passes"
    for title in (*titles, "Errors of meta-gradients", "Left out"):
        assert f"## {title}\n" in page

    del run["parts"]["kernels"]["update-mini-plain"]
    results.save(run, tmp_path / "dry.json")
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[0].startswith("kernels: update-mini-plain")
    assert said[1].startswith(f"{len(judged)} of {len(judged)} ops, passes and meta-gradients")
    again = results.load(tmp_path / "dry.json")
    assert again["parts"]["kernels"].pop("update-mini-plain")["call"] == 1
    assert again["parts"]["kernels"] == run["parts"]["kernels"]
    assert [call["commit"] for call in again["calls"]] == [run["calls"][0]["commit"]] * 2

    assert main([*command, "--part", "environment"]) == 0
    third = results.load(tmp_path / "dry.json")["parts"]
    assert {item["call"] for item in third["environment"].values()} == {2}
    assert third["ops"] == again["parts"]["ops"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--part", "all"], "--part is 'all': choose one of environment, compile,"),
        (["--device", "tpu"], "--device is 'tpu': choose one of cuda, cpu"),
        (["--minutes", "-1"], "--minutes is -1.0: give minutes, 0 or more"),
        (["--limit", "nan"], "--limit is nan: give minutes, 0 or more"),
        (["--minutes", "many"], "--minutes is 'many': give a number; see"),
        (["--name", "tuned"], "--name is 'tuned': so is the launch table's file"),
        (["--name", "a/b"], "--name is 'a/b': give the name of a file"),
        (["--quik"], "there is no flag --quik: did you mean --quick? see"),
    ],
)
def test_a_mistake_is_one_line(flags, message, capsys, tmp_path):
    assert main([*flags, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_asks_for_a_dry_run(capsys, tmp_path):
    assert main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == "error: torch finds no CUDA device here; --device cpu makes a dry run\n"


def test_another_kind_of_run_does_not_continue_a_file(request_, capsys):
    request_.progress.keep("environment", "machine", {})
    command = ["--device", "cpu", "--name", "made", "--out", str(request_.progress.path.parent)]
    assert main(command) == 2
    assert "made.json was begun with quick True, not False" in capsys.readouterr().err


def test_a_damaged_file_is_told(tmp_path, capsys):
    (tmp_path / "half.json").write_text('{"parts": {')
    assert main(["--device", "cpu", "--name", "half", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "half.json is no JSON: " in said and said.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--device", "cpu", "--quick", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "error: cannot write results to " in capsys.readouterr().err


def test_what_fails_is_kept_and_tried_again_and_the_rest_goes_on(request_, capsys):
    asked = []

    def item(name: str, *outcomes):
        left = iter(outcomes)

        def measure() -> dict:
            asked.append(name)
            outcome = next(left)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return name, measure

    items = [
        item("fails", ValueError("no\nluck"), {"x": 1}),
        item("left", LeftOut("not here")),
        item("cut", {"unfinished": True}, {"x": 2}),
        item("works", {"x": 3, "said": "well"}),
    ]
    for whole in (False, True):
        assert work_through("part", iter(items), request_, time.monotonic() + 60) == whole
    assert asked == ["fails", "left", "cut", "works", "fails", "cut"]
    kept = results.load(request_.progress.path)["parts"]["part"]
    assert {name: found.get("x") for name, found in kept.items()} == dict(
        fails=1, left=None, cut=2, works=3
    )
    assert "part: fails, 0.0 s, FAILED: ValueError: no luck" in capsys.readouterr().out


class Exec(BaseException):
    """In place of another process."""


def test_after_the_device_is_lost_another_process_does_what_stands_behind(
    request_, monkeypatch, capsys
):
    """In the calls that follow each loss is tried again last, the longest ago first."""
    fatal, tried, state = {"broken", "worse", "listing"}, [], SimpleNamespace(lost=None)

    def measure(name: str) -> dict:
        tried.append(name)
        if name in fatal:
            state.lost = "the device is lost: an illegal memory access"
            raise RuntimeError("an illegal memory access")
        return {}

    def listed(part: str, request):
        for name in {"kernels": ("a", "broken", "b"), "gradients": ("worse", "c")}.get(part, ()):
            yield name, partial(measure, name)
        if part == "tune":
            measure("listing")

    def execute(program: str, command: list[str]) -> None:
        commands.append(command)
        raise Exec

    def call() -> list[str]:
        """A call with all of its processes; what they tried."""
        tried.clear()
        commands[:] = [[None, "-m", "bench.gpu", "--device", "cpu", "--quick", "--name", "made"]]
        commands[0] += ["--out", str(request_.progress.path.parent)]
        while commands:
            state.lost = None
            with suppress(Exec):
                assert main(commands.pop()[3:]) == 0
        return list(tried)

    commands: list[list[str]] = []
    monkeypatch.setattr(parts, "items", listed)
    monkeypatch.setattr(progress, "lost", lambda device: state.lost)
    monkeypatch.setattr(os, "execv", execute)
    assert call() == ["a", "broken", "b", "worse", "c", "listing"]
    assert "an illegal memory access; another process goes on" in capsys.readouterr().out
    kept = results.load(request_.progress.path)["parts"]
    assert kept["kernels"]["broken"]["lost"] and kept["gradients"]["c"]["call"] == 2
    assert kept["tune"]["all of it"]["failed"] == "RuntimeError: an illegal memory access"
    fatal.discard("worse")
    assert call() == ["broken"], "one loss a call, and the longest ago first"
    assert call() == ["worse", "listing"]
    fatal.clear()
    assert call() == ["broken", "listing"]
    kept = results.load(request_.progress.path)["parts"]
    assert not [i for part in kept.values() for i in part.values() if "failed" in i]


def test_an_item_in_which_its_process_is_killed_is_lost(request_):
    """As by a kernel that never ends; Ctrl-C leaves what was there."""
    path = request_.progress.path

    def killed() -> dict:
        found.append(results.load(path)["parts"]["part"]["one"])
        return {}

    def interrupted() -> dict:
        raise Stopped(signal.SIGINT)

    found: list[dict] = []
    later = time.monotonic() + 60
    assert work_through("part", iter([("one", killed)]), request_, later)
    assert found == [{"failed": "its process was ended", "lost": True, "call": 0}]
    request_.progress.part("part")["one"] = before = {"failed": "as it was", "call": 0}
    for name, kept in (("one", {"one": before}), ("two", {"one": before})):
        with pytest.raises(Stopped):
            work_through("part", iter([(name, interrupted)]), request_, later)
        assert results.load(path)["parts"]["part"] == kept


def test_the_next_process_has_the_time_that_is_left(monkeypatch):
    found = []
    monkeypatch.setattr(os, "execv", lambda program, command: found.append((program, command)))
    entry._go_on(["--quick", "--limit", "9"], time.monotonic() + 90)
    assert found == [
        (
            sys.executable,
            [sys.executable, "-m", "bench.gpu", "--quick", "--limit", "9"]
            + ["--limit", "1.50", "--after-loss"],
        )
    ]
    assert entry.flags(found[0][1][3:])["limit"] == 1.5
    assert entry.flags(found[0][1][3:])["after_loss"]


def test_a_capture_that_failed_loses_its_process(monkeypatch):
    assert progress.lost(CPU) is None
    monkeypatch.setattr(progress.graph, "failed", [object()])
    assert progress.lost(CPU) == "a graph could not be captured"


def test_time_ends_a_call(request_):
    assert not work_through("part", iter([("next", dict)]), request_, time.monotonic() - 1)
    assert not request_.progress.done("part", "next", "a table")


def test_what_another_launch_table_made_is_measured_again(request_):
    """The tuner of the call after has gone on: the times are of a table that is no more."""
    measured = []

    def items(part: str):
        yield "one", lambda: measured.append(part) or {}
        yield "two", lambda: {"left_out": measured.append("left out")}

    for table in ("half", "half", "whole", "whole"):
        request = request_._replace(table=lambda table=table: table)
        for part in ("training", "kernels", "ops"):
            assert work_through(part, items(part), request, time.monotonic() + 60)
    first = ["training", "left out", "kernels", "left out", "ops", "left out"]
    assert measured == [*first, "ops"]
    kept = results.load(request_.progress.path)["parts"]
    assert {part: of["one"]["table"] for part, of in kept.items()} == {
        "training": "half", "kernels": "half", "ops": "whole"
    }  # fmt: skip


def test_tuning_goes_on_in_the_next_call_and_then_what_it_changed(request_, monkeypatch):
    did, table = [], []

    def items(part: str, request):
        for key in ("a", "b") if part == "tune" else ("x",) if part == "ops" else ():
            yield key, partial(measure, part, key)

    def measure(part: str, key: str) -> dict:
        did.append(key)
        if part == "tune":
            table.append(key)
            time.sleep(0.06)
        return {}

    monkeypatch.setattr(parts, "items", items)
    request = request_._replace(table=lambda: str(table))
    given = {"after_loss": False}
    monkeypatch.setitem(entry.SHARES, "tune", 0.05)
    for whole in (False, False, True, True):
        assert entry._work(given, request) == whole
    assert did == ["x", "a", "x", "b", "x"]


def test_a_backend_that_is_not_here_says_why(request_, monkeypatch, capsys):
    """Until it is."""
    place = dispatch.space("native")
    reasons = iter(["native: not built: no compiler", None])
    for kept in ({"native, all of it"}, set()):
        reason = next(reasons)
        monkeypatch.setattr(place, "refuses", lambda device, dtype, reason=reason: reason)
        for part in ("kernels", "ops"):
            listed = checks.absent(part, request_)
            assert work_through(part, listed, request_, time.monotonic() + 60)
            assert request_.progress.part(part).keys() == kept
    said = "native, all of it, 0.0 s, left out: native: not built: no compiler"
    assert capsys.readouterr().out.splitlines() == [f"kernels: {said}", f"ops: {said}"]
    page = report.page(request_.progress.data | {"parts": {"ops": {"cuda": {"left_out": "no"}}}})
    assert "- ops, cuda: no\n" in page


def test_the_help_says_how_to_install_without_a_network(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "\n  python -m pip install --no-build-isolation --no-deps -e .\n" in said
    assert "--after-loss" not in said


def test_one_folder_holds_table_and_compiled_kernels(tmp_path, request_, monkeypatch):
    kept, out = tmp_path / "kernels" / "tuned.json", tmp_path / "out"
    kept.parent.mkdir()
    kept.write_text('{"cpu": {"a": {"BM": 32}}}')
    monkeypatch.setattr(launch, "TUNED", kept)
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that it is as before afterwards
    monkeypatch.delenv("TRITON_CACHE_DIR")
    launch._tuned.cache_clear()
    begun = launch_table.digest(CPU)
    try:
        entry._settle(out)
        assert os.environ["TRITON_CACHE_DIR"] == str(out / "triton")
        assert launch_table.digest(CPU) == begun == launch_table.digest(CPU)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "cpu")
        tuning.write(launch, CPU, "b", {"BM": 64})
        assert launch_table.digest(CPU) != begun
        assert json.loads(kept.read_text()) == {"cpu": {"a": {"BM": 32}}}
        changed = {"cpu": {"a": {"BM": 32}, "b": {"BM": 64}}}
        assert json.loads((out / "tuned.json").read_text()) == changed
        request = request_._replace(progress=Progress(out / "made.json", {}))
        assert entry._to_keep(request) == (
            "to keep it, copy made.json and made.md to bench/results/gpu, and tuned.json to "
            "kernels/triton/tuned.json"
        )
        assert (results.ROOT / entry.RESULTS, results.ROOT / entry.TABLE) == (report.FOLDER, TABLE)
        launch.TUNED = kept  # another process, which goes on with the folder
        entry._settle(out)
        assert launch._tuned() == changed
    finally:
        launch._tuned.cache_clear()


def test_a_part_that_cannot_be_listed_says_why(request_, capsys):
    def items(error: Exception):
        yield "first", dict
        raise error

    for error in (LeftOut("no such thing"), LeftOut("no such thing"), KeyError("gone")):
        assert work_through("part", items(error), request_, time.monotonic() + 60)
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["part, left out: no such thing", "part, FAILED: KeyError: 'gone'"]
    assert request_.progress.part("part").keys() == {"first", "all of it"}
    assert work_through("part", iter([("first", dict)]), request_, time.monotonic() + 60)
    assert request_.progress.part("part").keys() == {"first"}
