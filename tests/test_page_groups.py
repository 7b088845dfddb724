"""A page of runs: which of them are one group, what they are called, and what is quoted."""

import json
from pathlib import Path

import pytest

from engine.report.groups import grouped
from engine.report.published import published
from engine.report.recorded import read
from engine.report.sections import settings
from tests import reported
from tests.reported import make_run, write_log

SECTIONS = ["summary", "settings", "curves", "rates", "steps", "tasks", "confusion", "cost"]


def test_seeds_of_one_configuration_are_together(tmp_path):
    places = {
        "a": dict(seed=0),
        "b": dict(seed=1, preset="maml"),
        "c": dict(seed=1, log_every=7, threads=1, no_report=True),
        "d": dict(seed=0, preset="maml"),
    }
    groups = grouped(read([make_run(tmp_path / n, **given) for n, given in places.items()]))
    names = [(group.name, [run.name for run in group.runs]) for group in groups]
    assert names == [("maml++", ["a", "c"]), ("maml", ["d", "b"])]
    assert len({group.colour for group in groups}) == 2
    table = settings(groups)
    assert '<td data-head="setting">msl_epochs</td>' in table
    assert "<dt>ways</dt><dd>2</dd>" in table and "<dt>seed</dt>" not in table


def test_a_run_is_called_by_what_was_trained(tmp_path):
    kinds = {
        "a": dict(preset="maml"),
        "b": dict(preset="htym-2019"),
        "c": dict(method="protonet"),
        "d": dict(preset="maml", method="protonet"),
    }
    runs = {n: make_run(tmp_path / n, epochs=1, **given) for n, given in kinds.items()}
    alone = [in_groups(run)[0][0] for run in runs.values()]
    task = ", 2-way 1-shot"
    assert alone == ["maml" + task, "htym-2019" + task, "protonet" + task, "protonet" + task]
    assert [name for name, _ in in_groups(runs["a"], runs["b"], runs["c"])] == [
        "maml", "htym-2019", "protonet",
    ]  # fmt: skip
    assert [name for name, _ in in_groups(runs["c"], runs["d"])] == [
        "preset maml++", "preset maml",
    ]  # fmt: skip
    same = dict(preset="maml", epochs=1)
    by_preset = make_run(tmp_path / "e", norm_gains="fixed", **same)
    by_method = make_run(tmp_path / "f", method="maml", **same)
    assert [name for name, _ in in_groups(by_preset, by_method)] == [
        "--method maml++", "--method maml",
    ]  # fmt: skip


def identified(folder: Path, identity: str, data: str = reported.DATA) -> Path:
    result = reported.result(0, 5) | {"identity": identity, "data": data}
    (folder / "result.json").write_text(json.dumps(result))
    write_log(folder, [row | {"data": data} for row in reported.rows(0, 5)])
    return folder


def in_groups(*folders: Path) -> list[tuple[str, list[str]]]:
    groups = grouped(read(folders))
    return [(group.name, [run.name for run in group.runs]) for group in groups]


def test_runs_that_began_with_other_weights_are_apart(tmp_path):
    sources = {"a": None, "b": "/x/one/run", "c": "/x/two/run", "d": "/x/one/run/", "e": None}
    runs = {
        name: make_run(tmp_path / name, seed, epochs=1, init=source)
        for seed, (name, source) in enumerate(sources.items())
    }
    assert in_groups(*runs.values()) == [
        ("initial weights random", ["a", "e"]),
        ("initial weights of one/run", ["b", "d"]),
        ("initial weights of two/run", ["c"]),
    ]
    assert in_groups(runs["b"]) == [("maml++, 2-way 1-shot, initial weights of run", ["b"])]
    assert in_groups(runs["a"]) == [("maml++, 2-way 1-shot", ["a"])]
    page_words = settings(grouped(read([*runs.values()])))
    assert '<td data-head="setting">initial weights</td>' in page_words
    assert "/x/" not in page_words


@pytest.mark.parametrize(("data", "words"), [
    (reported.DATA, "pictures"), ("own", "network and data"),
])  # fmt: skip
def test_runs_of_other_content_under_one_name_are_apart(tmp_path, data, words):
    first, second, third = (
        identified(make_run(tmp_path / name, seed, epochs=1), identity, data)
        for seed, (name, identity) in enumerate(
            {"a": "1" * 32, "b": "2" * 32, "c": "1" * 32}.items()
        )
    )
    untested = make_run(tmp_path / "d", 3, epochs=1)
    write_log(untested, [row | {"data": data} for row in reported.rows(0, 1)])
    (untested / "result.json").unlink()
    apart = [(f"{words} {'1' * 12}", ["a", "c"]), (f"{words} {'2' * 12}", ["b"])]
    assert in_groups(first, second, third) == apart
    # one that is not tested yet is of the group that it is like, if there is but one
    ((_, together),) = in_groups(first, third, untested)
    assert together == ["a", "c", "d"]
    assert in_groups(first, second, third, untested) == [
        *apart, (f"{words} not tested yet", ["d"]),
    ]  # fmt: skip


def test_figures_are_quoted_for_data_that_bears_the_name_alone(tmp_path):
    given = dict(dataset="omniglot", ways=20, method="protonet")
    folder = make_run(tmp_path / "run", epochs=1, **given)
    assert published(grouped(read([folder]))) == ""  # of data that are not its
    write_log(folder, [row | {"data": "omniglot"} for row in reported.rows(0, 1)])
    words = published(grouped(read([folder])))
    rows = [words.index(figure) for figure in ("97.65 ± 0.05 %", "91.27 ± 1.07 %", "96.0 %")]
    assert rows == sorted(rows) and words.count("omniglot 20-way 1-shot") == 3
    assert "Snell et al. 2017" in words and "quoted, not measured here" in words


@pytest.mark.parametrize(
    "given, row",
    [
        (dict(preset="finn-2017", method="maml"), "maml-original, mini 5-way 1-shot"),
        (dict(steps=2), "maml++-2-steps, mini 5-way 1-shot"),
        (dict(method="matching", context=3), "matching-context, mini 5-way 1-shot"),
    ],
)
def test_the_figure_quoted_is_of_what_was_trained(given, row, tmp_path):
    folder = make_run(tmp_path / "run", epochs=1, **{"dataset": "mini", "ways": 5} | given)
    write_log(folder, [entry | {"data": "mini"} for entry in reported.rows(0, 1)])
    words = published(grouped(read([folder])))
    assert words.count("mini 5-way 1-shot") == 3 and words.count(row) == 1


def test_names_that_runs_share_have_the_folders_above(tmp_path):
    folders = [make_run(tmp_path / place / "run", seed=0) for place in ("x", "y")]
    assert [run.name for run in read(folders)] == ["x/run", "y/run"]
    (group,) = grouped(read(folders))
    assert [group.label(run) for run in group.runs] == ["x/run", "y/run"]


def test_a_run_that_is_trained_on_is_apart_while_it_is(tmp_path):
    straight, longer = (make_run(tmp_path / name, n, epochs=4) for n, name in enumerate("ab"))
    (longer / "result.json").unlink()
    entries = [
        row | ({"earlier_epochs": [2]} if row["epoch"] > 2 else {}) for row in reported.rows(1, 3)
    ]
    write_log(longer, entries)
    assert in_groups(straight, longer) == [
        ("schedule from the beginning", ["a"]), ("schedule trained on after 2 epochs", ["b"]),
    ]  # fmt: skip
    assert in_groups(straight) == [("maml++, 2-way 1-shot", ["a"])]


def test_other_weights_at_one_place_are_apart(tmp_path):
    runs = [make_run(tmp_path / name, n, epochs=1, init="/x/run") for n, name in enumerate("abc")]
    for run, weights in zip(runs, ("1" * 32, "2" * 32, None), strict=True):
        origin = weights and {"weights": weights}
        (run / "result.json").write_text(json.dumps(reported.result(0, 1) | {"origin": origin}))
    assert in_groups(*runs) == [
        (f"initial weights of run ({'1' * 12})", ["a"]),
        (f"initial weights of run ({'2' * 12})", ["b"]),
        ("initial weights of run (not known)", ["c"]),
    ]
    assert len(in_groups(runs[0], runs[2])) == 1
