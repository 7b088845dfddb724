"""How a budget of hours becomes lengths, and that they are measured once."""

import json
from pathlib import Path

import pytest

from engine import sweep, table
from engine.config import Config
from engine.errors import UserError
from engine.tables import budget, cells, rows
from engine.tables.budget import Cost, Plan, chosen
from tests.tiny import one_line

# Seconds of an iteration and of an evaluation task; 600 tasks of a validation are the presets'.
SLOW = Cost(0.5, 0.01, Config.of("maml++", "mini"))
FAST = Cost(
    0.1, 0.005, Config.of("maml", "mini", epochs=120, ensemble=1, norm_statistics="running")
)


def seconds(seeds: int, epochs: int, iterations: int) -> float:
    slow = epochs * iterations * 0.5 + (epochs + min(5, epochs) + 1) * 600 * 0.01
    fast = epochs * iterations * 0.1 + (epochs + 1) * 600 * 0.005
    return seeds * (slow + fast)


def test_the_cost_of_a_run_is_its_iterations_validations_and_its_test():
    assert SLOW.seconds(30, 100) == pytest.approx(3000 * 0.5 + (30 + 5 + 1) * 6)
    assert FAST.seconds(3, 100) == pytest.approx(300 * 0.1 + (3 + 1) * 3)  # running statistics
    assert SLOW.evaluations(2) == pytest.approx((2 + 2 + 1) * 6)  # no more checkpoints than epochs


@pytest.mark.parametrize(
    ("hours", "seeds", "epochs"),
    [(10, 1, 150), (4, 3, 75), (2, 3, 30), (0.75, 3, 15), (0.5, 3, 6), (0.05, 1, 3)],
)
def test_all_rows_get_the_iterations_that_fill_the_hours(hours, seeds, epochs):
    found, iterations = chosen([SLOW, FAST], seeds, hours)
    assert found == epochs and iterations >= 1
    assert seconds(seeds, epochs, iterations) <= 3600 * hours
    assert seconds(seeds, epochs, iterations + 1) > 3600 * hours
    evaluations = seconds(seeds, epochs, 0)
    assert evaluations <= budget.SHARE * 3600 * hours or epochs == 3
    longer = [epochs for epochs in budget.EPOCHS if epochs > found]
    assert all(seconds(seeds, e, 0) > budget.SHARE * 3600 * hours for e in longer)


def test_hours_that_suffice_shorten_nothing_and_too_few_are_refused():
    whole = SLOW.seconds(150, 500) + FAST.seconds(120, 500)
    assert chosen([SLOW, FAST], 2, 2 * whole / 3600 + 1e-6) is None
    assert chosen([SLOW, FAST], 2, 2 * whole / 3600 - 1e-3) is not None
    assert chosen([SLOW, FAST], 3, seconds(3, 3, 1) / 3600 + 1e-9) == (3, 1)
    words = "--budget is 0.01 hours: 3 seeds of 2 runs take at least 0.047, of which"  # 0.0465
    with pytest.raises(UserError, match=words):
        chosen([SLOW, FAST], 3, 0.01)
    assert chosen([SLOW, FAST], 3, 0.047) == (3, 1)


def test_no_row_becomes_longer():
    whole = SLOW.seconds(150, 500) + FAST.seconds(120, 500)
    assert chosen([SLOW, FAST], 1, 0.999 * whole / 3600) == (150, 400)  # 60,000 as the shorter


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The cells that were measured."""
    seen = []

    def measure(cell: cells.Cell) -> Cost:
        seen.append(cell.name)
        return SLOW if cell.row.key == "maml++" else FAST

    monkeypatch.setattr(budget, "measured", measure)
    return seen


ARGV = ["ablation", "--rows", "maml,maml++", "--seeds", "2"]


def test_a_plan_is_measured_once_and_kept(measured, tmp_path, monkeypatch, capsys):
    argv = [*ARGV, "--runs", str(tmp_path / "there"), "--budget", "4"]
    assert table.main([*argv, "--status"]) == 2  # which writes nothing
    one_line(capsys.readouterr().err, "there has no plan for --budget yet")
    assert not (tmp_path / "there").exists() and not measured
    assert table.main([*argv, "--list"]) == 0
    assert measured == ["maml_20w1s", "maml++_20w1s"]
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith("python ")]
    assert all(line.startswith("# ") for line in lines if line not in listed)
    epochs, iterations = chosen([FAST, SLOW], 2, 4)
    assert len(listed) == 4
    assert all(f" --epochs={epochs} --iterations={iterations} " in line for line in listed)
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert (plan["epochs"], plan["iterations"]) == (epochs, iterations)
    assert plan["hours"] == pytest.approx(seconds(2, epochs, iterations) / 3600)
    assert plan["seconds"] == {"maml_20w1s": [0.1, 0.005], "maml++_20w1s": [0.5, 0.01]}
    seen = []
    monkeypatch.setattr(sweep, "run", lambda members, *_, after: seen.extend(members) or 0)
    assert table.main([*argv, "--threads", "1", "--data", "elsewhere"]) == 0
    assert len(measured) == 2
    assert [(m.cfg.epochs, m.cfg.iterations) for m in seen] == [(epochs, iterations)] * 4
    out = capsys.readouterr().out
    words = f"--budget 4 hours ({plan['hours']:.2g} by the speeds measured before) give "
    assert f"**Shortened**: {words}{epochs * iterations:,} iterations, {epochs} epochs of " in out
    assert "in every row alike, where the presets have 75,000; the annealing" in out
    assert f"MAML++: {epochs * iterations:,} iterations in {epochs} epochs, 10 with the" in out


def test_another_command_is_refused_where_a_plan_lies(measured, tmp_path, capsys):
    argv = ["--runs", str(tmp_path), "--budget", "4", "--list"]
    assert table.main([*ARGV, *argv]) == 0
    for other, words in [
        ([*ARGV, *argv, "--budget", "5"], "(budget: 4.0 -> 5.0)"),
        ([*ARGV, "--runs", str(tmp_path)], "(budget: 4.0 -> None)"),
        ([*ARGV, *argv, "--seeds", "3"], "(seeds: 2 -> 3)"),
        ([*ARGV, *argv, "--rows", "maml"], "(rows: ['maml', 'maml++'] -> ['maml'])"),
        ([*ARGV, *argv, "--filters", "8"], "(filters: None -> 8)"),
        (["mini", *ARGV[1:], *argv], "(table: ablation -> mini)"),
    ]:
        capsys.readouterr()
        assert table.main(other) == 2
        one_line(capsys.readouterr().err, f"{tmp_path} has runs of another command", words)


NO_PLAN = {"asked": {}, "epochs": 3, "iterations": 1, "hours": 1, "seconds": {}}
UNKNOWN = {"table": "ablation", "budget": 4, "seeds": 2, "rows": [], "flags": {"unheard": 1}}


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"asked": {}}', "[" * 9999),
        *map(json.dumps, (NO_PLAN, NO_PLAN | {"asked": []}, NO_PLAN | {"asked": UNKNOWN})),
    ],
)
def test_a_damaged_plan_is_told(content, measured, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(content)
    assert table.main([*ARGV, "--runs", str(tmp_path), "--budget", "4"]) == 2
    one_line(
        capsys.readouterr().err, f"{tmp_path / 'plan.json'} cannot be read (it is no plan): put a"
    )


def test_whole_lengths_are_those_of_the_presets(measured, tmp_path, capsys):
    argv = ["--runs", str(tmp_path), "--budget", "1e6", "--list"]
    assert table.main([*ARGV, *argv]) == 0
    assert "--epochs" not in capsys.readouterr().out
    assert budget.kept(tmp_path).given == {}
    assert budget.kept(tmp_path / "none") is None


def test_a_row_is_measured_by_its_own_iterations(tmp_path):
    given = dict(image_size=16, filters=4, stages=2, targets=1, tasks=2, threads=1)
    (cell,) = (
        cell
        for cell in cells.of(rows.of("mini"), tmp_path, 1, given, ("maml++",))
        if cell.name == "maml++_5w1s"
    )
    found = budget.measured(cell)
    assert (*found.whole, found.cfg.eval_tasks) == (150, 500, 600)
    assert found.iteration > 0 and found.task > 0
    assert [*Path(tmp_path).iterdir()] == []


ASKED_FOR = {"table": "mini", "budget": 1.0, "seeds": 1, "rows": [], "flags": {"filters": 8}}


def test_a_plan_reads_as_it_was_written(tmp_path):
    plan = Plan(dict(ASKED_FOR), 3, 7, 0.9, {"a": [1.0, 2.0]})
    budget.keep(tmp_path, plan)
    assert budget.kept(tmp_path) == plan and plan.given == {"epochs": 3, "iterations": 7}
