"""A finished training is kept with what it is measured against, on its own data."""

import json
from pathlib import Path

import pytest
import torch

from bench import centroid, results, training
from engine import train
from engine.config import Config
from engine.episodes import Episode
from engine.runs.problem import load_dataset
from tests.tiny import flags, make_images


def test_nearest_centroid_is_nearest_to_the_mean_of_a_class():
    support = torch.tensor([[0.0, 4.0, 3.0, 3.2], [0.0, 0.0, 1.0, 1.0]])  # means 2, 3.1 and 0, 1
    target = torch.tensor([[2.4, 2.7, 0.0, 9.0], [0.1, 0.2, 0.8, 0.9]])
    labels = torch.tensor([0, 0, 1, 1]).expand(2, 4)
    support_x, target_x = (x.view(2, 4, 1, 1, 1) for x in (support, target))
    episode = Episode(support_x, labels, target_x, labels)
    assert centroid.accuracies(episode).tolist() == [0.5, 1.0]


@pytest.fixture
def run(tmp_path, monkeypatch) -> tuple[Path, Config]:
    """What a training leaves in its folder, as far as it is read."""
    images = make_images(tmp_path / "tiny")
    cfg = Config.of(
        "maml++",
        "folder",
        data=str(images),
        cache=str(tmp_path / "cache"),
        image_size=16,
        ways=3,
        targets=2,
        eval_tasks=20,
    )
    folder, result = tmp_path / "run", {"identity": load_dataset(cfg, "test").identity}
    config = cfg.to_dict() | {"gone": 1}
    del config["unroll"]  # as of a version without it
    results.save(config, folder / "config.json")
    results.save(result, folder / "result.json")
    results.save({"other": {"accuracy": 0.25, "interval": 0.125}}, folder / "details.json")
    row = {"kind": "train", "iterations": 4, "seconds_per_iteration": 0.5}
    rows = [row | {"early": True, "iterations": 1}, row, row]
    rows.append({"kind": "validation", "accuracy": 0.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(training, "FOLDER", tmp_path / "kept")
    return folder, cfg


def test_a_run_is_kept_with_nearest_centroid_on_its_tasks(run):
    folder, cfg = run
    assert training.main([str(folder), "tiny"]) == 0
    kept = results.load(training.FOLDER / "tiny.json")
    assert [row["accuracy"] for row in kept["curve"]] == [0.5]
    assert kept["config"]["ways"] == 3 and not {"data", "cache"} & kept["config"].keys()
    found = kept["centroid"]
    assert found == centroid.test(cfg, load_dataset(cfg, "test"))._asdict()
    assert kept["result"]["other"]["accuracy"] == 0.25 and kept["seconds"] == 4.0
    assert kept["machine"]["commit"] == results.commit("HEAD")
    assert training.main([str(folder), "tiny", "--commit", "none"]) == 2
    assert found["tasks"] == 20 and 1 / 3 < found["accuracy"] <= 1


def begun(folder: Path, backend: str, losses: list[float]) -> None:
    config = results.load(folder / "config.json") | {"backend": backend}
    rows = [
        {"kind": "train", "iteration": 50 * (i + 1), "loss": loss, "accuracy": 0.5}
        | {"seconds_per_iteration": loss, "iterations": 50}
        for i, loss in enumerate(losses)
    ]
    rows.insert(0, {"kind": "train", "iteration": 3, "early": True})  # of no interval of its own
    results.save(config, folder / "config.json")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_same_training_s_beginning_by_another_backend_goes_with_it(run, tmp_path, capsys):
    folder, other = run[0], tmp_path / "other"
    results.save(results.load(folder / "config.json"), other / "config.json")
    begun(folder, "auto", [1.01, 0.5, 0.25])
    begun(other, "plain", [1.0, 0.5])
    results.save(results.load(folder / "result.json") | {"data": "tiny"}, folder / "result.json")
    assert training.main([str(folder), "tiny", str(other)]) == 0
    (note,) = training.notes()
    assert "first 100 iterations by `auto` and by `plain` differ by at most 1.0 % in loss" in note
    assert "0.755 and 0.750 s an iteration" in note
    results.save(results.load(other / "config.json") | {"lr": 1.0}, other / "config.json")
    assert training.main([str(folder), "tiny", str(other)]) == 2
    assert "is of another training: lr differ" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [0, 1, 10, 11, 50, 150])
def test_a_long_curve_is_thinned_to_its_last_point(epochs: int):
    curve = list(range(epochs))
    shown = training.thinned(curve)
    assert (
        len(shown) <= 10
        and shown[-1:] == curve[-1:]
        and {b - a for a, b in zip(shown, shown[1:], strict=False)} <= {-(-epochs // 10)}
    )


def test_a_run_whose_data_is_another_now_is_not_kept(run, capsys):
    folder, _ = run
    results.save({"identity": "another"}, folder / "result.json")
    assert training.main([str(folder), "tiny"]) == 2
    assert capsys.readouterr().err.startswith("error: folder:tiny is not what the run was trained")
    assert not training.FOLDER.exists()


def test_a_method_is_named_with_those_of_its_settings_that_are_not_usual():
    usual = Config.of("maml++", method="matching").to_dict()
    assert training._method(usual) == "matching"
    assert training._method(usual | {"temperature": 10.0}) == "matching, temperature 10.0"
    assert training._method(Config.of("maml++", method="reptile").to_dict()) == "reptile"
    small = Config.of("finn-2017", "omniglot", method="maml", filters=32).to_dict()
    assert training._method(small) == "maml, preset finn-2017, filters 32"
    assert training._method({"preset": "maml++"}) == "maml++"  # of a version without methods


def test_a_run_that_was_stopped_is_kept_and_its_row_says_so(tmp_path, monkeypatch, capsys):
    images, folder = make_images(tmp_path / "tiny"), tmp_path / "stopped"
    monkeypatch.setattr(training, "FOLDER", tmp_path / "kept")
    assert train.main(flags(images, folder)) == 0
    assert training.main([str(folder), "tiny", "--stopped"]) == 2
    assert "has come to its end; leave --stopped out" in capsys.readouterr().err
    whole = results.load(folder / "result.json")
    (folder / "result.json").unlink()
    assert training.main([str(folder), "tiny"]) == 2
    assert "give a finished run, or --stopped" in capsys.readouterr().err
    assert training.main([str(folder), "tiny", "--stopped"]) == 0
    kept = results.load(training.FOLDER / "tiny.json")
    assert kept["result"]["best"] == whole["best"] and kept["result"]["other"]["interval"] > 0
    assert kept["result"]["stopped"] == 3
    assert training.table_rows()[0][1] == "12 of 12 × 2"
