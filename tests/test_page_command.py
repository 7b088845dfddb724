"""The command that makes a page: what is no run, mistakes, and what it does without."""

import json
import os

import pytest

from engine.report import __main__ as command
from engine.report import page
from tests import reported
from tests.reported import make_run, train_row, validation_row, write_log
from tests.tiny import call

SECTIONS = ["summary", "settings", "curves", "rates", "steps", "tasks", "confusion", "cost"]


WRONG = {
    "nothing there": (lambda run: run.rename(run.with_name("moved")), "no run at"),
    "a file": (lambda run: (run.rename(run.with_name("m")), run.write_text("x")), "no run folder"),
    "no log": (lambda run: (run / "log.jsonl").unlink(), "has no log.jsonl"),
    "no configuration": (lambda run: (run / "config.json").unlink(), "has no config.json"),
    "an empty log": (lambda run: (run / "log.jsonl").write_text(""), "no whole row yet"),
    "a first row half written": (
        lambda run: (run / "log.jsonl").write_text('{"kind": "tr'), "no whole row yet"
    ),
    "a wrong row": (
        lambda run: (run / "log.jsonl").write_text('{"kind": "train"}\n{}\n'), "line 1 is no row"
    ),
    "two metrics": (
        lambda run: write_log(run, [
            validation_row(0, 1, 1), validation_row(0, 2, 1, validation_loss=0.5)
        ]), "rows of two metrics"
    ),
    "another metric": (
        lambda run: (run / "result.json").write_text(json.dumps(
            reported.result(0, 1) | {"metric": "loss", **dict.fromkeys(
                ("best", "ensemble"), {"loss": 1.0, "interval": 0.1, "epoch": 1, "epochs": [1]}
            )}
        )), "another metric"
    ),
    "a number that no format holds": (
        lambda run: write_log(run, [train_row(1, 5, 10**400)]), "line 1 is no row"
    ),
    "a loss that no network has": (
        lambda run: write_log(run, [train_row(1, 5, 1e200)]), "line 1 is no row"
    ),
    "an epoch that never was": (
        lambda run: write_log(run, [validation_row(0, 10**7, 1)]), "line 1 is no row"
    ),
    "no text": (lambda run: (run / "log.jsonl").write_bytes(b"\xff\x00\n"), "line 1 is no row"),
    "rates that are none": (
        lambda run: write_log(run, [validation_row(0, 1, 1, rates={"a": ["b"]})]), "line 1 is no"
    ),
    "half a configuration": (lambda run: (run / "config.json").write_text("{"), "is damaged"),
    "a configuration of another": (
        lambda run: (run / "config.json").write_text("[]"), "none of a run"
    ),
    "a newer configuration": (
        lambda run: (run / "config.json").write_text('{"mind": 1}'), "does not know: mind"
    ),
    "half a result": (lambda run: (run / "result.json").write_text("{"), "is damaged"),
    "a result of another": (lambda run: (run / "result.json").write_text("[]"), "none of a run"),
    "details of another": (
        lambda run: (run / "details.json").write_text('{"classes": 3}'), "none of a run"
    ),
    "a picture that is a script": (
        lambda run: (run / "details.json").write_text(
            (run / "details.json").read_text().replace("data:image/png", "javascript:x//")
        ),
        "none of a run",
    ),
    "a pipe": (lambda run: ((run / "log.jsonl").unlink(), os.mkfifo(run / "log.jsonl")), "no reg"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_run_is_told_in_a_line(fault, tmp_path, capsys):
    run = make_run(tmp_path / "run", epochs=2)
    spoil, words = WRONG[fault]
    spoil(run)
    assert command.main([str(run), "-o", str(tmp_path / "page.html")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "page.html").exists()


def test_mistakes_of_the_command_line(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", epochs=2)
    own = tmp_path / "run" / "report.html"
    own.write_text("mine")
    monkeypatch.setattr("engine.report.browser.NAMES", ("no-such-browser",))
    for argv, words in (
        ([], "required: RUN"),
        ([run, run], "given twice"),
        ([run, tmp_path / "x" / ".." / "run"], "given twice"),
        ([run, "-o", tmp_path / "page.txt"], "ends in .html"),
        ([run, "-o", tmp_path / "none" / "page.html"], "cannot write"),
        ([run, "--pdf", tmp_path / "page.html"], "ends in .pdf"),
        ([run, "--pdf", tmp_path / "page.pdf"], "--pdf needs Chromium or Chrome"),
        ([run], "is there and not a report"),
    ):
        assert command.main([*map(str, argv)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert own.read_text() == "mine"


def test_a_page_is_made_without_torch():
    code = "import sys, engine.report.__main__; assert not {'torch', 'plotly'} & sys.modules.keys()"
    assert call("timeit", "-n1", "-r1", code)[0] == 0


def lost(name: str) -> str:
    raise page.metadata.PackageNotFoundError(name)


def test_without_plotly_there_is_a_line(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", epochs=2)
    for version, words in (
        (lost, "is not installed"),
        (lambda name: "5.24.1", "5.24.1 is too old"),
    ):
        monkeypatch.setattr(page.metadata, "version", version)
        assert command.main([str(run)]) == 2
        assert capsys.readouterr().err == f"error: plotly {words}: pip install 'plotly>=6'\n"
        assert not (run / "report.html").exists()
