"""A table that was trained is kept: its page as it is, its data without this machine's paths."""

import json

from bench import published, report, results
from engine.tables import page


def test_a_table_is_kept_without_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "kept")
    folder = tmp_path / "figure1"
    settings = {"preset": "maml", "data": str(tmp_path), "run": str(folder / "one")}
    data = {"table": "figure1", "given": {"data": str(tmp_path), "tasks": 2}, "plan": None}
    data["rows"] = [{"row": "maml", "runs": [{"folder": "one", "settings": settings}]}]
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


def test_of_no_table_nothing_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "kept")
    assert published.main([str(tmp_path)]) == 2
    assert "holds no table.json: give the folder of a table" in capsys.readouterr().err
    assert not published.FOLDER.exists()


def test_the_readme_has_a_place_for_them():
    readme = report.README.read_text(encoding="utf-8")
    assert all(f"<!-- {mark} -->" in readme for mark in report.KEPT)
