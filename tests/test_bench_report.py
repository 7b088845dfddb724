"""The benchmark's tables, picture and README say exactly what was measured."""

import xml.etree.ElementTree as ElementTree

import pytest

from bench import report, results, roofline, tables, training
from bench import weights as shipping
from engine import weights

MIB = 2**20


def by_turns(row: dict) -> dict:
    """With two rounds against each of the others."""
    rounds = {name: [taken] * 2 for name, taken in row["seconds"].items() if name != "ours"}
    return row | {"rounds": {"ours": [row["seconds"]["ours"]] * 2 * len(rounds), **rounds}}


def iteration(**changes) -> dict:
    row = {
        "case": "mini 5w1s",
        "algorithm": "MAML++",
        "order": "second",
        "steps": 5,
        "loss": "MSL",
        "tasks": 2,
        "short": True,
        "flops": 400e9,
        "seconds": {"ours": 2.0, "loop": 6.0},
        "memory": {"ours": 512 * MIB, "loop": 2048 * MIB},
        "absent": {},
    }
    return by_turns(row | changes)


def op(name: str, part: str, seconds: float, flops: float, bytes: float) -> dict:
    named = {"op": name, "case": "mini-2", "backend": "plain", "part": part, "shape": "2 × 5"}
    return named | {"seconds": seconds, "flops": flops, "bytes": bytes}


RUN = {
    "command": "pytest bench/ --benchmark-only",
    "date": "2025-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "changed": False,
    "processor": "a processor",
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "kernels": "native, avx512",
    "dense": True,
    "peaks": [
        {"name": "multiply-add", "per_second": 120e9},
        {"name": "matmul", "per_second": 100e9},
        {"name": "copy", "per_second": 20e9},
    ],
    "meta": [
        iteration(products=120e9),
        iteration(
            algorithm="MAML",
            order="first",
            steps=1,
            loss="last",
            tasks=1,
            short=False,
            flops=40e9,
            seconds={"ours": 0.5, "loop": 0.25, "vmap": 1.0},
            memory={"ours": 2**30, "loop": 2**30, "vmap": 2**31},
            absent={"JAX": "the package jax is not installed"},
        ),
    ],
    "modules": [
        {
            "row": "a network, MSL",
            "seconds": {"ours": 0.9, "loop": 1.0},
            "memory": {"ours": 50 * MIB, "loop": 100 * MIB},
            "rounds": {"ours": [0.9, 0.9], "loop": [1.0, 1.0]},
            "absent": {},
        },
        {
            "row": "mini 5w1s, MSL",
            "seconds": {"ours": 1.0, "ours, learner": 1.01},
            "memory": {"ours": 50 * MIB, "ours, learner": 60 * MIB},
            "rounds": {"ours": [1.0, 2.0, 1.0], "ours, learner": [1.01, 2.04, 1.5]},
            "absent": {},
        },
    ],
    "ops": [
        op("conv", "fwd", 1.0, 250e9, 1e9),
        op("conv", "tan", 2.0, 100e9, 1e9),
        op("norm_act", "bwd", 0.5, 1e9, 5e9),
    ],
    "evaluation": [
        iteration(
            tasks=16,
            seconds={"ours": 0.5, "loop": 2.0},
            memory={"ours": 64 * MIB, "loop": 128 * MIB},
        )
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
EMPTY = RUN | {kind: [] for kind in results.KINDS}


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]


def test_tables_say_where_it_was_measured_and_what_is_possible_there():
    text = tables.text(RUN)
    assert "a processor, 2 cores, 2 threads, kernels: native, avx512, torch 2.13.0" in text
    assert "commit 01234567, 2025-01-02" in text
    assert "multiply-adds in registers 120 GFLOP/s, matrix product 100 GFLOP/s" in text
    assert "fastest convolution below 250 GFLOP/s" in text
    assert "copy of memory 20.0 GB/s" in text


def test_tables_say_what_was_measured():
    rows = cells(tables.text(RUN))
    plus = ["mini 5w1s, 2 tasks, MAML++, MSL", "second", "5", "2.000", "6.000", "3.0× (3.0–3.0, 2)"]
    assert plus + ["200 (80 %)", "0.50", "1.000 s (50 %)", "512 MiB", "2,048 MiB", "0.25"] in rows
    plain = ["mini 5w1s, 1 task, MAML, last", "first", "1", "0.500", "0.250", "0.5× (0.5–0.5, 2)"]
    assert plain + ["80 (32 %)", "1.25", "–", "1,024 MiB", "1,024 MiB", "1.00"] in rows
    assert ["conv mini-2", "2 × 5", "plain", "250.0 (100 %)", "–", "50.0 (20 %)"] in rows
    assert ["norm_act mini-2", "2 × 5", "plain", "–", "10.0 (50 %)", "–"] in rows
    evaluation = [
        "mini 5w1s, 16 tasks, 5 steps",
        "32.0",
        "8.0",
        "4.0× (4.0–4.0, 2)",
        "64 MiB",
        "128 MiB",
    ]
    assert evaluation in rows
    assert ["mini 5w1s, 2 tasks", "200", "400", "16,000"] in rows
    assert ["a network, MSL", "0.900", "1.000", "0.90", "50 MiB", "100 MiB", "1/2.00"] in rows
    assert ["mini 5w1s, MSL", "1.000", "1.010", "1.020"] in rows  # of the turns, the median


def test_the_authors_code_is_shown_beside_ours_where_it_ran():
    assert not cells(tables.authors(RUN))[4:]  # in no row
    seconds = {"ours": 2.0, "loop": 6.0, "ours, bf16": 1.0, "authors' code": 15.0}
    row = iteration(seconds=seconds, memory=dict.fromkeys(seconds, 2**29))
    run = RUN | {"meta": [row]}
    found = "2.000 = 7.5× (7.5–7.5, 2)", "1.000 = 15.0×"
    expected = ["mini 5w1s, 2 tasks, MAML++, MSL", "15.000", *found]
    assert cells(tables.authors(run))[-1] == expected
    assert tables.authors(run).startswith("a processor")
    shown = [f"{seconds[name]:.3f} (512)" for name in ("ours", "loop", "authors' code")]
    expected = ["mini 5w1s, 2 tasks, MAML++, MSL, second", *shown]
    iterations = cells(tables.iterations(run))
    assert expected in iterations
    precisions = ["2.000", "–", "1.000 (0.50)"]
    assert ["mini 5w1s, 2 tasks, MAML++, MSL, second", *precisions] in iterations


def test_runs_of_before_there_were_such_rows_are_shown():
    old = {kind: rows for kind, rows in RUN.items() if kind != "modules"}
    assert "a network" in tables.text(RUN) and "a network" not in tables.text(old)


def test_peers_have_a_table_and_the_absent_ones_a_reason():
    text = tables.text(RUN)
    assert ["seconds (peak, MiB)", "ours", "loop", "vmap"] in cells(text)
    name = "mini 5w1s, 1 task, MAML, last, first"
    assert [name, "0.500 (1,024)", "0.250 (1,024)", "1.000 (2,048)"] in cells(text)
    assert "- Left out, JAX: the package jax is not installed\n" in text
    assert "- parallel-metalearn has" not in text
    seconds = {"ours": 1.0, "loop": 1.0, "parallel-metalearn": 1.0}
    row = iteration(seconds=seconds, memory=dict.fromkeys(seconds, 1))
    assert "- parallel-metalearn has one gain" in tables.text(EMPTY | {"meta": [row]})


def test_precisions_have_a_table_of_speed_ups():
    seconds = {"ours": 2.0, "loop": 6.0, "ours, bf16": 1.0}
    row = iteration(seconds=seconds, memory=dict.fromkeys(seconds, 1))
    titles = [section.title for section in tables.sections(EMPTY | {"meta": [row]})]
    assert titles == ["Outer iterations", "Precision of the products"]
    found = cells(tables.text(EMPTY | {"meta": [row]}))
    assert ["s (of fp32 by turns)", "fp32", "bf16x3", "bf16"] in found
    assert any(line[1:] == ["2.000", "–", "1.000 (0.50)"] for line in found)


def test_ratios_are_of_the_rounds_that_both_had():
    row = iteration()
    row["rounds"] = {"ours": [1.0, 1.0, 2.0, 4.0, 3.0], "loop": [3.0, 5.0], "vmap": [8.0, 8.0, 9.0]}
    assert tables.ratio(row, "loop") == (4.0, 3.0, 5.0, 2)
    assert tables.ratio(row, "vmap") == (8 / 3, 2.0, 4.0, 3)
    assert tables.ratio(row, "JAX") is None


def test_a_loop_with_tensors_laid_out_as_ours_is_not_shown():
    seconds = {"ours": 2.0, "loop": 6.0, "vmap": 7.0, "authors' code": 15.0}
    row = iteration(seconds=seconds, memory=dict.fromkeys(seconds, 2**29))
    run = EMPTY | {"meta": [row]}
    del run["dense"]
    text = tables.text(run)
    assert "6.000" not in text and "7.000" not in text and "15.000" in text
    assert ["mini 5w1s, 2 tasks, MAML++, MSL", "second", "5", "2.000", "–", "–"] in [
        line[:6] for line in cells(text)
    ]


def test_a_run_of_few_rows_has_few_tables():
    assert [section.title for section in tables.sections(EMPTY)] == []
    few = EMPTY | {"meta": [iteration()]}
    (section,) = tables.sections(few)
    row = cells(section.short)[2]
    assert row[6:8] == ["200", "–"]  # neither a peak nor a floor without the machine's rates
    assert not section.full and not roofline.picture(few)


def points(svg: str) -> dict[str, tuple[float, float]]:
    """Place of each mark that is a circle, by the beginning of its title."""
    found = {}
    for mark in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle"):
        place = float(mark.get("cx")), float(mark.get("cy"))
        found[mark[0].text.split(":")[0]] = place
    return found


def test_the_picture_has_every_op_at_its_place():
    marks = points(roofline.picture(RUN))
    fwd, tan = marks["conv mini-2 fwd, plain"], marks["conv mini-2 tan, plain"]
    norm = marks["norm_act mini-2 bwd, plain"]
    # 250 and 100 FLOP/byte at 250 and 50 GFLOP/s, 0.2 at 2: right is more, up is faster
    assert fwd[0] > tan[0] > norm[0] and fwd[1] < tan[1] < norm[1]
    decade = (fwd[0] - tan[0]) / 0.39794
    assert tan[0] - norm[0] == pytest.approx(decade * 2.69897, abs=0.5)


def test_report_replaces_what_is_between_the_markers():
    readme = "before\n<!-- benchmark: -->\nold\n<!-- /benchmark -->\nafter\n"
    assert report.shown(readme) == ""
    once = report.with_benchmark(readme, "run.json", RUN)
    assert once.startswith("before\n<!-- benchmark: run.json -->\na processor, 2 cores")
    assert once.endswith("<!-- /benchmark -->\nafter\n") and "old" not in once
    assert report.shown(once) == "run.json"
    assert report.with_benchmark(once, "run.json", RUN) == once


def test_readme_shows_the_short_rows_and_the_others_on_demand():
    readme = report.with_benchmark("<!-- benchmark: -->\n<!-- /benchmark -->", "run.json", RUN)
    first, _, rest = readme.partition("<details><summary>Outer iterations, all rows</summary>")
    assert "1 task, MAML, last" not in first and "2 tasks, MAML++, MSL" in first
    assert "1 task, MAML, last" in rest.partition("</details>")[0]
    assert "<details><summary>Ops</summary>" in rest
    assert "](results/roofline.svg)" in rest


TRAINED = {
    "config": {
        "preset": "maml++",
        "method": "anil",
        "dataset": "mini",
        "ways": 5,
        "shots": 1,
        "epochs": 2,
        "iterations": 500,
        "tasks": 4,
    },
    "curve": [{"accuracy": 0.5}, {"accuracy": 0.625}],
    "result": {
        "data": "mini",
        "targets": 15,
        "tasks": 600,
        "protocol": "transductive",
        "norm_statistics": "batch",
        "best": {"accuracy": 0.6, "interval": 0.01},
        "ensemble": {"accuracy": 0.61, "interval": 0.01, "epochs": [2, 1]},
        "other": {"protocol": "inductive", "accuracy": 0.58, "interval": 0.01},
    },
    "centroid": {"accuracy": 0.31, "interval": 0.02},
}


@pytest.mark.parametrize("name", ["", "run.json"])
def test_report_writes_the_trainings_whether_or_not_a_benchmark_is_shown(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "FRONT", tmp_path / "front.md")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(training, "FOLDER", tmp_path / "training")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(shipping, "README", tmp_path / "weights.md")
    shipping.README.write_text("nothing is shipped")
    results.save(RUN, tmp_path / "run.json")
    results.save(TRAINED, tmp_path / "training" / "mini.json")
    marks = "<!-- training -->\n<!-- /training -->\n"
    marks += f"<!-- benchmark: {name} -->\n<!-- /benchmark -->\n"
    report.README.write_text(marks)
    report.FRONT.write_text("<!-- headline -->\n<!-- /headline -->\n")
    assert report.main([]) == 0
    assert ("a processor, 2 cores" in report.FRONT.read_text()) == bool(name)
    readme = report.README.read_text()
    row = ["mini, 5-way 1-shot", "1,000 × 4", "anil", "50.0 62.5", "31.00 ± 2.00 %"]
    row += ["60.00 ± 1.00 %", "61.00 ± 1.00 %", "58.00 ± 1.00 %"]
    protocol = "64/16/20; 15 targets a class; batch statistics, transductive; 600 tasks"
    assert [*row, f"{protocol}; best of 2 epochs; ensemble of 2"] in cells(readme)
    assert ("a processor" in readme) == bool(name)
    assert (tmp_path / "roofline.svg").exists() == bool(name)


@pytest.mark.parametrize("name", ["", "none.json"])
def test_report_of_a_file_that_is_not_there_changes_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "FRONT", tmp_path / "front.md")
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
        assert report.headline(run) in report.FRONT.read_text(encoding="utf-8")
        picture = (results.FOLDER / report.PICTURE).read_text(encoding="utf-8")
        assert picture == roofline.picture(run)
    assert report.with_kept(readme) == readme
    assert shipping.text() in shipping.README.read_text(encoding="utf-8")
