"""What is told does nothing to a terminal and is one line, whatever is in a name; and what is told
when a standard stream takes nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import evaluate, train
from engine.config import Config
from engine.data.__main__ import main as data_main
from engine.errors import Diverged, complain, say
from engine.runs import checkpoint
from engine.runs.interrupt import answered
from engine.runs.log import Meter, Report
from engine.runs.log import test_table as table
from kernels.__main__ import main as kernels_main
from kernels.dispatch import Findings
from tests.tiny import environment, flags, make_images

NASTY = "a\x1b[31mb\nc\rd\u202ee\udcfff\u2028g"
SHOWN = "a\\x1b[31mb\\nc\\rd\\u202ee\\udcfff\\u2028g"


def harmless(text: str, lines: int | None = None) -> None:
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert lines is None or text.count("\n") == lines, text


@pytest.fixture(scope="module")
def nasty(tmp_path_factory) -> Path:
    """Images and a trained run in folders whose names are no line of text."""
    place = tmp_path_factory.mktemp("told") / NASTY
    images = make_images(place / f"images{NASTY}")
    for split in images.iterdir():
        for folder in split.iterdir():
            folder.rename(folder.with_name(folder.name + NASTY))
    return images


def test_lines_are_what_was_given_however_they_are_made(capsys):
    say("one", f"two {NASTY}", "")
    complain(f"three {NASTY}")
    captured = capsys.readouterr()
    assert captured.out == f"one\ntwo {SHOWN}\n\n" and captured.err == f"three {SHOWN}\n"


def test_a_training_and_its_evaluation_of_such_names(nasty, capsys):
    run = nasty.parent / f"run{NASTY}"
    for told in ("run folder ", "already finished\n"):
        assert train.main(flags(nasty, run)) == 0
        captured = capsys.readouterr()
        harmless(captured.out)
        assert SHOWN in captured.out and told in captured.out and captured.err == ""
    assert f"  cache                 {nasty.parent / 'cache'}"[:40] in captured.out
    assert evaluate.main([str(run), "--cache", str(nasty.parent / "cache")]) == 0
    out = capsys.readouterr().out
    harmless(out, lines=4)
    assert out.startswith(f"{nasty.parent.parent}/{SHOWN}/run{SHOWN}: trained on folder:images")


def test_info_and_what_is_wrong_with_a_flag(nasty, capsys):
    assert data_main(["info", str(nasty)]) == 0
    harmless(capsys.readouterr().out)
    for main, argv in (
        (data_main, ["info", f"none{NASTY}"]),
        (data_main, ["info", "x", f"--{NASTY}"]),
        (train.main, [f"--{NASTY}"]),
        (train.main, ["--dataset", NASTY]),
        (train.main, ["--epochs", NASTY]),
        (train.main, ["--dataset", "folder", "--data", NASTY]),
        (evaluate.main, [NASTY]),
        (kernels_main, [f"--{NASTY}"]),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert "\\x1b[31mb" in err
        harmless(err, lines=1)


def test_a_checkpoint_and_a_result_that_others_made(nasty, tmp_path, capsys):
    cfg = Config.of(filters=1)
    content = checkpoint.Checkpoint(cfg.to_dict(), NASTY, "", {}, 1, [], {}, torch.get_rng_state())
    checkpoint.save(tmp_path / "given.pt", content)
    assert evaluate.main([str(tmp_path / "given.pt")]) == 2
    err = capsys.readouterr().err
    assert f"was trained on {SHOWN} and" in err
    harmless(err, lines=1)

    score = {"accuracy": 0.5, "interval": 0.1}
    names = "data", "ways", "shots", "tasks", "split", "steps", "protocol", "norm_statistics"
    result = dict.fromkeys(names, NASTY) | {"best": score | {"epoch": NASTY}}
    result["ensemble"] = score | {"epochs": [NASTY]}
    say(*table(result))
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 10
    harmless(out, lines=3)


def test_rows_of_the_console_and_the_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Report(tmp_path, NASTY, 0, 0, 1, 1) as telling:
        telling.progress(1, Meter(1, 1.0, 0.5, 1.0))
        telling.say(f"a line of {NASTY}")
    captured = capsys.readouterr()
    assert captured.out == f"a line of {SHOWN}\n" and f"{SHOWN} 100%" in captured.err
    assert NASTY not in captured.err and "\x1b[31m" not in captured.err


def test_what_a_file_of_the_cache_says_of_the_kernels(capsys, monkeypatch):
    found = Findings({("native", "conv", "fp32"): NASTY, ("plain", "conv", "fp32"): NASTY}, {})
    monkeypatch.setattr("kernels.check.verdict.known", lambda device, folder: found)
    assert kernels_main([]) == 0
    out = capsys.readouterr().out
    assert SHOWN in out
    harmless(out)


def test_errors_of_every_kind(capsys):
    def diverged(_):
        raise Diverged(f"in {NASTY}")

    assert answered(diverged, stopped="stopped") == 3
    assert capsys.readouterr().err == f"error: in {SHOWN}\n"


# Each of: how the stream is given, the code of a training, words on stdout, lines on stderr.
STREAMS = [
    ("2>&-", 0, "ensemble of 2", 0),
    (">&- 2>&- <&-", 0, "", 0),
    (">/dev/full 2>/dev/full", 2, "", 0),
    ("--epochs nine 2>&-", 2, "", 0),
    ("--epochs nine 2>/dev/full", 2, "", 0),
    ("--help >&-", 0, "", 0),
    ("--help >/dev/full", 2, "", 1),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a shell")
@pytest.mark.parametrize(("streams", "code", "out", "lines"), STREAMS, ids=[s[0] for s in STREAMS])
def test_a_stream_that_takes_nothing_is_no_traceback(streams, code, out, lines, images):
    folder = images.parent / "closed"
    argv = [*flags(images, folder, "--fresh", "--epochs", 2, "--iterations", 1)]
    command = f'"$@" {streams}'  # what is given last wins
    command = ["sh", "-c", command, "sh", sys.executable, "-m", "engine.train", *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == code, done.stderr
    assert out in done.stdout and done.stderr.count("\n") == lines
    assert "Traceback" not in done.stderr
    for log in folder.glob("log.jsonl"):  # nothing but rows went into a file
        assert all(json.loads(line)["kind"] for line in log.read_text().splitlines())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and a shell")
@pytest.mark.parametrize(
    ("module", "streams"),
    [("kernels", ">/dev/full"), ("kernels", "--no 2>/dev/full"), ("engine.data", ">/dev/full")],
)
def test_and_none_of_the_other_commands(module, streams, tmp_path):
    make_images(tmp_path / "images")
    argv = f"info {tmp_path / 'images'}" if module == "engine.data" else ""
    command = f'"$@" {argv} {streams}'
    command = ["sh", "-c", command, "sh", sys.executable, "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and done.stderr.count("\n") == ("2>" not in streams)
    assert done.stderr.startswith("error: cannot write to standard output") or not done.stderr


def test_a_closed_stream_does_not_give_its_number_to_a_file(tmp_path):
    code = (
        "import os, sys; from engine.errors import open_streams; open_streams();"
        "file = open('f', 'w'); os.write(2, b'lost'); print('lost', file=sys.stderr);"
        "assert file.fileno() > 2"
    )
    command = ["sh", "-c", '"$@" 2>&- <&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=tmp_path, env=environment()).returncode == 0
    assert (tmp_path / "f").read_text() == ""


def test_a_program_without_a_console_gets_its_streams():
    code = (
        "import sys; from engine.errors import complain, open_streams; sys.stderr = None;"
        "open_streams(); complain('told')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"told\n")
