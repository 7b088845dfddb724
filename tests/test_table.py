"""``python -m engine.table``: its runs on tiny data, stopped and continued, and its mistakes."""

import json
import os
import re
import shlex
import shutil
import signal
from statistics import fmean, stdev

import pytest

from engine import table, train
from engine.config import Config
from engine.methods import METHODS
from engine.runs.log import Report
from engine.settings import resolve
from engine.tables import budget, rows, timing
from engine.tables.budget import Cost
from engine.tables.rows import TABLES
from tests.slow import slow
from tests.tiny import call, one_line

SMALL = (
    "--image-size 16 --filters 4 --stages 3 --targets 1 --tasks 2 --eval-tasks 4 --ensemble 2 "
    "--threads 1 --device cpu --no-report"
).split()
SHORT = ["--epochs", "3", "--iterations", "2"]


def argv(images, runs, *more: str) -> list[str]:
    """Of mini-ImageNet's table, on data that is not it."""
    place = ["--data", str(images), "--cache", str(images.parent / "cache"), "--runs", str(runs)]
    return ["mini", *SMALL, *place, *more]


def test_it_trains_its_rows_and_prints_them_beside_the_figures(images, tmp_path, capsys):
    line = argv(images, tmp_path, *SHORT, "--rows", "maml,maml++-2-steps", "--seeds", "2")
    assert table.main([*line, "--status"]) == 0
    assert "0 of 6 finished" in capsys.readouterr().out and not [*tmp_path.iterdir()]
    assert table.main(line) == 0
    out, err = capsys.readouterr()
    names = [
        f"{key}_seed-{seed}"
        for seed in (0, 1)
        for key in ("maml_5w1s", "maml_5w5s", "maml++-2-steps_5w1s")
    ]
    told = [line for line in out.splitlines() if line.startswith("run ")]
    assert told == [f"run {n} of 6: {name}" for n, name in enumerate(names, 1)]
    assert err == ""
    data = json.loads((tmp_path / "table.json").read_text())
    rows_of = {(row["row"], row["shots"]): row for row in data["rows"]}
    scores = [
        json.loads((tmp_path / f"maml_5w5s_seed-{seed}" / "result.json").read_text())["best"]
        for seed in (0, 1)
    ]
    ours = rows_of["maml", 5]["ours"]["best"]
    accuracies = [score["accuracy"] for score in scores]
    assert ours["mean"] == pytest.approx(fmean(accuracies))
    assert ours["deviation"] == pytest.approx(stdev(accuracies))
    assert ours["interval"] == pytest.approx(fmean(score["interval"] for score in scores))
    page = (tmp_path / "table.md").read_text()
    assert page in out.replace("\n\nsaved in", "\nsaved in")
    mean = f"{100 * ours['mean']:.2f} ± {100 * ours['deviation']:.2f}"
    row = next(line for line in page.splitlines() if f" {mean} |" in line)
    assert row.startswith("| MAML (replicated)") and " 64.78 [" in row and "| 2 of 2 |" in row
    assert f"mini-like:{images.name}; 1 target a class; batch statistics, transductive;" in page
    assert rows_of["anil", 1]["not_trained"] == "left out by --rows"
    assert rows_of["anil", 1]["quoted"]["text"] == "46.7 ± 0.4"
    assert table.main(line) == 0  # all is passed by, and the page is the same
    assert capsys.readouterr().out.count("already finished") == 6
    assert (tmp_path / "table.md").read_text() == page


def test_its_runs_are_of_one_data_set_and_one_schedule(images, tmp_path, capsys):
    runs = tmp_path / "runs"
    one = ["--rows", "maml++-1-step", "--seeds", "1"]
    assert table.main(argv(images, runs, *SHORT, *one)) == 0
    capsys.readouterr()
    longer = argv(images, runs, "--epochs", "6", "--iterations", "2", *one)
    assert table.main(longer) == 2
    one_line(
        capsys.readouterr().err, "has finished 3 epochs, to be trained on to 6, by two schedules"
    )
    other = shutil.copytree(images, tmp_path / "other")
    next(other.rglob("*.png")).unlink()
    two = ["--rows", "maml++-2-steps", "--seeds", "1"]
    assert table.main(argv(images, runs, *SHORT, *two, "--data", str(other))) == 2
    one_line(capsys.readouterr().err, "maml++-1-step_5w1s_seed-0 was trained on mini-like:")
    assert not (runs / "maml++-2-steps_5w1s_seed-0").exists()


def test_what_is_finished_is_shown_beside_the_rows_that_are_trained(images, tmp_path, capsys):
    line = argv(images, tmp_path, *SHORT, "--seeds", "1")
    assert table.main([*line, "--rows", "maml++-1-step"]) == 0
    first = (tmp_path / "table.md").read_text()
    (row,) = (line for line in first.splitlines() if line.startswith("| MAML++, 1 step "))
    capsys.readouterr()
    assert table.main([*line, "--rows", "maml++-2-steps", "--list"]) == 0
    assert "maml++-1-step: MAML++, 1 step, 5-way 1-shot" in (out := capsys.readouterr().out)
    assert out.count("python -m engine.train") == 1
    assert table.main([*line, "--rows", "maml++-2-steps"]) == 0
    assert "run 1 of 1: maml++-2-steps_5w1s_seed-0" in capsys.readouterr().out
    page = (tmp_path / "table.md").read_text()
    cells = [cell.strip() for cell in row.split("|")]
    (again,) = (line for line in page.splitlines() if line.startswith("| MAML++, 1 step "))
    assert [cell.strip() for cell in again.split("|")] == cells
    assert page.count("| 1 of 1 |") == 2 and "Not finished" not in page
    # a setting that only the rows that are trained may have
    assert table.main([*line, "--rows", "matching-10", "--temperature", "5"]) == 2


@slow("trains seven rows on all of Omniglot")
def test_the_ablation_trains_on_omniglot(data_dir, tmp_path):
    """Whose drawings no small stand-in has: to decode them takes the most of the time."""
    few = "--filters 2 --tasks 1 --eval-tasks 2 --epochs 3 --iterations 1 --seeds 1 --threads 1"
    place = ["--data", str(data_dir / "omniglot"), "--runs", str(tmp_path)]
    rows = ["--rows", "maml,maml+da,maml++"]
    assert table.main(["ablation", *few.split(), "--device", "cpu", *place, *rows]) == 0
    page = (tmp_path / "table.md").read_text()
    assert page.count("| 1 of 1 |") == 3 and page.count("left out by --rows") == 4
    table_of_gains = page.split("| points over MAML (replicated) ")[1].split("Quoted figures in")[0]
    gains = [line.split("|")[1:3] for line in table_of_gains.splitlines()[2:] if "|" in line]
    assert [label.strip() for label, _ in gains][:2] == ["MAML++", "MAML + LSLR"]
    assert [quoted.strip() for _, quoted in gains] == [
        "+6.38", "+4.50", "+4.08", "+1.76", "+1.03", "+0.26",
    ]  # fmt: skip
    assert "P2 1150/50/423 shuffled, turned as classes; 1 target a class; batch statistics" in page
    assert "MAML + DA: 3 iterations in 3 epochs, 0 with the multi-step loss, 1 of first" in page
    configs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/config.json"))]
    assert [config["first_order_epochs"] for config in configs] == [1, 1, 0]


def test_stopped_it_continues_with_the_lengths_of_its_budget(images, tmp_path, monkeypatch, capsys):
    line = argv(images, tmp_path, "--rows", "maml++-1-step", "--seeds", "2", "--budget", "1e-3")
    whole = {"eval_tasks": 4, "ensemble": 2, "norm_statistics": "running"}
    cost = Cost(0.25, 1e-4, Config.of("maml++", "omniglot", **whole))
    monkeypatch.setattr(budget, "measured", lambda cell: cost)
    progress = Report.progress

    def interrupted(report, iteration, interval):
        progress(report, iteration, interval)
        if report._folder.name == "maml++-1-step_5w1s_seed-1" and iteration == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "progress", interrupted)
        assert table.main(line) == 130
    out, err = capsys.readouterr()
    assert "Ctrl-C: the table is stopped; the same command continues\n" in err
    assert "every run has 6 iterations, 6 epochs of 1; about 0.00084 hours in all" in out
    page = (tmp_path / "table.md").read_text()  # of what was finished before
    assert "| 1 of 2 |" in page and "Not finished: maml++-1-step_5w1s_seed-1: not begun" in page

    monkeypatch.setattr(budget, "measured", None)
    assert table.main([*line, "--status"]) == 0
    where = r"seed-1  stopped    at epoch [34] of 6, iteration [45] of 6\n"
    assert re.search(where, capsys.readouterr().out)
    assert table.main(line) == 0
    out, err = capsys.readouterr()
    assert "run 1 of 2: maml++-1-step_5w1s_seed-0, already finished" in out and err == ""
    assert "continuing after iteration" in out
    page = (tmp_path / "table.md").read_text()
    assert "| 2 of 2 |" in page and "Not finished" not in page
    assert "**Shortened**: --budget 0.001 hours" in page and " give 6 iterations, 6 epochs" in page


def test_a_row_that_fails_is_told_and_the_page_has_the_others(images, tmp_path, capsys):
    line = argv(images, tmp_path, *SHORT, "--rows", "maml++-1-step,maml++-2-steps", "--seeds", "1")
    (tmp_path / "maml++-1-step_5w1s_seed-0").write_text("no folder")
    assert table.main(line) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: maml++-1-step_5w1s_seed-0: ")
    assert "1 of 2 runs failed: maml++-1-step_5w1s_seed-0" in err
    assert "| 1 of 1 |" in out and "Not finished: maml++-1-step_5w1s_seed-0: damaged" in out


@pytest.mark.parametrize("name", TABLES)
def test_listed_it_is_lines_for_a_shell_and_nothing_is_made(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", None)
    assert table.main([name, "--list", "--data", "a b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("# ")]
    assert commands and [*tmp_path.iterdir()] == []
    for words in commands:
        assert words[:3] == ["python", "-m", "engine.train"]
        cfg = resolve(words[3:]).cfg
        assert cfg.data == "a b" and cfg.run.startswith(f"runs/tables/{name}/")
    keys = dict.fromkeys(line[2:].partition(":")[0] for line in lines if line.startswith("# "))
    assert [*keys] == [row.key for row in rows.of(name).rows]


def test_timing_is_measured_by_turns_and_once(tmp_path, monkeypatch, capsys):
    line = ["timing", *SMALL, "--runs", str(tmp_path), "--epochs", "6"]
    assert table.main([*line, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 3 * 10 and not [*tmp_path.iterdir()]
    shown = resolve(shlex.split(listed[1])[3:])
    assert shown.show and (shown.cfg.preset, shown.cfg.steps, shown.cfg.filters) == ("maml", 1, 4)
    assert table.main(line) == 0
    page = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.count("row ") == 10
    data = json.loads((tmp_path / "table.json").read_text())["rows"]
    tasks = [(row["dataset"], row["ways"], row["steps"]) for row in data]
    wanted = [("mini", 5), ("omniglot", 20)]
    assert tasks == [(*task, steps) for task in wanted for steps in range(1, 6)]
    for row in data:
        (whole,) = row["maml"]["parts"]
        assert (whole["epochs"], whole["order"]) == ([1, 6], 2)
        assert row["maml"]["seconds"] == whole["seconds"] > 0
        parts = row["maml++"]["parts"]
        told = [(part["epochs"], part["losses"], part["order"]) for part in parts]
        assert told == [([1, 1], row["steps"], 1), ([2, 2], 1, 1), ([3, 6], 1, 2)]
        a, b, c = (part["seconds"] for part in parts)
        assert row["maml++"]["seconds"] == pytest.approx((a + b + 4 * c) / 6)
        ratio = row["maml++"]["seconds"] / row["maml"]["seconds"]
        assert f" {row['maml']['seconds']:.4f} | " in page and f" {ratio:.2f} | " in page
    assert "none are quoted" in page and "filters = 4" in page
    assert f"by turns, on random images, measured {data[0]['date']}. Without table.json" in page
    monkeypatch.setattr(timing, "measured", None)
    assert table.main(line) == 0  # all are known
    assert (tmp_path / "table.md").read_text() == page
    assert "row " not in capsys.readouterr().out


def test_timing_continues_and_keeps_what_was_measured_with_other_settings(
    tmp_path, monkeypatch, capsys
):
    part = {"epochs": [1, 150], "losses": 1, "order": 2, "seconds": 2.0}
    of = {"seconds": 2.0, "epochs": 150, "parts": [part]}
    seen = []

    def measured(case, device, interrupt):
        seen.append(case.configs[0].steps)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            interrupt.check()
        return {"maml": of, "maml++": of}

    monkeypatch.setattr(timing, "measured", measured)
    line = ["timing", "--threads", "1", "--runs", str(tmp_path)]
    assert table.main(line) == 130
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 2
    assert table.main(line) == 0 and seen == [1, 2, 3, 3, 4, 5, 1, 2, 3, 4, 5]
    assert table.main([*line, "--filters", "8"]) == 0 and len(seen) == 21
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 20
    assert table.main(line) == 0 and len(seen) == 21
    row = r"\| +5 \|  2.0000 \|    2.0000 \|  1.00 \| 1–150 2.0000 \(second order\) +\|"
    assert re.search(row, capsys.readouterr().out)
    (tmp_path / "table.json").write_text('{"table": "timing", "rows": [1, {"maml": 2}]}')
    assert table.main(line) == 0 and len(seen) == 31


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: NAME"),
        (["abaltion"], "name is 'abaltion': did you mean ablation? choose one of omniglot-20way,"),
        (["mini", "--seed", "1"], "there is no flag --seed: did you mean --seeds?"),
        (["mini", "--seeds", "0"], "--seeds is 0: give a number from 1 to 100"),
        (["mini", "--seeds", "101"], "--seeds is 101: give a number from 1 to 100"),
        (["mini", "--seeds", "two"], "--seeds is 'two': give a whole number; see"),
        (["mini", "--budget", "0"], "--budget is 0.0: give a number > 0"),
        (["mini", "--budget", "nan"], "--budget is nan: give a number > 0"),
        (["mini", "--budget", "-1"], "--budget is -1.0: give a number > 0"),
        (["mini", "--budget", "1", "--epochs", "3"], "--epochs is 3 with --budget, which chooses"),
        (["mini", "--rows", "mamml"], "--rows has 'mamml': did you mean maml? mini has matching"),
        (["mini", "--rows", ""], "--rows has ''"),
        (["mini", "--runs", ""], "--runs is empty"),
        (["mini", "--ways", "7"], "there is no flag --ways here: a table decides it; see"),
        (["ablation", "--steps=3"], "there is no flag --steps here: a table decides it; see"),
        (["mini", "--list", "--status"], "not allowed with argument"),
        (
            ["mini", "--rows", "maml", "--filters", "0"],
            "--filters is 0: give a number",
        ),
        (["ablation", "--epochs", "1"], "MAML + DA, 20-way 1-shot: --epochs is 1: none of them"),
        (
            ["timing", "--seeds", "2"],
            "--seeds is 2 with timing, which trains nothing: leave it out",
        ),
        (["timing", "--budget", "2"], "--budget is 2.0 with timing"),
        (["timing", "--status"], "--status with timing"),
        (["timing", "--filters", "0"], "--filters is 0: give a number >= 1"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", None)
    assert table.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    one_line(err, told)
    assert [*tmp_path.iterdir()] == []


def test_torchrun_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("ablation", "timing"):
        assert table.main([name, "--runs", str(tmp_path / "new")]) == 2
        one_line(capsys.readouterr().err, "engine.table is of one process, and torchrun started")
    assert [*tmp_path.iterdir()] == []


def test_it_can_be_asked_for_help():
    code, out, err = call("engine.table", "--help")
    assert (code, err) == (0, "") and "usage: python -m engine.table NAME [flags]" in out
    for words in ("--seeds INT", "--budget HOURS", "--rows A,B", "--list", "--data PATH"):
        assert words in out


def test_a_folder_has_one_table_and_rows_that_nothing_trains_are_told(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "train", None)
    (tmp_path / "table.json").write_text('{"table": "mini"}')
    for name in ("ablation", "timing"):
        assert table.main([name, "--runs", str(tmp_path)]) == 2
        one_line(capsys.readouterr().err, f"{tmp_path} has table mini: give another --runs")
    for content in ("{", "[]", "{}", '{"table": 1}'):
        (tmp_path / "table.json").write_text(content)
        assert table.main(["ablation", "--runs", str(tmp_path)]) == 2
        one_line(capsys.readouterr().err, f"{tmp_path / 'table.json'} is of no table: move it")
        assert (tmp_path / "table.json").read_text() == content
    (tmp_path / "table.json").rename(tmp_path / "table.md")
    assert table.main(["timing", "--runs", str(tmp_path)]) == 2
    one_line(capsys.readouterr().err, f"{tmp_path / 'table.md'} is of no table: move it away")
    monkeypatch.delitem(METHODS, "boil")
    for words in (["--rows", "boil"], ["--rows", "boil", "--status"]):
        assert table.main(["mini", "--runs", str(tmp_path / "new"), *words]) == 2
        one_line(capsys.readouterr().err, "none of them is trained here: there is no method boil")


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name in ("ablation", "timing"):
        assert table.main([name, "--runs", str(tmp_path / "file" / "below")]) == 2
        one_line(capsys.readouterr().err, "cannot write", "give another --runs")
