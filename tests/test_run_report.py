"""What a training records of its test and the report that it leaves, which never costs the run."""

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine.report
from engine import evaluate, train
from engine.config import Config
from engine.episodes import EpisodeSampler
from engine.report import page
from engine.report.recorded import read
from engine.runs.problem import load_dataset
from engine.scoring import TASK_SEED
from tests.tiny import flags

SWITCH = "--no-report"


def with_report(*given) -> list[str]:
    return [flag for flag in flags(*given) if flag != SWITCH]


@pytest.fixture(scope="module")
def run(images) -> Path:
    """Of grey pictures, which are kept as they are."""
    folder = images.parent / "reported"
    assert train.main(with_report(images, folder, "--channels", 1, "--targets", 3)) == 0
    return folder


def details(run: Path) -> dict:
    return json.loads((run / "details.json").read_text())


def pixels(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))))


def test_details_are_what_the_evaluation_finds(run, tmp_path):
    found = details(run)
    for protocol in ("transductive", "inductive"):
        file = tmp_path / f"{protocol}.json"
        assert evaluate.main([str(run), "--protocol", protocol, "--json", str(file)]) == 0
        again = json.loads(file.read_text())
        if protocol == found["protocol"]:
            for name in ("best", "ensemble", "classes", "task_classes", "steps"):
                assert found[name] == again[name], name
        else:
            best = {name: again["best"][name] for name in ("accuracy", "interval")}
            assert found["other"] == {"protocol": "inductive"} | best
    assert read([run])[0].details is not None


def test_the_tasks_are_the_first_of_the_test(run):
    found = details(run)
    cfg = Config.from_dict(found["config"])
    bank = load_dataset(cfg, "test")
    sampler = EpisodeSampler.of(cfg, bank, "test", seed=TASK_SEED)
    rows, _ = sampler.draw(0, 4)
    assert len(found["tasks"]) == 4
    for task, shown in enumerate(found["tasks"]):
        hits = []
        for way in range(cfg.ways):
            uris = [*shown["support"][way], *(t["picture"] for t in shown["targets"][way])]
            assert len(uris) == cfg.shots + cfg.targets
            for uri, row in zip(uris, rows[task, way], strict=True):
                assert np.array_equal(pixels(uri), bank.banks["test"].images[row, :, :, 0])
            hits += [target["best"] == way for target in shown["targets"][way]]
        assert sum(hits) / len(hits) == pytest.approx(found["best"]["by_task"][task])


def test_the_log_has_the_peak_of_memory(run):
    (recorded,) = read([run])
    peaks = [row["peak_memory"] for row in recorded.epochs.values()]
    assert len(peaks) == 3
    if sys.platform.startswith("linux"):
        assert all(50 * 2**20 < peak < 64 * 2**30 for peak in peaks)
    else:
        assert peaks == [None] * 3


def test_a_training_leaves_a_report(run):
    pytest.importorskip("plotly")
    made = (run / "report.html").read_text()
    result = json.loads((run / "result.json").read_text())["best"]
    assert f"{100 * result['accuracy']:.2f} ± {100 * result['interval']:.2f} %" in made
    assert made == page.document(read([run]))
    assert made.count('<div class="task">') == 4


def test_without_a_report_no_picture_is_kept(finished):
    found = details(finished)
    assert found["tasks"] == [] and found["best"]["confusion"] and found["other"]
    assert not (finished / "report.html").exists()


def again(run: Path, images: Path, *more) -> int:
    """Has the test of a run made again."""
    (run / "result.json").unlink()
    return train.main(with_report(images, run, "--channels", 1, "--targets", 3, *more))


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_fault_in_the_report_costs_no_training(copy, images, monkeypatch, capsys):
    def broken(runs):
        raise KeyError("oh\nno")

    monkeypatch.setattr(engine.report, "document", broken)
    monkeypatch.setattr(engine.report, "missing", lambda: None)
    assert again(copy, images) == 0
    assert (copy / "result.json").exists()
    assert capsys.readouterr().out.splitlines()[-1] == "no report.html: KeyError('oh\\nno')"


def test_without_plotly_a_training_says_so(copy, images, monkeypatch, capsys):
    (copy / "report.html").unlink(missing_ok=True)
    monkeypatch.setattr(engine.report, "missing", lambda: "plotly is not installed: get it")
    assert again(copy, images) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("no report.html: plotly is not installed: get it; then python")
    assert not (copy / "report.html").exists()


def test_a_run_that_is_trained_on_keeps_no_report_of_fewer_epochs(copy, images, capsys):
    pytest.importorskip("plotly")
    assert (copy / "report.html").exists()
    longer = flags(images, copy, "--channels", 1, "--targets", 3, "--epochs", 4)
    assert train.main(longer) == 0
    assert json.loads((copy / "result.json").read_text()) and not (copy / "report.html").exists()


def test_a_report_of_somebody_else_stays(copy, images, capsys):
    pytest.importorskip("plotly")
    (copy / "report.html").write_text("mine")
    assert again(copy, images, "--fresh") == 0
    assert (copy / "report.html").read_text() == "mine"
    assert "is not one of this program, and stays" in capsys.readouterr().out.splitlines()[-1]
    shutil.copy(copy / "details.json", copy / "kept.json")
    (copy / "report.html").write_text("<!doctype html>\n<!-- a report of mamlpp -->\nold")
    assert train.main(flags(images, copy, "--channels", 1, "--epochs", 1, "--fresh")) == 0
    assert not (copy / "report.html").exists() and (copy / "kept.json").exists()
