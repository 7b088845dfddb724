"""A finished run is trained on, and a run starts from the weights of another: to the bit the same
however often it is cut off."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from engine import evaluate, train
from engine.runs import checkpoint
from engine.runs.log import Report
from tests.tiny import flags, make_images, same, without_rate


class Cut(BaseException):
    """Ends a training as a kill does: nothing is saved."""


@pytest.fixture
def cut_at(monkeypatch):
    """Ends the next training when it reports an iteration; None: never."""
    whole, at = Report.train, []

    def told(report, iteration, *rest, **named):
        whole(report, iteration, *rest, **named)
        if iteration in at:
            at.clear()
            raise Cut

    monkeypatch.setattr(Report, "train", told)
    return at.append


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def equal(a: Path, b: Path) -> None:
    """Every checkpoint of two run folders, and their results."""
    names = {path.name for path in a.glob("*.pt")}
    assert names == {path.name for path in b.glob("*.pt")}
    for name in names:
        x, y = (checkpoint.load(folder / name) for folder in (a, b))
        assert same(x.state, y.state) and same(x.rng, y.rng), name
        assert (x.best, x.epoch, x.config, x.origin) == (y.best, y.epoch, y.config, y.origin)
    assert (a / "result.json").read_bytes() == (b / "result.json").read_bytes()


def test_a_finished_run_is_trained_on_by_the_longer_schedule(images, run, capsys):
    before = (run / "log.jsonl").read_text()
    straight = json.loads((run / "result.json").read_text())
    assert straight["earlier_epochs"] == []
    assert evaluate.main([str(run), "--eval-tasks", "2"]) == 0
    assert train.main(flags(images, run, "--epochs", 6)) == 0
    out = capsys.readouterr().out
    assert json.loads((run / "result.json").read_text())["earlier_epochs"] == [3]
    assert "\ntrained on after 3 epochs\n" in out
    said = [line for line in out.splitlines() if line.startswith("training on after")]
    assert said == [
        "training on after 3 epochs by the schedule of 6 (epochs: 3 -> 6; "
        "first_order_epochs: 1 -> 2): epoch 4 has learning rate 5.05e-04 and order 2"
    ]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert (run / "log.jsonl").read_text().startswith(before)
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == list(range(1, 25))
    rates = [row["learning_rate"] for row in rows if row["kind"] == "train" and row["epoch"] == 4]
    assert rates == [pytest.approx((1e-3 + 1e-5) / 2)] * 4
    latest = checkpoint.load(run / "latest.pt")
    assert (latest.epoch, latest.config["epochs"], len(latest.best)) == (6, 6, 2)
    result = json.loads((run / "result.json").read_text())
    assert result["ensemble"]["epochs"] == [epoch for epoch, _ in latest.best]
    # an epoch of before, whose checkpoint has the shorter schedule, still knows its data
    assert evaluate.main([str(run)]) == 0
    assert train.main(flags(images, run, "--epochs", 6)) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("cuts", [(13,), (14, 17, 20)])
def test_cut_off_while_trained_on_it_continues_to_the_same_bits(
    images, run, finished, tmp_path, cut_at, cuts
):
    straight = Path(shutil.copytree(finished, tmp_path / "straight"))
    assert train.main(flags(images, straight, "--epochs", 5)) == 0
    for iteration in cuts:
        cut_at(iteration)
        with pytest.raises(Cut):
            train.main(flags(images, run, "--epochs", 5))
        assert not (run / "result.json").exists()
    assert train.main(flags(images, run, "--epochs", 5)) == 0
    equal(run, straight)


def refused(argv, capsys, *words):
    capsys.readouterr()
    assert train.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def test_fewer_epochs_and_more_of_an_unfinished_run_are_refused(images, run, cut_at, capsys):
    cut_at(14)
    with pytest.raises(Cut):
        train.main(flags(images, run, "--epochs", 5))
    refused(flags(images, run), capsys, "epochs: 5 -> 3", "give its own values", "--fresh")
    refused(flags(images, run, "--epochs", 9), capsys, "epochs: 5 -> 9", "finish its 5 epochs")
    assert checkpoint.load(run / "latest.pt").config["epochs"] == 5


def test_only_the_schedule_may_differ_where_a_run_is_trained_on(images, run, capsys):
    before = (run / "result.json").read_bytes()
    refused(flags(images, run, "--epochs", 5, "--lr", 0.01), capsys, "lr: 0.001 -> 0.01")
    assert (run / "result.json").read_bytes() == before


def test_a_run_starts_from_the_weights_of_another(images, finished, tmp_path, capsys):
    other = make_images(tmp_path / "other", seed=1)
    folder, best = tmp_path / "new", json.loads((finished / "result.json").read_text())["best"]
    argv = flags(other, folder, "--init", finished, "--epochs", 1, "--lr", 1e-12, "--min-lr", 1e-12)
    assert train.main(argv) == 0
    words = rf"starting from epoch {best['epoch']} of .*finished, trained on folder:tiny: .*, its c"
    assert re.search(words, capsys.readouterr().out)
    given = checkpoint.load(checkpoint.epoch_file(finished, best["epoch"]))
    found = checkpoint.load(folder / "latest.pt")
    for name, tensor in given.state["params"].items():  # the learning rate moves next to nothing
        torch.testing.assert_close(found.state["params"][name], tensor, rtol=0, atol=1e-9)
    assert found.state["iteration"] == 4 and found.data_name == "folder:other"
    origin = {k: v for k, v in found.origin.items() if k != "weights"}
    assert origin == {
        "data_name": "folder:tiny", "data_identity": given.data_identity, "epoch": given.epoch,
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{32}", found.origin["weights"])
    assert str(finished.parent).encode() not in (folder / "latest.pt").read_bytes()


def test_of_adam_and_the_iterations_nothing_is_taken(images, finished, tmp_path, cut_at):
    cut_at(1)
    with pytest.raises(Cut):
        train.main(flags(images, tmp_path / "new", "--init", finished / "latest.pt"))
    found = checkpoint.load(tmp_path / "new" / "latest.pt").state
    given = checkpoint.load(finished / "latest.pt").state
    assert same(found["params"], given["params"]) and same(found["running"], given["running"])
    assert found["iteration"] == 0
    assert not any(t.any() for name in ("first", "second") for t in found[name].values())


def test_cut_off_it_continues_without_the_weights_that_it_began_with(
    images, finished, tmp_path, cut_at, capsys
):
    source = Path(shutil.copytree(finished, tmp_path / "source"))
    straight, folder = tmp_path / "straight", tmp_path / "folder"
    argv = "--init", source, "--seed", 1
    assert train.main(flags(images, straight, *argv)) == 0
    cut_at(6)
    with pytest.raises(Cut):
        train.main(flags(images, folder, *argv))
    shutil.rmtree(source)
    assert train.main(flags(images, folder, *argv)) == 0
    equal(folder, straight)
    refused(flags(images, tmp_path / "third", *argv), capsys, "no checkpoint at", "source")
    assert not (tmp_path / "third").exists()


def test_another_classifier_begins_anew_and_says_so(images, finished, tmp_path, cut_at, capsys):
    cut_at(1)
    with pytest.raises(Cut):
        train.main(flags(images, tmp_path / "new", "--init", finished / "latest.pt", "--ways", 4))
    assert "a new classifier (3-way 16x16 -> 4-way 16x16)" in capsys.readouterr().out
    found, given = (
        checkpoint.load(folder / "latest.pt").state["params"]
        for folder in (tmp_path / "new", finished)
    )
    body = 4 * 3 * 9 + 2 * 4 * 4 * 9
    assert torch.equal(found["theta"][:body], given["theta"][:body])
    assert len(found["theta"]) == body + 4 * 16 + 4 and not found["theta"][-4:].any()
    assert same(found["rates"], given["rates"])


def test_another_network_is_refused_before_anything_is_made(images, finished, tmp_path, capsys):
    argv = flags(images, tmp_path / "new", "--init", finished, "--filters", 5, "--steps", 3)
    refused(argv, capsys, "another network (filters: 4 -> 5; steps: 2 -> 3)", "its own values")
    refused(flags(images, tmp_path / "new", "--init", "x" * 5000), capsys, "give a run folder")
    refused(flags(images, tmp_path / "new", "--init", "~nobody-here"), capsys, "--init", "no user")
    refused(flags(images, "~nobody-here/run"), capsys, "--run is ~nobody-here/run", "no user")
    assert not (tmp_path / "new").exists()
    argv = flags(images, finished, "--init", tmp_path / "none.pt", "--fresh")
    refused(argv, capsys, "no checkpoint at", "none.pt")
    assert (finished / "latest.pt").exists()


def test_a_run_does_not_begin_from_itself_or_twice(images, run, finished, capsys):
    argv = flags(images, run, "--init", finished)
    refused(argv, capsys, "--init is", "began without it", "leave it out")
    argv = flags(images, run, "--init", run / "latest.pt", "--fresh")
    refused(argv, capsys, "--init is", "--fresh", "another --run")
    assert (run / "latest.pt").exists()


def named(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["init"]


def test_weights_other_than_it_began_with_are_refused(images, finished, tmp_path, cut_at, capsys):
    first = str(shutil.copy(finished / "latest.pt", tmp_path / "first.pt"))
    other, run = sorted(finished.glob("epoch-*.pt"))[0], tmp_path / "run"
    cut_at(6)
    with pytest.raises(Cut):
        train.main(flags(images, run, "--init", first))
    words = "began with the weights of", "first.pt", "--fresh"
    refused(flags(images, run, "--init", other), capsys, other.name, *words)
    refused(flags(images, run, "--init", "does/not/exist"), capsys, "does/not/exist", *words)
    assert named(run) == first
    copy = str(shutil.copy(first, tmp_path / "copy.pt"))  # the same under another name
    assert train.main(flags(images, run, "--init", copy)) == 0 and named(run) == first
    assert train.main(without_rate(flags(images, run))) == 0 and named(run) == first
    refused(flags(images, run, "--init", other), capsys, other.name, *words)
    refused(flags(images, run, "--init", other, "--epochs", 4), capsys, other.name, *words)
    longer = without_rate(flags(images, run, "--epochs", 4))
    assert train.main(longer) == 0 and named(run) == first
    assert checkpoint.load(run / "latest.pt").epoch == 4
    (run / "config.json").unlink()  # which alone has the name
    refused(flags(images, run, "--init", other), capsys, other.name, "of another")
    assert train.main(flags(images, run, "--init", copy, "--epochs", 4)) == 0
    assert named(run) == copy
