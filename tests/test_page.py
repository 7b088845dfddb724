"""The report: what its figures hold is what the log says, and what is not there is told."""

import html.parser
import json
import math
import os
import statistics
import time
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.report import __main__ as command
from engine.report import epochs, figures, page
from engine.report.confusion import confusion
from engine.report.groups import grouped
from engine.report.published import published
from engine.report.recorded import read
from engine.report.sections import lowest, settings, summary
from tests import reported
from tests.reported import ITERATIONS, LAYERS, STEPS, make_run, train_row, validation_row, write_log
from tests.tiny import call

SECTIONS = ["summary", "settings", "curves", "rates", "steps", "tasks", "confusion", "cost"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("seeds")
    return [make_run(place / f"seed{seed}", seed) for seed in range(3)]


def one_group(folders):
    (group,) = grouped(read(folders))
    return group


def plain(values: list) -> list:
    return [value for value in values if value is not None]


def test_rates_are_those_of_the_log_at_every_epoch(seeds):
    figure = epochs.rates(one_group(seeds))
    assert [trace["name"] for trace in figure.data] == ["seed 0", "seed 1", "seed 2"]
    assert figure.best == [("seed 0", 5), ("seed 1", 10), ("seed 2", 15)]
    assert figure.epochs == 20
    for seed, (trace, frames) in enumerate(zip(figure.data, figure.frames, strict=True)):
        for epoch, y in enumerate(frames, 1):
            expected = [
                reported.rate(seed, epoch, layer, step)
                for layer in range(len(LAYERS))
                for step in range(STEPS)
            ]
            assert plain(y) == pytest.approx(expected, rel=1e-5)
        assert trace["y"] == frames[5 * (seed + 1) - 1]
        labels = [entry for entry in trace["customdata"] if entry is not None]
        assert labels == [(name, step) for name in LAYERS for step in range(1, STEPS + 1)]
        assert len(trace["x"]) == len(trace["y"]) == len(LAYERS) * (STEPS + 1) - 1
    assert len({trace["line"]["color"] for trace in figure.data}) == 3
    low, high = figure.layout["yaxis"]["range"]
    assert low < -0.09 and high > 0.09 and figure.layout["yaxis"]["zeroline"]


def test_a_layer_has_its_room_and_its_steps_stand_in_order(seeds):
    (trace, *_) = epochs.rates(one_group(seeds)).data
    at = 0
    for layer in range(len(LAYERS)):
        x = trace["x"][at : at + STEPS]
        assert x == sorted(x) and layer - 0.5 < x[0] and x[-1] < layer + 0.5
        at += STEPS + 1  # a gap between two layers


def test_accuracy_by_step_is_that_of_the_log(seeds):
    figure = epochs.by_step(grouped(read(seeds)))
    for seed, (trace, frames) in enumerate(zip(figure.data, figure.frames, strict=True)):
        assert trace["x"] == [1, 2, 3, 4, 5]
        for epoch, y in enumerate(frames, 1):
            assert y == pytest.approx([0.2 + 0.1 * k + epoch / 1000 for k in range(STEPS)])
        assert trace["y"] == frames[5 * (seed + 1) - 1]


def test_curves_are_the_log_with_mean_and_deviation_over_seeds(seeds):
    groups = grouped(read(seeds))
    for figure, value in ((figures.loss(groups), reported.loss),
                          (figures.validation(groups), reported.accuracy)):  # fmt: skip
        runs, (band, mean) = figure.data[:3], figure.data[3:5]
        every = [[value(seed, epoch) for epoch in range(1, 21)] for seed in range(3)]
        for trace, expected in zip(runs, every, strict=True):
            assert trace["x"] == [*range(1, 21)]
            assert trace["y"] == pytest.approx(expected, rel=1e-5)
        of_epochs = [*zip(*every, strict=True)]
        assert mean["y"] == pytest.approx([*map(statistics.fmean, of_epochs)], rel=1e-5)
        deviation = [*map(statistics.stdev, of_epochs)]
        assert mean["customdata"] == pytest.approx(deviation, rel=1e-4)
        assert len(band["y"]) == 40
        assert band["y"][0] - mean["y"][0] == pytest.approx(deviation[0], rel=1e-3)
        assert mean["y"][0] - band["y"][-1] == pytest.approx(deviation[0], rel=1e-3)
    stars = figures.validation(groups).data[5:]
    assert [star["x"] for star in stars] == [[5], [10], [15]]
    assert [star["y"] for star in stars] == [[0.9]] * 3


def test_seconds_and_memory_are_those_of_the_log(seeds):
    groups = grouped(read(seeds))
    assert figures.seconds(groups).data[0]["y"][:2] == [0.251, 0.252]
    assert figures.memory(groups).data[0]["y"] == [300.0] * 20
    (run, *_) = groups[0].runs
    assert run.hours == pytest.approx(20 * ITERATIONS * 0.25 / 3600)


def test_a_seed_that_went_wrong_is_seen_and_not_averaged_away(seeds, tmp_path):
    wrong = make_run(tmp_path / "wrong", 3)
    entries = reported.rows(3, 7)
    entries[11]["train_loss"], entries[14]["train_loss"] = math.nan, 1e9
    write_log(wrong, entries)
    (wrong / "result.json").unlink()
    figure = figures.loss(grouped(read([*seeds, wrong])))
    trace, mean = figure.data[3], figure.data[5]
    assert trace["y"][3] is None and trace["y"][4] == 1e9 and len(trace["y"]) == 7
    assert mean["x"] == [1, 2, 3, 5, 6, 7]
    json.dumps(figure.to_dict(), allow_nan=False)
    rates = epochs.rates(one_group([*seeds, wrong]))
    assert [len(frames) for frames in rates.frames] == [20, 20, 20, 7]


def test_iterations_after_the_last_validation_are_drawn(tmp_path):
    folder = make_run(tmp_path / "run")
    later = [train_row(3, 25, 0.7), train_row(3, 28, 0.6, early=True), train_row(3, 30, 0.5)]
    write_log(folder, reported.rows(0, 2) + later)
    (trace,) = figures.loss(grouped(read([folder]))).data
    assert trace["x"] == [1, 2, 2.5, 3]
    assert trace["y"] == pytest.approx([reported.loss(0, 1), reported.loss(0, 2), 0.7, 0.5])


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
    group = one_group(folders)
    assert [group.label(run) for run in group.runs] == ["x/run", "y/run"]


def test_confusion_counts_only_tasks_with_both_classes(seeds):
    (heatmap,) = confusion(one_group(seeds[:2])).data
    assert heatmap["x"] == heatmap["y"] == ["a", "b", "c"]
    # of two runs: each class shown in 3, 2 and 1 tasks of three targets, a and b twice together
    assert heatmap["customdata"] == [
        [[14, 18], [2, 12], [2, 6]],
        [[4, 12], [8, 12], [0, 0]],
        [[6, 6], [0, 0], [0, 6]],
    ]
    assert heatmap["z"] == [
        [pytest.approx(14 / 18, rel=1e-5), pytest.approx(1 / 6, rel=1e-5), pytest.approx(1 / 3)],
        [pytest.approx(1 / 3, rel=1e-5), pytest.approx(2 / 3, rel=1e-5), None],
        [1.0, None, 0.0],
    ]


def test_classes_too_many_for_a_matrix_have_a_list(tmp_path):
    folder = make_run(tmp_path / "many")
    details = reported.details(["a", "b", "c"])
    details["best"]["confusion"] = None
    (folder / "details.json").write_text(json.dumps(details))
    group = one_group([folder])
    assert confusion(group) is None
    words = lowest(group)
    assert "3 classes are too many" in words and words.index(">b<") < words.index(">a<")
    assert "66.7 %" in words and ">c<" not in words  # of too few images


def test_the_summary_has_scores_protocols_and_what_they_cost(seeds):
    words = summary(grouped(read(seeds)))
    for part in (
        "50.00 ± 2.00 %", "60.00 ± 1.00 %", "40.00 ± 3.00 %", ">best, inductive<", "20 of 20",
        "90.00 ± 1.00 %<br><small>epoch 5, 60 tasks", "0.270", "300 MiB", "mean of 3",
        "<b>60.00 ± 10.00 %</b>", "<b>70.00 ± 10.00 %</b>", "transductive, batch statistics",
    ):  # fmt: skip
        assert part in words, part


class Outline(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.scripts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def ids(self, tag: str) -> list[str]:
        return [given["id"] for name, given in self.tags if name == tag and "id" in given]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory) -> Path:
    """Three seeds of a hundred epochs, made by the command."""
    pytest.importorskip("plotly")
    place = tmp_path_factory.mktemp("hundred")
    runs = [make_run(place / f"seed{seed}", seed, 100) for seed in range(3)]
    file, began = place / "page.html", time.monotonic()
    assert command.main([*map(str, runs), "-o", str(file)]) == 0
    assert time.monotonic() - began < 5
    return file


def test_the_page_is_small_and_has_every_section_and_chart(hundred):
    assert hundred.stat().st_size < 8e6
    outline = Outline(hundred.read_text())
    assert outline.ids("section") == SECTIONS
    charts = json.loads(outline.scripts[0])
    assert outline.ids("div") == [f"chart-{n}" for n in range(len(charts))]
    assert len(charts) == 7
    assert [n for n, chart in enumerate(charts) if chart["frames"]] == [2, 3]
    assert outline.ids("input") == ["slider-2", "slider-3"]
    given = [a for tag, a in outline.tags if tag in ("script", "link", "img", "iframe")]
    outside = [a for a in given if not a.get("src", "data:").startswith("data:") or "href" in a]
    assert outside == []


def test_plotly_knows_every_attribute_of_the_figures(seeds):
    objects = pytest.importorskip("plotly.graph_objects")
    groups = grouped(read(seeds))
    for figure in (
        figures.loss(groups), figures.validation(groups), figures.seconds(groups),
        figures.memory(groups), epochs.rates(groups[0]), epochs.by_step(groups),
        confusion(groups[0]),
    ):  # fmt: skip
        objects.Figure(figure.data, figure.layout)


HOSTILE = "</script><img src=x onerror=hit()>\x1b[2J", "<a href='javascript:hit()'>b", "%{x} & \"'"


def test_names_of_a_data_set_stay_names(tmp_path):
    pytest.importorskip("plotly")
    run = read([make_run(tmp_path / "<b>&run", classes=HOSTILE)])
    entries = [row | {"data": f"folder:{HOSTILE[0]}"} for row in reported.rows(0, 2)]
    rates = {f"{name}{HOSTILE[1]}": [0.1] for name in LAYERS}
    write_log(run[0].folder, [row | {"rates": rates} for row in entries])
    made = page.document(read([run[0].folder]))
    plain = page.document(read([make_run(tmp_path / "plain")]))
    assert [tag for tag, _ in Outline(made).tags] == [tag for tag, _ in Outline(plain).tags]
    assert "&lt;/script&gt;&lt;img src=x onerror=hit()&gt;\\x1b[2J" in made
    assert "\x1b" not in made and "<b>&run" not in made


def test_what_a_log_of_an_older_version_has_not_is_told(tmp_path):
    pytest.importorskip("plotly")
    folder = make_run(tmp_path / "old")
    later = "rates", "step_accuracy", "step_tasks", "peak_memory", "iterations"
    entries = [{k: v for k, v in r.items() if k not in later} for r in reported.rows(0, 3)]
    write_log(folder, entries)
    (folder / "details.json").unlink()
    (run,) = read([folder])
    assert run.hours == pytest.approx(3 * ITERATIONS * 0.25 / 3600)
    made = page.document([run])
    for words in ("has no rates: an older version", "nothing by step", "has no memory: an older",
                  "remove result.json and give the command"):  # fmt: skip
        assert words in made
    assert Outline(made).ids("section") == SECTIONS


def test_a_run_before_its_first_validation_has_a_page(tmp_path):
    pytest.importorskip("plotly")
    folder = make_run(tmp_path / "young")
    write_log(folder, [train_row(1, 5, 1.25)], rest='{"kind": "train", "data": "ma')
    for name in ("result.json", "details.json"):
        (folder / name).unlink()
    made = page.document(read([folder]))
    assert "No epoch is validated yet" in made and "No run is tested yet" in made
    assert "0 of 20<br><small>stopped" in made and "nan" not in made.partition("<script")[0]


def test_a_run_whose_metric_is_a_loss(tmp_path):
    pytest.importorskip("plotly")
    folder = make_run(tmp_path / "loss")
    entries = []
    for epoch in (1, 2):
        row = validation_row(0, epoch, 2)
        row["validation_loss"], row["step_loss"] = 0.5 / epoch, row.pop("step_accuracy")
        del row["accuracy"]
        entries.append(row)
    write_log(folder, entries)
    result = reported.result(0, 2) | {"metric": "loss"}
    for model in ("best", "ensemble"):
        result[model]["loss"] = result[model].pop("accuracy")
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "details.json").unlink()
    run = read([folder])
    made = page.document(run)
    assert (
        "0.2500 ± 0.0100" in made and "0.5000 ± 0.0200" in made and "<h2>Loss by inner step" in made
    )
    assert figures.validation(grouped(run)).data[0]["y"] == [0.5, 0.25]
    write_log(folder, [row | {"data": "waves"} for row in entries])  # as engine.fit
    (group,) = grouped(read([folder]))
    assert group.name == "maml++" and not {"ways", "filters"} & group.settings.keys()
    with pytest.raises(UserError, match="different metrics"):
        read([folder, make_run(tmp_path / "accuracy")])


WRONG = {
    "nothing there": (lambda run: run.rename(run.with_name("moved")), "no run at"),
    "a file": (lambda run: (run.rename(run.with_name("m")), run.write_text("x")), "no run folder"),
    "no log": (lambda run: (run / "log.jsonl").unlink(), "has no log.jsonl"),
    "no configuration": (lambda run: (run / "config.json").unlink(), "has no config.json"),
    "an empty log": (lambda run: (run / "log.jsonl").write_text(""), "no whole row yet"),
    "a first row half written": (
        lambda run: (run / "log.jsonl").write_text('{"kind": "tr'), "no whole row yet"
    ),
    "a wrong row": (
        lambda run: (run / "log.jsonl").write_text('{"kind": "train"}\n{}\n'), "line 1 is no row"
    ),
    "two metrics": (
        lambda run: write_log(run, [
            validation_row(0, 1, 1), validation_row(0, 2, 1, validation_loss=0.5)
        ]), "rows of two metrics"
    ),
    "another metric": (
        lambda run: (run / "result.json").write_text(json.dumps(
            reported.result(0, 1) | {"metric": "loss", **dict.fromkeys(
                ("best", "ensemble"), {"loss": 1.0, "interval": 0.1, "epoch": 1, "epochs": [1]}
            )}
        )), "another metric"
    ),
    "a number that no format holds": (
        lambda run: write_log(run, [train_row(1, 5, 10**400)]), "line 1 is no row"
    ),
    "a loss that no network has": (
        lambda run: write_log(run, [train_row(1, 5, 1e200)]), "line 1 is no row"
    ),
    "an epoch that never was": (
        lambda run: write_log(run, [validation_row(0, 10**7, 1)]), "line 1 is no row"
    ),
    "no text": (lambda run: (run / "log.jsonl").write_bytes(b"\xff\x00\n"), "line 1 is no row"),
    "rates that are none": (
        lambda run: write_log(run, [validation_row(0, 1, 1, rates={"a": ["b"]})]), "line 1 is no"
    ),
    "half a configuration": (lambda run: (run / "config.json").write_text("{"), "is damaged"),
    "a configuration of another": (
        lambda run: (run / "config.json").write_text("[]"), "none of a run"
    ),
    "a newer configuration": (
        lambda run: (run / "config.json").write_text('{"mind": 1}'), "does not know: mind"
    ),
    "half a result": (lambda run: (run / "result.json").write_text("{"), "is damaged"),
    "a result of another": (lambda run: (run / "result.json").write_text("[]"), "none of a run"),
    "details of another": (
        lambda run: (run / "details.json").write_text('{"classes": 3}'), "none of a run"
    ),
    "a picture that is a script": (
        lambda run: (run / "details.json").write_text(
            (run / "details.json").read_text().replace("data:image/png", "javascript:x//")
        ),
        "none of a run",
    ),
    "a pipe": (lambda run: ((run / "log.jsonl").unlink(), os.mkfifo(run / "log.jsonl")), "no reg"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_run_is_told_in_a_line(fault, tmp_path, capsys):
    run = make_run(tmp_path / "run", epochs=2)
    spoil, words = WRONG[fault]
    spoil(run)
    assert command.main([str(run), "-o", str(tmp_path / "page.html")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert not (tmp_path / "page.html").exists()


def test_mistakes_of_the_command_line(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", epochs=2)
    own = tmp_path / "run" / "report.html"
    own.write_text("mine")
    monkeypatch.setattr("engine.report.browser.NAMES", ("no-such-browser",))
    for argv, words in (
        ([], "required: RUN"),
        ([run, run], "given twice"),
        ([run, tmp_path / "x" / ".." / "run"], "given twice"),
        ([run, "-o", tmp_path / "page.txt"], "ends in .html"),
        ([run, "-o", tmp_path / "none" / "page.html"], "cannot write"),
        ([run, "--pdf", tmp_path / "page.html"], "ends in .pdf"),
        ([run, "--pdf", tmp_path / "page.pdf"], "--pdf needs Chromium or Chrome"),
        ([run], "is there and not a report"),
    ):
        assert command.main([*map(str, argv)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    assert own.read_text() == "mine"


def test_a_page_is_made_without_torch():
    code = "import sys, engine.report.__main__; assert not {'torch', 'plotly'} & sys.modules.keys()"
    assert call("timeit", "-n1", "-r1", code)[0] == 0


def lost(name: str) -> str:
    raise page.metadata.PackageNotFoundError(name)


def test_without_plotly_there_is_a_line(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", epochs=2)
    for version, words in (
        (lost, "is not installed"),
        (lambda name: "5.24.1", "5.24.1 is too old"),
    ):
        monkeypatch.setattr(page.metadata, "version", version)
        assert command.main([str(run)]) == 2
        assert capsys.readouterr().err == f"error: plotly {words}: pip install 'plotly>=6'\n"
        assert not (run / "report.html").exists()
