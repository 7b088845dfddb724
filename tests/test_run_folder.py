"""A run folder: what is the run's own, what is its user's, and what else may lie there."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from engine import evaluate, train
from engine.errors import UserError
from engine.files import RUN_FILES
from engine.runs import checkpoint
from engine.runs.checkpoint import epoch_file, epoch_files, open_run
from engine.runs.log import Report
from engine.runs.run import Run
from engine.runs.saved import load_best
from tests.tiny import flags


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(main, argv, capsys, *words):
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


MINE = (
    "epoch-best.pt", "epoch-0001-good.pt", "epoch-00001.pt", "epoch-1.pt", "my-epoch-0001.pt",
    "epoch-0001.pt.bak", ".notes.tmp", ".epoch-best.pt.tmp", ".latest.pt.swp.tmp", "best.pt",
)  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--epochs", 4), ("--fresh",)])
def test_nothing_of_the_user_is_removed(images, run, more):
    (run / "tensorboard" / "other").mkdir(parents=True, exist_ok=True)
    mine = [*MINE, "tensorboard/notes.txt", "tensorboard/other/events.out.tfevents.1"]
    for name in mine:
        (run / name).write_text("mine")
    (run / "tensorboard" / "events.out.tfevents.2").write_text("its own")
    halves = run / ".epoch-0002.pt.tmp", run / f".latest.pt.{'0f' * 8}.tmp"
    for half in halves:
        half.write_text("half")
    assert train.main(flags(images, run, *more)) == 0
    assert {(run / name).read_text() for name in mine} == {"mine"}
    assert not any(half.exists() for half in halves)
    assert (run / "tensorboard" / "events.out.tfevents.2").exists() == ("--fresh" not in more)


def test_an_epoch_that_the_run_does_not_know_stays(images, run):
    kept = [epoch for epoch, _ in checkpoint.load(run / "latest.pt").best]
    stranger = epoch_file(run, 77)
    stranger.write_text("of another run")
    assert train.main(flags(images, run, "--epochs", 4)) == 0
    assert stranger.read_text() == "of another run" and len(kept) == 2


def test_a_kill_between_two_files_leaves_no_fallen_epoch(images, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(run):
        if run.fallen:
            raise Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "_remove_fallen", killed)
        train.main(flags(images, folder, "--ensemble", 1))
    latest = checkpoint.load(folder / "latest.pt")
    assert latest.fallen and epoch_files(folder) != [epoch_file(folder, latest.best[0][0])]
    assert train.main(flags(images, folder, "--ensemble", 1)) == 0
    (best,) = checkpoint.load(folder / "latest.pt").best
    assert epoch_files(folder) == [epoch_file(folder, best[0])]


@pytest.mark.parametrize("names", [["config.json"], ["log.jsonl", "result.json"]])
@pytest.mark.parametrize("more", [(), ("--fresh",)])
def test_files_of_no_run_are_not_taken_over(images, tmp_path, capsys, names, more):
    for name in names:
        (tmp_path / name).write_text('{"mine": 1}')
    refused(train.main, flags(images, tmp_path, *more), capsys, *names, "another --run")
    assert {(tmp_path / name).read_text() for name in names} == {'{"mine": 1}'}


def test_what_a_killed_fresh_start_left_is_removed_by_the_next(images, run):
    for path in (run / "latest.pt", *epoch_files(run), run / "result.json"):
        path.unlink()
    assert train.main(flags(images, run, "--fresh", "--epochs", 1)) == 0
    assert checkpoint.load(run / "latest.pt").epoch == 1


def test_a_lock_that_is_a_link_does_not_empty_its_target(tmp_path):
    folder, target = tmp_path / "run", tmp_path / "thesis.tex"
    folder.mkdir()
    target.write_text("mine")
    (folder / ".lock").symlink_to(target)
    with pytest.raises(UserError, match="is a link"), open_run(folder, fresh=False):
        pass
    (folder / ".lock").unlink()
    (folder / ".lock").write_text("a lock's content is nobody's business")
    with open_run(folder, fresh=True):
        pass
    assert (folder / ".lock").read_text() and target.read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", *RUN_FILES])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_what_is_no_file_is_refused_and_never_waited_for(images, run, capsys, name, kind):
    path = run / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(run / "nothing")
    before = sorted(os.listdir(run))
    refused(train.main, flags(images, run), capsys, str(path))
    assert sorted(os.listdir(run)) == before
    if name == "latest.pt":
        refused(evaluate.main, [run], capsys, name)
    elif name == "config.json":
        refused(evaluate.main, [run], capsys, "name it with --data")
    else:
        assert evaluate.main([str(run), "--eval-tasks", "2"]) == 0


@pytest.mark.parametrize("name", ["log.jsonl", "latest.pt", "config.json", "result.json"])
def test_a_link_is_replaced_and_its_target_is_not_written(images, run, tmp_path, name):
    target = tmp_path / "target"
    (run / name).rename(target)
    (run / name).symlink_to(target)
    before = target.read_bytes()
    assert train.main(flags(images, run, "--epochs", 4)) == 0
    assert target.read_bytes() == before and not (run / name).is_symlink()


def test_evaluation_writes_no_cache_where_a_received_folder_says(run, images, tmp_path):
    config = json.loads((run / "config.json").read_text())
    there = tmp_path / "of the victim"
    (run / "config.json").write_text(json.dumps(config | {"cache": str(there)}))
    assert evaluate.main([str(run)]) == 0
    assert not there.exists()


@pytest.mark.parametrize("text", [
    *("[" * 100_000, '{"a":' * 100_000, "{", "[]", "5"),
    *('{"data": "x"}', "\xff", '{"data": "~nobody/x"}'),
])  # fmt: skip
def test_a_damaged_configuration_beside_is_no_configuration(run, capsys, text):
    (run / "config.json").write_text(text, encoding="latin-1")
    refused(evaluate.main, [run], capsys, "trained on folder:tiny", "--data")


@pytest.mark.parametrize("data", ["~nobody-here/x", "a\0b", 5, ""])
def test_a_configuration_beside_with_a_path_that_is_none(run, capsys, data):
    config = json.loads((run / "config.json").read_text()) | {"data": data}
    (run / "config.json").write_text(json.dumps(config))
    refused(evaluate.main, [run], capsys, "trained on folder:tiny", "--data")


def test_deeply_nested_results_and_rows_are_made_again(images, run, finished):
    (run / "result.json").write_text("[" * 100_000)
    with open(run / "log.jsonl", "a") as log:
        log.write("[" * 100_000 + "\n")
    assert train.main(flags(images, run)) == 0
    assert (run / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_evaluation_beside_a_training_reads_one_whole_set(run, monkeypatch):
    """An epoch falls out of the best after latest.pt was read, and before it is."""
    load, latest = checkpoint.load, checkpoint.load(run / "latest.pt")
    (first, _), (second, _) = latest.best
    changed = threading.Event()

    def beside(path):
        found = load(path)
        if path.name == "latest.pt" and not changed.is_set():
            changed.set()
            latest.best = [latest.best[1]]
            checkpoint.save(path, latest)
            epoch_file(run, first).unlink()
        return found

    monkeypatch.setattr(checkpoint, "load", beside)
    assert [member.epoch for member in load_best(run)] == [second]


def test_evaluation_beside_a_training_gives_up_in_a_line(run, monkeypatch):
    load, latest = checkpoint.load, checkpoint.load(run / "latest.pt")
    reads = []

    def beside(path):
        found = load(path)
        if path.name == "latest.pt":
            reads.append(path)
            latest.epoch = len(reads)
            checkpoint.save(path, latest)
        return found

    epoch_file(run, latest.best[1][0]).unlink()
    monkeypatch.setattr(checkpoint, "load", beside)
    with pytest.raises(UserError, match="trained so fast .*latest.pt"):
        load_best(run)
    assert len(reads) == 10
    monkeypatch.setattr(checkpoint, "load", load)
    with pytest.raises(UserError, match="No such file"):  # nobody trains: it is lost
        load_best(run)


def test_an_epoch_of_another_run_is_no_member(run):
    (first, _), (second, _) = checkpoint.load(run / "latest.pt").best
    shutil.copy(epoch_file(run, second), epoch_file(run, first))
    with pytest.raises(UserError, match=f"{epoch_file(run, first).name} is not epoch {first}"):
        load_best(run)


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_goes_while_it_is_trained_into(images, tmp_path, monkeypatch, capsys, moved):
    folder, whole = tmp_path / "run", Report.train

    def told(report, iteration, *rest, **named):
        whole(report, iteration, *rest, **named)
        if iteration == 6:
            folder.rename(tmp_path / "moved") if moved else shutil.rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "train", told)
        refused(train.main, flags(images, folder), capsys, f"run folder {folder} is gone")
    if moved:
        (tmp_path / "moved").rename(folder)
    assert train.main(flags(images, folder)) == 0
    assert ("continuing after iteration 4" in capsys.readouterr().out) == moved


def test_a_best_epoch_that_goes_is_told_at_the_next(images, tmp_path, monkeypatch, capsys):
    folder, whole = tmp_path / "run", Report.train

    def told(report, iteration, *rest, **named):
        whole(report, iteration, *rest, **named)
        if iteration == 6:
            epoch_file(folder, 1).unlink()

    monkeypatch.setattr(Report, "train", told)
    argv = flags(images, folder, "--ensemble", 3)
    refused(train.main, argv, capsys, "has lost epoch-0001.pt", "put it back")
    assert checkpoint.load(folder / "latest.pt").epoch == 2
