"""The report: what its figures hold is what the log says, and what is not there is told."""

import html.parser
import json
import math
import statistics
import time
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.report import __main__ as command
from engine.report import epochs, figures, page
from engine.report.confusion import confusion
from engine.report.groups import grouped
from engine.report.recorded import read
from engine.report.sections import lowest, summary
from tests import reported
from tests.reported import ITERATIONS, LAYERS, STEPS, make_run, train_row, validation_row, write_log

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
        "<b>60.00 ± 10.00 %</b>", "<b>70.00 ± 10.00 %</b>", "batch statistics, transductive",
    ):  # fmt: skip
        assert part in words, part


@pytest.mark.parametrize("protocol", ["transductive", None])  # as older versions have it, and now
def test_running_statistics_have_no_protocol(tmp_path, protocol):
    folder = make_run(tmp_path / "run", norm_statistics="running")
    result = json.loads((folder / "result.json").read_text())
    result |= {"protocol": protocol, "norm_statistics": "running"}
    (folder / "result.json").write_text(json.dumps(result))
    assert "5 inner steps, running statistics. ±" in summary(grouped(read([folder])))


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
