"""What a page says of runs: means, deviations, intervals, protocols, curves."""

import json
from pathlib import Path
from statistics import stdev

import pytest

from engine import sweep
from engine.config import Config
from engine.errors import UserError
from engine.tables import cells, page, results, rows
from engine.tables.markdown import grid
from engine.tables.page import Found
from engine.tables.results import Run, Summary


def result(accuracy: float, interval: float, **more) -> dict:
    ensemble = {"epochs": [3, 1], "accuracy": accuracy + 0.01, "interval": interval / 2}
    best = {"epoch": 3, "accuracy": accuracy, "interval": interval}
    known = {"data": "omniglot", "identity": "abc", "targets": 1, "tasks": 600}
    how = {"norm_statistics": "batch", "protocol": "transductive"}
    return known | how | {"best": best, "ensemble": ensemble} | more


def validation(epoch: int, accuracy: float, seconds: float = 0.2) -> dict:
    values = {"accuracy": accuracy, "train_loss": 2.0, "train_accuracy": 0.3}
    return {"epoch": epoch, **values, "seconds_per_iteration": seconds}


RUNS = [
    Run(0, "finished", result(0.90, 0.010), [validation(1, 0.5), validation(2, 0.9)]),
    Run(1, "finished", result(0.92, 0.012), [validation(1, 0.6, 0.4)]),
    Run(2, "finished", result(0.97, 0.008), []),
]


def found(name: str, key: str, runs: list[Run], **given) -> Found:
    """Of a row in its table's first task."""
    each = cells.of(rows.of(name), Path("there"), len(runs), given)
    return Found(next(cell for cell in each if cell.row.key == key), runs)


def cells_of(text: str, label: str) -> list[str]:
    """Of a row of a page."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_over_seeds_the_mean_and_the_sample_deviation_over_tasks_the_mean_interval():
    best = results.summary(RUNS, "best")
    assert best.mean == pytest.approx(0.93)
    assert best.deviation == pytest.approx(((0.03**2 + 0.01**2 + 0.04**2) / 2) ** 0.5)
    assert best.deviation == pytest.approx(stdev([0.90, 0.92, 0.97]))
    assert best.interval == pytest.approx(0.010)
    ensemble = results.summary(RUNS, "ensemble")
    assert ensemble.mean == pytest.approx(0.94) and ensemble.interval == pytest.approx(0.005)
    assert results.summary(RUNS[:1], "best") == Summary(0.90, None, 0.010)
    open_run = Run(3, "not begun", None, [])
    assert results.summary([*RUNS, open_run], "best") == best
    assert results.summary([open_run], "best") is None
    assert results.seconds(RUNS) == pytest.approx(0.2) and results.seconds([open_run]) is None


def test_a_row_has_the_quoted_figure_beside_ours():
    each = [found("ablation", "maml", RUNS[:1]), found("ablation", "maml++", RUNS)]
    text = page.page(rows.of("ablation"), each, {}, None)
    assert cells_of(text, "MAML++") == [
        "MAML++", "20-way 1-shot", "97.65 ± 0.05 [1]", "93.00 ± 3.61", "1.00", "94.00 ± 3.61",
        "0.50", "3 of 3", "0.200", "P1", "P2",
    ]  # fmt: skip
    single = cells_of(text, "MAML (replicated)")
    assert single[2:8] == ["91.27 ± 1.07 [1]", "90.00", "1.00", "91.00", "0.50", "1 of 1"]
    assert "Quoted, not measured here:\n\n- [1] arXiv 1810.09502, its own runs\n" in text
    wanted = (
        "- P2 1150/50/423 shuffled, turned as classes; 1 target a class; batch statistics, "
        "transductive; 600 tasks; best of 150 epochs; ensemble of 2\n"
    )
    assert wanted in text and "\n- P1 1150/50/423 shuffled, turned as classes; 1 target a " in text
    assert "Shortened" not in text and "Not finished" not in text


def test_gains_over_maml_are_of_the_same_seeds_in_the_order_quoted():
    plus = [
        Run(0, "finished", result(0.93, 0.01), []),
        Run(1, "stopped", None, []),
        Run(2, "finished", result(0.98, 0.01), []),
    ]
    each = [
        found("ablation", "maml", RUNS),
        found("ablation", "maml+msl", RUNS[:1]),
        found("ablation", "maml+da", [Run(0, "not begun", None, [])]),
        found("ablation", "maml+lslr", plus),
    ]
    gain = results.gain(plus, RUNS, "best")
    assert gain == pytest.approx(((0.03 + 0.01) / 2, stdev([0.03, 0.01])))
    assert results.gain(RUNS[:1], RUNS, "best") == (0.0, None)
    assert results.gain([], RUNS, "best") is None
    text = page.page(rows.of("ablation"), each, {}, None)
    table = text.split("| points over MAML (replicated) ")[1]
    assert cells_of(table, "MAML + LSLR")[1:] == ["+4.50", "+2.00 ± 1.41", "+2.00 ± 1.41"]
    assert cells_of(table, "MAML + MSL")[1:] == ["+0.26", "+0.00", "+0.00"]
    assert cells_of(table, "MAML + DA")[1:] == ["+1.03", "–", "–"]
    order = [line.split("|")[1].strip() for line in table.splitlines()[2:5]]
    assert order == ["MAML + LSLR", "MAML + DA", "MAML + MSL"]
    assert "ours, best model: MAML + LSLR > MAML + MSL." in table
    none = [found("ablation", key, []) for key in ("maml", "maml+da")]
    assert "best model: no run is finished." in page.page(rows.of("ablation"), none, {}, None)


def test_rows_without_runs_say_why():
    alone = found("omniglot-20way", "maml++", [])
    alone = alone._replace(cell=alone.cell._replace(untrained="there is none"))
    text = page.page(rows.of("omniglot-20way"), [alone, alone], {}, None)
    assert cells_of(text, "MAML++")[2:] == ["97.65 ± 0.05 [1]", *["–"] * 6, "P1", "–"]
    assert "Quoted alone: MAML++: there is none." in text
    runs = [RUNS[0], Run(1, "stopped at epoch 1 of 150, iteration 500 of 75000", None, [])]
    each = [found("ablation", key, runs) for key in ("maml", "maml+ca")]
    text = page.page(rows.of("ablation"), each, {}, None)
    assert cells_of(text, "MAML + CA")[7] == "1 of 2"
    assert ", maml+ca_20w1s_seed-1: stopped at epoch 1 of 150, iteration 500 of 75000. The" in text


def test_other_settings_and_another_length_are_told():
    given = {"epochs": 30, "iterations": 20, "filters": 8, "threads": 1, "data": "secret/place"}
    each = [found("ablation", key, RUNS, **given) for key in ("maml", "maml+da", "maml++")]
    text = page.page(rows.of("ablation"), each, given, None)
    assert "in every row where it has an effect: epochs = 30, iterations = 20, filters = 8." in text
    assert "secret" not in text and "**Another length than the presets'**" in text
    told = "600 iterations in 30 epochs, {} with the multi-step loss, {} of first order\n"
    for label, msl, first in [("MAML (replicated)", 0, 0), ("MAML + DA", 0, 10), ("MAML++", 2, 10)]:
        assert f"- {label}: {told.format(msl, first)}" in text


@pytest.mark.parametrize(
    ("settings", "more", "wanted"),
    [
        (
            {"split": "background", "rotations": "augment"},
            {"protocol": "inductive", "norm_statistics": "running", "targets": 5},
            "its own two sets, turned in training; 5 targets a class; running statistics; 600 ta",
        ),
        (
            {"rotations": "none"},
            {"data": "omniglot-like:mine", "protocol": "inductive"},
            "omniglot-like:mine; 1 target a class; batch statistics, inductive; 600 tasks; best of",
        ),
    ],
)
def test_the_protocol_is_that_of_the_run(settings, more, wanted):
    cfg = Config.of(dataset="omniglot", **settings)
    assert results.protocol(cfg, result(0.5, 0.1, **more)).startswith(wanted)
    cfg = Config.of(dataset="mini", epochs=30)
    told = results.protocol(cfg, result(0.5, 0.1, data="mini", tasks=1000))
    assert told.startswith("64/16/20; 1 target a class; batch statistics, transductive; 1,000 task")
    assert told.endswith("best of 30 epochs; ensemble of 2")
    told = results.protocol(cfg, result(0.5, 0.1, data="mini", earlier_epochs=[5, 10]))
    assert told.endswith("best of 30 epochs trained on after 5, 10 epochs; ensemble of 2")


def test_seeds_of_different_data_have_no_mean():
    runs = [RUNS[0], Run(1, "finished", result(0.9, 0.01, identity="other"), [])]
    with pytest.raises(UserError, match="seeds of MAML, 20.*|MAML.*were trained on different data"):
        page.page(rows.of("ablation"), [found("ablation", "maml", runs)], {}, None)


def test_figure_1_is_curves_of_each_seed():
    falls = [validation(epoch, 0.9 if epoch < 30 else 0.05) for epoch in range(1, 41)]
    falls[29:] = [row | {"train_loss": 9.0} for row in falls[29:]]
    runs = [Run(0, "stopped at epoch 40", None, falls), Run(1, "not begun", None, [])]
    text = page.page(rows.of("figure1"), [found("figure1", "strided-maml", runs)], {}, None)
    assert cells_of(text, "run") == ["run", *map(str, range(4, 41, 4))]
    assert (
        cells_of(text, "strided MAML, seed 0")
        == ["strided MAML, seed 0"] + ["90.0"] * 7 + ["5.0"] * 3
    )
    loss = text.split("Training loss, by epoch:")[1]
    assert cells_of(loss, "strided MAML, seed 0")[1:] == ["2.000"] * 7 + ["9.000"] * 3
    assert "strided MAML, seed 1" not in text


def test_json_has_every_run_and_what_the_page_is_made_of():
    each = [found("ablation", "maml++", RUNS), found("figure1", "strided-maml", [])]
    data = json.loads(json.dumps(page.data(rows.of("ablation"), each, {"filters": 8}, None)))
    row, bare = data["rows"]
    assert data["given"] == {"filters": 8} and data["plan"] is None and bare["quoted"] is None
    assert row["quoted"]["accuracy"] == 0.9765 and row["quoted"]["deviation"] == 0.0005
    assert row["quoted"]["source"] == "arXiv 1810.09502, its own runs"
    assert row["ours"]["best"]["mean"] == pytest.approx(0.93)
    assert [run["result"]["best"]["accuracy"] for run in row["runs"]] == [0.90, 0.92, 0.97]
    assert [run["folder"] for run in row["runs"]] == [f"maml++_20w1s_seed-{s}" for s in range(3)]
    assert row["runs"][0]["validations"] == RUNS[0].validations


def test_runs_are_read_from_their_folders(finished):
    saved = json.loads((finished / "config.json").read_text())
    cell = found("ablation", "maml", [])[0]
    member = sweep.Member("name", {}, Config.from_dict(saved | {"run": str(finished)}))
    member = member._replace(settings={"run": str(finished)})
    other = member._replace(cfg=Config.from_dict(saved | {"ways": 5}))
    run, different = results.of(cell._replace(members=(member, other)))
    assert run.state == "finished" and run.seed == saved["seed"]
    assert run.result == json.loads((finished / "result.json").read_text())
    assert [row["epoch"] for row in run.validations] == [1, 2, 3]
    assert different.result is None and different.validations == []
    assert different.state.startswith("other has other settings than the sweep: ways: 3 -> 5")


def test_a_cell_does_not_end_at_a_bar():
    text = grid(["a", "b"], [["x|y", "1"], ["long", "22"]], left=(0,))
    assert text.splitlines() == [
        r"| a    |  b |",
        r"| ---- | -: |",
        r"| x\|y |  1 |",
        r"| long | 22 |",
    ]


def test_seeds_that_were_trained_on_have_no_mean_with_others():
    runs = [RUNS[0], Run(1, "finished", result(0.9, 0.01, earlier_epochs=[3]), [])]
    with pytest.raises(UserError, match="were trained by different protocols .*trained on after 3"):
        page.page(rows.of("ablation"), [found("ablation", "maml", runs)], {}, None)


def test_seeds_of_different_code_are_told():
    made = [result(0.9, 0.01, made_by={"code": code, "torch": "2"}) for code in ("abc", "abd")]
    runs = [Run(seed, "finished", one, []) for seed, one in enumerate(made)]
    text = page.page(rows.of("ablation"), [found("ablation", "maml", [*runs, RUNS[2]])], {}, None)
    assert "different versions of the code: MAML (replicated), 20-way 1-shot (abc, abd)." in text
    text = page.page(rows.of("ablation"), [found("ablation", "maml", runs[:1])], {}, None)
    assert "different versions" not in text
