"""What an iteration of a method counts to beside one of MAML++, and that both are timed."""

import json

import pytest

from bench import methods, results

# Of mini-ImageNet's 5-way 1-shot tasks, by hand: MAML++ is 5·(9·5 + 3·75) = 1,350 passes.
COUNTS = {
    "maml": (9 * 5 * 5 + 3 * 75) / 1350,
    "fomaml": (3 * 5 * 5 + 3 * 75) / 1350,
    "meta-sgd": (9 * 5 + 3 * 75) / 1350,
    "anil": 3 * 80 / 1350,
    "boil": (9 * 5 + 3 * 75) / 1350,
    "protonet": 3 * 80 / 1350,
    "matching": 3 * 80 / 1350,
    "protomaml": (9 * 5 * 5 + 3 * 75 + 3 * 5) / 1350,
    "reptile": 3 * 8 * 10 / 1350,
    "imaml": (3 * 17 * 5 + 6 * 5 * 5 + 3 * 75) / 1350,
    "lstm": 1.2 * (3 * 12 * 5 + 3 * 75) / 1350,
}


@pytest.mark.parametrize("method", [*methods.COUNTS])
def test_a_count_is_of_the_method_as_it_trains(method: str) -> None:
    assert methods.counted(methods.config(method)) == pytest.approx(COUNTS.get(method, 1.0))


def test_a_method_takes_turns_with_maml_plus_plus(tmp_path, monkeypatch, capsys) -> None:
    small = {"image_size": 16, "filters": 4, "targets": 2, "threads": 1}
    whole = methods.config
    monkeypatch.setattr(methods, "config", lambda method: whole(method, **small))
    file = tmp_path / "methods.json"
    assert methods.main(["protonet", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["method"] == "protonet" and row["seconds"] > 0 and row["base"] > 0
    assert row["count"] == pytest.approx(3 * 15 / (5 * (9 * 5 + 3 * 10)))
    assert methods.text(results.load(file)) in capsys.readouterr().out


def test_a_method_without_a_count_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        methods.main(["siamese"])
    assert refused.value.code == 2
    assert "no count of siamese; give some of maml, fomaml" in capsys.readouterr().err
