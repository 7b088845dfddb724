"""The examples, at small size."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from engine import FewShotClassifier
from engine.errors import UserError
from engine.examples import ddp, own_folder, own_loop, own_network, sinusoid, text
from tests.tiny import FLAGS, RATE, make_images, one_line

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sine_waves_are_learned():
    learner, last = sinusoid.train(200)
    found = sinusoid.errors(learner, steps=5, tasks=100)
    assert len(found) == 6 and found[5] < 0.75 * found[0]
    assert last < 4


def test_an_own_network_trains_on_own_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMLPP_CACHE", str(tmp_path / "cache"))
    folder = make_images(tmp_path / "tiny")
    accuracy = own_network.main(str(folder), 50, width=4)
    out = capsys.readouterr().out
    assert "iteration 50: loss" in out and "test: " in out and 25 < accuracy <= 100


def test_a_transformer_learns_to_judge_new_languages(capsys):
    assert 40 < text.main(8) <= 100
    assert "iteration 8: loss" in capsys.readouterr().out


def test_a_folder_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MAMLPP_CACHE", str(tmp_path / "cache"))
    folder, run = make_images(tmp_path / "tiny"), tmp_path / "run"
    new = tmp_path / "new"
    for part, images in (("support", (0, 1)), ("asked", (2, 3, 4, 5))):
        for c in range(3):
            (new / part / f"test{c}").mkdir(parents=True)
            for n in images:
                name = f"test{c}/{n}.png"
                shutil.copy(folder / "test" / name, new / part / name)
    (new / "asked" / ".DS_Store").write_bytes(b"no picture")
    monkeypatch.setattr(own_folder, "RUN", tmp_path / "usual")
    flags = *FLAGS[2:], *RATE, "--iterations", "12", "--run", str(run)
    arguments = folder, new / "support", new / "asked", *flags
    assert own_folder.main(*arguments, "--show") == {} and not run.exists()
    capsys.readouterr()
    answers = own_folder.main(*arguments)
    paths = [str(path) for path in sorted((new / "asked").glob("*/*.png"))]
    assert sorted(answers) == paths and len(paths) == 12
    assert not (tmp_path / "usual").exists()
    expected = FewShotClassifier(run).fit_folder(new / "support").predict([*answers])
    assert list(answers.values()) == expected.tolist()
    assert sum(Path(path).parent.name == answer for path, answer in answers.items()) > 4
    out = capsys.readouterr().out
    assert "learned test0, test1, test2" in out
    assert f"{paths[0]}: {answers[paths[0]]} (" in out
    for asked, more, words in [
        (new / "asked", ["--ways", "2"], "support has 3 classes, and --ways is 2: give --ways 3"),
        (new / "none", [], "cannot read .*none"),
    ]:
        with pytest.raises(UserError, match=words):
            own_folder.main(*arguments[:2], asked, *flags, *more, "--run", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit) as stopped:
        own_folder.main(tmp_path / "nowhere", *arguments[1:])
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_rates_are_learned_in_an_own_loop(capsys):
    accuracy, lslr = own_loop.main(50)
    assert 60 < accuracy <= 100
    assert lslr.names == ("0.weight", "4.weight", "8.weight", "8.bias")
    assert lslr.rates.shape == (3, 4) and (lslr.rates != 0.1).all()
    out = capsys.readouterr().out
    assert "iteration 50: loss" in out and "8.bias" in out


@pytest.mark.parametrize("module", [ddp, own_folder, own_loop, own_network, sinusoid, text])
def test_a_script_can_be_asked_for_help(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--help"])
    runpy.run_path(module.__file__, run_name="__main__")
    assert capsys.readouterr().out == module.__doc__


@pytest.mark.parametrize(
    ("module", "argv", "words"),
    [
        (own_loop, ["0"], "iterations is '0': give a whole number >= 1"),
        (sinusoid, ["-3"], "iterations is '-3': give a whole number >= 1"),
        (text, ["ten"], "iterations is 'ten': give a whole number >= 1"),
        (text, ["1", "2"], "'2' is one argument too many: see --help"),
        (ddp, ["1"], "start it by torchrun, as --help shows"),
        (own_network, [], "FOLDER is missing: see --help"),
        (own_network, ["none-such"], "none-such does not exist"),
        (own_network, ["none-such", "0"], "iterations is '0'"),
        (own_folder, ["a", "b"], "PICTURES is missing: see --help"),
    ],
)
def test_a_mistake_in_a_script_s_arguments_is_one_line(module, argv, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", *argv])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(module.__file__, run_name="__main__")
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    one_line(err, words)
