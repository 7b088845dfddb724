"""``python -m engine.train`` as its users meet it: a process, its streams, files and exit code."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import train
from engine.runs.log import Meter, Report, cut_log
from engine.runs.run import Run
from tests.tiny import (
    call,
    finish,
    flags,
    here,
    make_images,
    one_line,
    same,
    small_disk,
    start,
    timeless,
    wait_for,
)

TRAIN = "engine.train"
FILES = {"latest.pt", "config.json", "log.jsonl", "result.json", "details.json"}


@pytest.fixture(scope="module")
def straight(images) -> Path:
    """The run folder of a training that nothing interrupted."""
    folder = images.parent / "straight"
    code, out, err = call(TRAIN, *flags(images, folder))
    assert (code, err) == (0, ""), err
    (folder / "console.txt").write_text(out)
    return folder


def rows(folder: Path, kind: str | None = None) -> list[dict]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in found if kind in (None, row["kind"])]


def test_a_run_leaves_its_files_its_curve_and_both_test_results(straight):
    names = {p.name for p in straight.iterdir()}
    assert FILES < names and len([n for n in names if n.startswith("epoch-")]) == 2
    assert not any(n.endswith(".tmp") for n in names)
    assert [row["iteration"] for row in rows(straight, "train")] == list(range(1, 13))
    curve = rows(straight, "validation")
    assert [row["epoch"] for row in curve] == [1, 2, 3]
    assert all(0 <= row["accuracy"] <= 1 and row["train_loss"] > 0 for row in curve)
    assert {row["data"] for row in rows(straight)} == {"folder:tiny"}
    last = torch.load(straight / "latest.pt", weights_only=True)["state"]["params"]["rates"]
    names = [f"conv{s}.weight" for s in range(3)] + ["linear.weight", "linear.bias"]
    assert curve[-1]["rates"] == dict(zip(names, last.T.tolist(), strict=True))
    assert curve[0]["rates"] != curve[-1]["rates"] and last.shape == (2, 5)
    assert [(row["step_tasks"], len(row["step_accuracy"])) for row in curve] == [(1, 2)] * 3
    orders = {row["epoch"]: row["order"] for row in rows(straight, "train")}
    assert orders == {1: 1, 2: 2, 3: 2}  # a third of the epochs are first order

    result = json.loads((straight / "result.json").read_text())
    best = sorted(curve, key=lambda row: (-row["accuracy"], row["epoch"]))[:2]
    assert result["ensemble"]["epochs"] == [row["epoch"] for row in best]
    assert result["best"]["epoch"] == best[0]["epoch"]
    assert result["data"] == "folder:tiny" and result["tasks"] == 4

    console = (straight / "console.txt").read_text()
    for words in (
        "s/iteration",
        "left",
        "best model",
        "ensemble of 2",
        "95 %",
        "first_order_epochs",
    ):
        assert words in console
    assert f"{100 * result['ensemble']['accuracy']:.2f} %" in console


def test_the_first_row_comes_early_and_changes_no_other(straight, images, monkeypatch):
    monkeypatch.setattr("engine.runs.log.FIRST_ROW", 0.0)
    folder = images.parent / "early"
    assert train.main(flags(images, folder, "--log-every", 3)) == 0
    found = rows(folder, "train")
    shown = [(row["iteration"], row["iterations"], row["early"]) for row in found]
    ends = [(3, 3, False), (4, 1, False), (7, 3, False), (8, 1, False), (11, 3, False)]
    assert shown == [(1, 1, True), *ends, (12, 1, False)]
    single = [row["loss"] for row in rows(straight, "train")]
    assert found[0]["loss"] == single[0]
    assert found[1]["loss"] == pytest.approx(sum(single[:3]) / 3, rel=1e-12)
    assert timeless(rows(folder, "validation")) == timeless(rows(straight, "validation"))
    same_rows = ("accuracy", "learning_rate", "order")
    assert [found[0][n] for n in same_rows] == [rows(straight, "train")[0][n] for n in same_rows]


def test_an_iteration_that_would_end_too_late_is_not_waited_for(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("engine.runs.log.time", SimpleNamespace(monotonic=lambda: now))
    with Report(tmp_path, "folder:x", 0, 0, 1, 3) as report:
        now = 106.0
        assert not report.nothing_yet(seconds=3.0) and report.nothing_yet(seconds=6.0)
        report.train(1, 1, 1e-3, False, Meter(1, 1.0, 0.5, 6.0), early=True)
        now = 1000.0
        assert not report.nothing_yet(seconds=6.0)


def test_checkpoints_carry_everything_but_paths_of_this_machine(straight):
    found = torch.load(straight / "latest.pt", weights_only=True)
    config = json.loads((straight / "config.json").read_text())
    assert config["data"] and config["cache"] and config["run"]
    for path in straight.glob("*.pt"):
        assert str(straight.parent).encode() not in path.read_bytes()
    assert found["data_name"] == "folder:tiny" and len(found["data_identity"]) >= 12
    assert found["config"] == config | dict.fromkeys(("data", "cache", "run"))
    assert found["epoch"] == 3 and found["state"]["iteration"] == 12
    assert [entry[1] for entry in found["best"]] == sorted(
        (entry[1] for entry in found["best"]), reverse=True
    )


def test_a_finished_run_shows_its_result_again(straight, images, capsys):
    before = {p: p.read_bytes() for p in straight.glob("*.pt")} | {
        straight / "result.json": (straight / "result.json").read_bytes()
    }
    code, out, err = here(train, flags(images, straight, "--threads", 2, "--log-every", 7), capsys)
    assert (code, err) == (0, "")
    assert "already finished" in out and "ensemble of 2" in out
    assert all(p.read_bytes() == content for p, content in before.items())


def test_a_run_stopped_again_and_again_is_bit_for_bit_the_uninterrupted_one(straight, images):
    folder = images.parent / "stopped"
    command, stopped = flags(images, folder), 0
    for words, sent, code in [
        ("iteration 2/12", signal.SIGINT, 130),  # in the middle of the first epoch
        ("epoch 1/3  validation", signal.SIGKILL, -9),
        ("iteration 7/12", signal.SIGTERM, 143),
        ("iteration 12/12", signal.SIGINT, 130),  # before or in the last validation, or the test
    ]:
        process = start(TRAIN, *command)
        wait_for(process, words)
        process.send_signal(sent)
        found, out, err = finish(process)
        assert found in (code, 0), err  # 0: a busy machine brought the signal too late
        stopped += found == code
        if found > 0:
            assert "the same command continues" in err and "Traceback" not in err
        torch.load(folder / "latest.pt", weights_only=True)
    assert stopped >= 2
    code, out, err = call(TRAIN, *command)
    assert (code, err) == (0, "")

    assert {p.name for p in folder.glob("*.pt")} == {p.name for p in straight.glob("*.pt")}
    for path in straight.glob("*.pt"):
        a, b = (torch.load(p, weights_only=True) for p in (path, folder / path.name))
        assert same(a["state"], b["state"]) and same(a["rng"], b["rng"]), path.name
        assert (a["best"], a["epoch"]) == (b["best"], b["epoch"])
    assert timeless(rows(folder)) == timeless(rows(straight))
    results = [json.loads((f / "result.json").read_text()) for f in (folder, straight)]
    assert results[0] == results[1]


def handles_signals(pid: int) -> bool:
    """Whether the process has put its own handler in the place of SIGTERM's default."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads signal masks from /proc")
@pytest.mark.parametrize("wait", [0.0, 0.5])
@pytest.mark.parametrize("command", [[TRAIN], ["engine", "train"]])
def test_a_signal_in_the_first_second_is_answered_with_a_line(images, wait, command):
    folder = images.parent / f"early{wait}-{len(command)}"
    sent, code = (signal.SIGINT, 130) if wait else (signal.SIGTERM, 143)
    process = start(*command, *flags(images, folder))
    while not handles_signals(process.pid):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(wait)
    process.send_signal(sent)
    found, _, err = finish(process, timeout=10)
    assert found == code
    assert "stopped" in err and "Traceback" not in err and not folder.exists()


def test_a_second_signal_exits_at_once_and_the_checkpoint_is_whole(images):
    folder = images.parent / "twice"
    slow = ("--image-size", 64, "--filters", 64, "--targets", 5, "--tasks", 16, "--steps", 5)
    process = start(TRAIN, *flags(images, folder, *slow))
    while not (folder / "log.jsonl").exists():  # opened when all is built
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "finishing this iteration" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, timeout=10)
    assert code == 130 and "stopped at once" in err and "Traceback" not in err
    assert torch.load(folder / "latest.pt", weights_only=True)["state"]["iteration"] == 0


def test_a_closed_terminal_saves_and_the_same_command_continues(images, hangup):
    folder = images.parent / "hangup"
    command = flags(images, folder, "--iterations", 100000)
    ours, theirs = pty.openpty()
    process = start(TRAIN, *command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    while not (folder / "log.jsonl").exists() or len(rows(folder)) < 2:
        assert process.poll() is None
        if select.select([ours], [], [], 0.01)[0]:
            os.read(ours, 4096)
    os.close(ours)
    process.send_signal(signal.SIGHUP)  # by the shell
    process.send_signal(signal.SIGHUP)  # by the system, when the shell ends
    assert process.wait(60) == 129
    last = rows(folder)[-1]["iteration"]
    assert torch.load(folder / "latest.pt", weights_only=True)["state"]["iteration"] == last

    process = start(TRAIN, *command)
    wait_for(process, f"continuing after iteration {last}")
    process.kill()
    finish(process)


def test_nan_stops_the_run_with_the_iteration_and_keeps_the_last_good_checkpoint(images, capsys):
    folder = images.parent / "nan"
    code, _, err = here(train, flags(images, folder, "--inner-rate", 1e30), capsys)
    assert code == 3
    one_line(err, "iteration 1:", "gradient of", "not finite", str(folder), "--fresh")
    assert torch.load(folder / "latest.pt", weights_only=True)["state"]["iteration"] == 0


def test_work_since_the_last_save_is_bounded_in_time(images, monkeypatch):
    saved, save = [], Run.save
    monkeypatch.setattr("engine.train.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Run, "save", lambda run: (saved.append(run.state.iteration), save(run)))
    assert train.main(flags(images, images.parent / "often", "--epochs", 1)) == 0
    assert saved == [0, 1, 2, 3, 4, 4]  # at the start, after each iteration, and with the epoch


def test_a_changed_configuration_is_refused_and_fresh_starts_over(straight, images, capsys):
    folder = images.parent / "changed"
    assert here(train, flags(images, folder, "--epochs", 1), capsys)[0] == 0
    before = (folder / "latest.pt").read_bytes()
    other = flags(images, folder, "--epochs", 1, "--lr", 0.002, "--seed", 3)
    code, _, err = here(train, other, capsys)
    assert code == 2
    one_line(err, "lr: 0.001 -> 0.002", "seed: 0 -> 3", "--fresh")
    assert (folder / "latest.pt").read_bytes() == before

    (folder / "notes.txt").write_text("mine")
    code, _, err = here(train, flags(images, folder, "--fresh"), capsys)
    assert (code, err) == (0, "")
    assert (folder / "notes.txt").exists() and timeless(rows(folder)) == timeless(rows(straight))


def test_other_data_is_refused(straight, images, capsys):
    other = make_images(images.parent / "other" / "tiny", seed=1)
    code, _, err = here(train, flags(other, straight), capsys)
    assert code == 2
    one_line(err, "was trained on folder:tiny", "--fresh", "--run")


def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_survives(images):
    with small_disk(images.parent / "disk") as disk:
        folder, filler = disk / "run", disk / "filler"
        command = flags(images, folder, "--epochs", 1000)
        process = start(TRAIN, *command)
        wait_for(process, "epoch 2/1000  validation")
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        code, _, err = finish(process)
        assert code == 2
        one_line(err, "cannot write run folder", "No space left")
        reached = torch.load(folder / "latest.pt", weights_only=True)["epoch"]
        assert reached >= 1

        filler.unlink()
        process = start(TRAIN, *command)
        wait_for(process, f"epoch {reached + 1}/1000  validation")
        process.kill()
        finish(process)


def test_a_damaged_result_or_log_is_made_again(straight, images, capsys):
    folder = images.parent / "damaged-result"
    shutil.copytree(straight, folder)
    (folder / "result.json").write_text('{"best"')
    with open(folder / "log.jsonl", "ab") as log:
        log.write(b'5\n{"kind": "train"}\n\xff\xfe')
    code, out, err = here(train, flags(images, folder), capsys)
    assert (code, err) == (0, "") and "ensemble of 2" in out
    assert (folder / "result.json").read_bytes() == (straight / "result.json").read_bytes()
    cut_log(folder / "log.jsonl", iteration=12, epoch=3)
    assert rows(folder) == rows(straight)


def test_a_lost_epoch_is_met_before_training_goes_on(straight, images, capsys):
    folder = images.parent / "lost"
    shutil.copytree(straight, folder)
    lost = min(folder.glob("epoch-*.pt"))
    lost.unlink()
    assert here(train, flags(images, folder), capsys)[0] == 0  # finished: nothing needs it any more
    (folder / "result.json").unlink()
    code, _, err = here(train, flags(images, folder), capsys)
    assert code == 2
    one_line(err, lost.name, "put it back", "--fresh")
