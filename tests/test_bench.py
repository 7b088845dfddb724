"""The benchmark itself: its gate sees differences, its rows are complete, its report is exact."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench import gate, report, results, training
from bench.cases import ROWS, Ours, Row, Theirs, reduced
from bench.worker import Worker

RUN = {
    "command": "pytest bench/ --benchmark-only",
    "date": "2025-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "changed": False,
    "processor": "a processor",
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "meta": [
        {
            "case": "mini 5w1s",
            "algorithm": "MAML++",
            "order": "second",
            "steps": 5,
            "seconds": {"ours": 2.0, "loop": 6.0},
            "memory": {"ours": 2**29, "loop": 2**31},
        },
        {
            "case": "mini 5w1s",
            "algorithm": "MAML",
            "order": "first",
            "steps": 1,
            "seconds": {"ours": 0.5, "loop": 0.25},
            "memory": {"ours": 2**30, "loop": 2**30},
        },
    ],
    "episodes": [
        {
            "case": "mini 5w1s",
            "tasks": 2,
            "images": 160,
            "seconds": {"direct": 0.01, "prefetched": 0.005},
        }
    ],
}


@pytest.mark.parametrize("row", [r for r in ROWS if r.steps == 2], ids=str)
def test_both_compute_the_same(row: Row):
    gate.check_exact(row.config())


@pytest.mark.parametrize("change", [{"negative_slope": 0.02}, {"msl_epochs": 0}])
def test_gate_sees_another_algorithm(change: dict, monkeypatch: pytest.MonkeyPatch):
    cfg = Row("omniglot 20w1s", "MAML++", "second", 2).config()
    monkeypatch.setattr(gate, "Theirs", lambda c, dtype: Theirs(replace(c, **change), dtype))
    with pytest.raises(AssertionError, match="relative difference"):
        gate.check_exact(cfg)


def test_gate_sees_first_order_in_the_gradient(monkeypatch: pytest.MonkeyPatch):
    cfg = Row("mini 5w1s", "MAML++", "second", 2).config()
    monkeypatch.setattr(
        gate, "Theirs", lambda c, dtype: Theirs(replace(c, first_order_epochs=1), dtype)
    )
    with pytest.raises(AssertionError, match="gradient of"):
        gate.check_exact(cfg)


@pytest.mark.parametrize("a, b", [(1.0, 1.01), (1.0, float("nan")), (float("nan"),) * 2])
def test_gate_sees_another_float32_loss(a: float, b: float):
    with pytest.raises(AssertionError, match="float32 loss"):
        gate.check_single(a, b)


def test_several_iterations_agree():
    cfg = reduced(Row("mini 5w1s", "MAML++", "second", 2).config())
    cfg = replace(cfg, image_size=20, clamp=0.01)
    ours, theirs = (kind(cfg, torch.float64) for kind in (Ours, Theirs))
    for _ in range(3):
        gate.agree("loss", ours.iteration(), theirs.iteration(), 1e-8)


def test_rows_are_each_case_algorithm_order_and_one_to_five_steps():
    assert len({str(row) for row in ROWS}) == len(ROWS) == 2 * 2 * 2 * 5
    assert {row.steps for row in ROWS} == {1, 2, 3, 4, 5}


def test_tables_say_what_was_measured():
    text = report.tables(RUN)
    assert "a processor, 2 cores, 2 threads, torch 2.13.0, commit 01234567, 2025-01-02" in text
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    plus = ["mini 5w1s MAML++", "second", "5", "2.000", "6.000", "3.00×"]
    assert plus + ["512 MiB", "2,048 MiB", "0.25"] in cells
    plain = ["mini 5w1s MAML", "first", "1", "0.500", "0.250", "0.50×"]
    assert plain + ["1,024 MiB", "1,024 MiB", "1.00"] in cells
    assert ["mini 5w1s, 2 tasks", "200", "400", "16,000"] in cells


def test_report_replaces_what_is_between_the_markers():
    readme = "before\n<!-- benchmark: -->\nold\n<!-- /benchmark -->\nafter\n"
    assert report.shown(readme) == ""
    once = report.with_benchmark(readme, "run.json", RUN)
    block = f"<!-- benchmark: run.json -->\n{report.tables(RUN)}<!-- /benchmark -->"
    assert once == f"before\n{block}\nafter\n"
    assert report.shown(once) == "run.json"
    assert report.with_benchmark(once, "run.json", RUN) == once


TRAINED = {
    "config": {"ways": 5, "shots": 1, "epochs": 2, "iterations": 500, "tasks": 4},
    "curve": [{"accuracy": 0.5}, {"accuracy": 0.625}],
    "result": {
        "data": "mini",
        "best": {"accuracy": 0.6, "interval": 0.01},
        "ensemble": {"accuracy": 0.61, "interval": 0.01},
    },
}


@pytest.mark.parametrize("name", ["", "run.json"])
def test_report_writes_the_trainings_whether_or_not_a_benchmark_is_shown(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(training, "FOLDER", tmp_path / "training")
    results.save(RUN, tmp_path / "run.json")
    results.save(TRAINED, tmp_path / "training" / "mini.json")
    marks = "<!-- training -->\n<!-- /training -->\n"
    marks += f"<!-- benchmark: {name} -->\n<!-- /benchmark -->\n"
    report.README.write_text(marks)
    assert report.main([]) == 0
    readme = report.README.read_text()
    row = ["mini, 5-way 1-shot", "1,000 × 4", "50.0 62.5", "60.00 ± 1.00 %", "61.00 ± 1.00 %"]
    assert row in [[c.strip() for c in line.split("|")[1:-1]] for line in readme.splitlines()]
    assert ("a processor" in readme) == bool(name)


@pytest.mark.parametrize("name", ["", "none.json"])
def test_report_of_a_file_that_is_not_there_changes_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    report.README.write_text("<!-- benchmark: -->\n<!-- /benchmark -->\n")
    assert report.main([name]) == 2
    assert capsys.readouterr().err.startswith("error: no file ")
    assert report.README.read_text() == "<!-- benchmark: -->\n<!-- /benchmark -->\n"


def test_readme_shows_the_committed_json():
    readme = report.README.read_text(encoding="utf-8")
    name = report.shown(readme)
    if name:
        run = results.load(results.FOLDER / name)
        assert report.with_benchmark(readme, name, run) == readme
    assert report.with_trainings(readme) == readme


def test_workers_run_a_row_and_measure_themselves():
    row = Row("omniglot 20w1s", "MAML", "first", 1)
    with Worker(row, "ours", 1) as ours, Worker(row, "loop", 1) as loop:
        answers = [worker.iteration() for worker in (ours, loop)]
        gate.check_single(*(answer.loss for answer in answers))
        assert all(answer.seconds > 0 for answer in answers)
        peaks = [worker.peak() for worker in (ours, loop)]
        assert all(1 << 20 < peak < 1 << 32 for peak in peaks)
        assert [worker.process.poll() for worker in (ours, loop)] == [None, None]
    assert [worker.process.returncode for worker in (ours, loop)] == [0, 0]


def test_a_worker_that_fails_says_why(capfd: pytest.CaptureFixture):
    row = Row("no such case", "MAML", "first", 1)
    with pytest.raises(RuntimeError, match="no-such-case.* ours died.*'iteration', exit code 1"):
        with Worker(row, "ours", 1) as worker:
            worker.iteration()
    assert "KeyError: 'no such case'" in capfd.readouterr().err


def test_a_worker_that_was_killed_is_an_error():
    with Worker(Row("omniglot 20w1s", "MAML", "first", 1), "loop", 1) as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(RuntimeError, match="exit code -9"):
            worker.peak()


def test_memory_does_not_count_what_the_parent_held():
    alone = [sys.executable, "-c", "from bench.worker import peak_bytes; print(peak_bytes())"]
    code = (
        "import torch; x = torch.ones(300 << 18); import subprocess;"
        f"print(subprocess.run({alone!r}, capture_output=True, text=True, check=True).stdout)"
    )
    below, plain = (
        int(subprocess.run(c, cwd=results.ROOT, capture_output=True, text=True, check=True).stdout)
        for c in ([sys.executable, "-c", code], alone)
    )
    assert abs(below - plain) < 100 << 20
