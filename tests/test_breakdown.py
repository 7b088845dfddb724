"""A test in parts, as ``engine.evaluate --json --csv`` writes it, against the tasks' images."""

import csv
import dataclasses
import io
import json
import os

import pytest
import torch

from engine import breakdown, evaluate, scoring, train
from engine.config import Config
from engine.data import Dataset
from engine.data.bank import ClassBank
from engine.episodes import EpisodeSampler
from engine.scoring import TASK_SEED, Predictions
from tests.tiny import flags


@pytest.fixture(scope="module")
def run(images):
    folder = images.parent / "run"
    assert train.main(flags(images, folder, "--epochs", 2, "--iterations", 1)) == 0
    return folder


@pytest.fixture
def data() -> Dataset:
    """Ten classes of four images each, whose first pixel is the number of the image."""
    values = torch.arange(40, dtype=torch.uint8)
    bank = ClassBank(
        values.view(-1, 1, 1, 1).expand(-1, 8, 8, 1).contiguous(),
        torch.arange(11) * 4,
        tuple(f"class{c}" for c in range(10)),
    )
    return Dataset("made", {"test": bank}, 1.0, (0.0,), (1.0,), "id")


def made_predictions(cfg: Config, tasks: int) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    shape = 3, tasks, cfg.ways * cfg.targets
    predicted = torch.randint(cfg.ways, shape, generator=generator)
    labels = torch.arange(cfg.ways).repeat_interleave(cfg.targets).expand(tasks, -1)
    return Predictions(predicted, labels)


@pytest.mark.parametrize("rotations", ["none", "classes", "augment"])
@pytest.mark.parametrize("most", [200, 39])
def test_every_part_is_counted_from_the_images(rotations, most, data, monkeypatch):
    monkeypatch.setattr(breakdown, "MOST", most)
    options = dict(image_size=8, channels=1, stages=1, rotations=rotations, eval_tasks=37)
    cfg = Config.of(dataset="folder", ways=3, shots=1, targets=2, **options)
    found = made_predictions(cfg, 37)
    result = scoring.summary(cfg, [4, 2], data, "test", found)
    details = breakdown.breakdown(cfg, data, "test", found, result)
    names, turned = details["classes"], rotations == "classes"
    assert len(names) == 10 * (4 if turned else 1)
    source = EpisodeSampler.of(cfg, data, "test", TASK_SEED)
    pairs, right, seen = {}, dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for task in range(37):
        episode = source.episode(0, 1, first_task=task)
        of_label = {}
        _, turns = source.draw(0, 1, first_task=task)
        for label, value in zip(
            episode.support_y[0], episode.support_x[0, :, 0, 0, 0], strict=True
        ):
            name = f"class{int(value) // 4}"
            if turned:
                name += f" turned {90 * int(turns[0, label])}"
            of_label[int(label)] = name
        assert [names[c] for c in details["task_classes"][task]] == [of_label[i] for i in range(3)]
        for true, taken in zip(found.labels[task], found.predicted[0, task], strict=True):
            pair = of_label[int(true)], of_label[int(taken)]
            pairs[pair] = pairs.get(pair, 0) + 1
            seen[pair[0]] += 1
            right[pair[0]] += true == taken
    best = details["best"]
    for name, entry in zip(names, best["by_class"], strict=True):
        accuracy = right[name] / seen[name] if seen[name] else None
        assert entry == {"class": name, "images": seen[name], "accuracy": accuracy}
    if len(names) > most:
        assert best["confusion"] is None
    else:
        counted = {
            (names[i], names[j]): count
            for i, row in enumerate(best["confusion"])
            for j, count in enumerate(row)
            if count
        }
        assert counted == pairs
    hits = (found.predicted == found.labels).double()
    for model, row in (("best", 0), ("ensemble", 2)):
        assert details[model]["by_task"] == hits[row].mean(-1).tolist()
        assert details[model]["accuracy"] == pytest.approx(hits[row].mean().item())
    assert details["config"] == cfg.to_dict() and details["best"]["epoch"] == 4


def test_the_files_say_what_the_table_says(run, tmp_path, capsys):
    argv = [str(run), "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]
    assert evaluate.main([*argv, "--eval-tasks", "9", "--protocol", "inductive"]) == 0
    out = capsys.readouterr().out
    assert f"saved in {tmp_path / 'a.json'}" in out and f"saved in {tmp_path / 'a.csv'}" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["checkpoint"] == str(run) and found["trained_on"] == "folder:tiny"
    assert (found["data"], found["split"], found["tasks"]) == ("folder:tiny", "test", 9)
    assert found["config"]["protocol"] == found["protocol"] == "inductive"
    assert found["classes"] == [f"test{c}" for c in range(6)]
    rows = [*csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text()))]
    settings = {row["name"]: row["value"] for row in rows if row["what"] == "setting"}
    assert settings["protocol"] == "inductive" and settings["tested_on"] == "folder:tiny"
    for model in ("best", "ensemble"):
        of = found[model]
        assert f"{100 * of['accuracy']:.2f} % ± {100 * of['interval']:.2f}" in out
        assert len(of["by_task"]) == 9
        assert sum(map(sum, of["confusion"])) == 9 * 3 * 2
        kinds = {what: [r for r in rows if (r["model"], r["what"]) == (model, what)]
                 for what in ("mean", "task", "class", "confusion")}  # fmt: skip
        assert [float(r["value"]) for r in kinds["mean"]] == [of["accuracy"]]
        assert [float(r["value"]) for r in kinds["task"]] == of["by_task"]
        assert [r["name"] for r in kinds["class"]] == found["classes"]
        assert sum(int(r["value"]) for r in kinds["confusion"]) == 9 * 3 * 2
        assert {(r["name"], r["taken for"]): int(r["value"]) for r in kinds["confusion"]} == {
            (a, b): count
            for a, row in zip(found["classes"], of["confusion"], strict=True)
            for b, count in zip(found["classes"], row, strict=True)
            if count
        }


def test_an_older_file_is_replaced_and_a_link_followed(run, tmp_path):
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to("old.json")
    argv = [str(run), "--eval-tasks", "2", "--json", str(tmp_path / "link.json")]
    assert evaluate.main(argv) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "old.json").read_text())["tasks"] == 2
    assert sorted(os.listdir(tmp_path)) == ["link.json", "old.json"]


def test_what_cannot_be_written_is_refused_before_anything_is_evaluated(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(scoring, "predictions", None)  # never called
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for argv, words in [
        (["--json", "-"], ["--json is -", "standard output", "name a file"]),
        (["--csv="], ["--csv is empty"]),
        (["--json", tmp_path / "folder"], ["folder is no regular file"]),
        (["--csv", tmp_path / "pipe"], ["pipe is no regular file"]),
        (["--json", tmp_path / "none" / "a.json"], ["cannot write", "No such file", "--json"]),
        (["--json", tmp_path / "file" / "a.json"], ["cannot write", "takes no file", "--json"]),
        (["--json", run / "result.json"], ["a name of a file of a run"]),
        (["--csv", run / "latest.pt"], ["a name of a file of a run"]),
        (["--json", tmp_path / "a", "--csv", tmp_path / "a"], ["both", "give two files"]),
    ]:
        before = {path: path.read_bytes() for path in run.iterdir()}
        assert evaluate.main([str(run), *map(str, argv)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert all(word in err for word in words), err
        assert before == {path: path.read_bytes() for path in run.iterdir()}


def test_names_that_are_no_line_of_text_are_shown_in_rows(data):
    nasty = "a\x1b[31m\n,\udcff"
    bank = data.banks["test"]
    bank = dataclasses.replace(bank, names=(nasty, *bank.names[1:]))
    data = dataclasses.replace(data, banks={"test": bank})
    cfg = Config.of(
        dataset="folder", ways=3, shots=1, targets=2, image_size=8, channels=1, stages=1
    )
    found = made_predictions(cfg, 20)
    result = scoring.summary(cfg, [1], data, "test", found)
    details = breakdown.breakdown(cfg, data, "test", found, result)
    details |= {"checkpoint": nasty, "trained_on": nasty, "tasks": 20}
    rows = [*csv.reader(io.StringIO(breakdown.as_csv(details).encode().decode()))]
    assert {len(row) for row in rows} == {7}
    shown = "a\\x1b[31m\\n,\\udcff"
    assert [row[2] for row in rows if row[1] == "class"][0] == shown
    assert json.loads(breakdown.as_json(details))["classes"][0] == nasty
