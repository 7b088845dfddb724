"""The log and TensorBoard hold the same rows, and a continued run writes none twice."""

import json
import sys

import pytest

from engine.runs.log import Meter, Report
from engine.scoring import Score, StepAccuracy


def meter(loss: float) -> Meter:
    return Meter(count=2, loss=2 * loss, accuracy=1.0, seconds=3.0)


def write(folder, done: int, loss: float) -> None:
    """Iterations ``done + 1`` to 3 of a run of one epoch, and its validation."""
    with Report(folder, "folder:x", done, 0, 1, 3) as report:
        for iteration in range(done + 1, 4):
            report.train(iteration, 1, 1e-3, False, meter(loss + iteration), early=False)
        steps, rates = StepAccuracy([0.25, 0.5], 1), {"linear.bias": [0.01, 0.02]}
        report.validation(3, 1, Score(0.5, 0.25, 4), steps, rates, meter(loss), 1)


def test_tensorboard_shows_the_rows_of_the_log(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, done=0, loss=10.0)
    write(tmp_path, done=1, loss=20.0)  # continued after iteration 1
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["iteration"]) for row in rows] == [
        *(("train", n) for n in (1, 2, 3)),
        ("validation", 3),
    ]
    logged = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                tag = f"{row['kind']}/{name}"
                logged.setdefault(tag, []).append((row["iteration"], pytest.approx(value)))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    shown = {
        tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]
    }
    assert shown == logged
    assert [loss for _, loss in shown["train/loss"]] == [11.0, 22.0, 23.0]


def test_without_tensorboard_the_log_is_complete(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write(tmp_path, done=0, loss=1.0)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "tensorboard").exists()
