"""A table that was trained is kept: its page as it is, its data without this machine's paths; its
finished runs are unpacked elsewhere, where the rest is trained."""

import json

from bench import published, report, results
from engine import table
from engine.tables import page
from tests.test_table import SHORT, argv


def test_a_table_is_kept_without_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "kept")
    folder = tmp_path / "figure1"
    settings = {"preset": "maml", "data": str(tmp_path), "run": str(folder / "one")}
    data = {"table": "figure1", "given": {"data": str(tmp_path), "tasks": 2}, "plan": None}
    run = {"folder": "one", "settings": settings, "result": None}
    data["rows"] = [{"row": "maml", "runs": [run]}]
    results.save(data, folder / page.DATA)
    (folder / page.PAGE).write_text("# A table\n\n| a |\n| - |\n\nnotes\n")
    assert published.main([str(folder)]) == 0
    kept = results.load(published.FOLDER / "figure1.json")
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["table"]["given"] == {"tasks": 2}
    assert kept["table"]["rows"][0]["runs"][0]["settings"] == {"preset": "maml"}
    text = published.text(kept)
    assert text.startswith("### A table\n") and text.endswith("| a |\n| - |\n\nnotes\n")
    assert f"commit {results.commit('HEAD')[:8]}" in text


def test_elsewhere_the_finished_runs_of_a_kept_table_are_passed_by(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "kept")
    here, there = tmp_path / "here", tmp_path / "there"
    rows = ["--rows", "maml++-1-step"]
    assert table.main(argv(images, here, *SHORT, *rows, "--seeds", "1")) == 0
    assert published.main([str(here)]) == 0
    first = results.load(here / "maml++-1-step_5w1s_seed-0" / "result.json")

    assert published.main(["--unpack", "mini", str(there)]) == 0
    capsys.readouterr()
    assert table.main(argv(images, there, *SHORT, *rows, "--seeds", "2")) == 0
    out = capsys.readouterr().out
    assert "run 1 of 2: maml++-1-step_5w1s_seed-0, already finished" in out
    assert results.load(there / "maml++-1-step_5w1s_seed-0" / "result.json") == first

    monkeypatch.setattr(results, "commit", lambda name: "another commit")
    assert published.main([str(there)]) == 0
    (row,) = (
        r
        for r in results.load(published.FOLDER / "mini.json")["table"]["rows"]
        if r["row"] == "maml++-1-step"
    )
    assert [run["machine"]["commit"] == "another commit" for run in row["runs"]] == [False, True]
    assert "commit another " in published.text(results.load(published.FOLDER / "mini.json"))

    capsys.readouterr()
    assert published.main(["--unpack", "mini", str(there)]) == 2
    assert "has maml++-1-step_5w1s_seed-0" in capsys.readouterr().err
    assert published.main(["--unpack", "figure1", str(there)]) == 2
    assert "--unpack is figure1: no such table is kept; there is mini" in capsys.readouterr().err


def test_of_no_table_nothing_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "kept")
    assert published.main([str(tmp_path)]) == 2
    assert "holds no table.json: give the folder of a table" in capsys.readouterr().err
    assert not published.FOLDER.exists()


def test_the_readme_has_a_place_for_them():
    readme = report.README.read_text(encoding="utf-8")
    assert all(f"<!-- {mark} -->" in readme for mark in report.KEPT)
