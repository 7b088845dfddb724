"""Networks that come with the package: their names serve wherever a run does."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from bench import results, training
from bench import weights as shipping
from engine import FewShotClassifier, evaluate, predict, train, weights
from engine.config import Config
from engine.runs import checkpoint
from tests.tiny import flags, here, one_line

LARGEST = 2**19  # bytes of one


@pytest.fixture
def tiny(finished, tmp_path, monkeypatch) -> str:
    """The name under which a finished run is shipped."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    weights.FOLDER.mkdir()
    assert shipping.main([str(finished), "tiny"]) == 0
    monkeypatch.chdir(tmp_path)
    return "tiny"


def letter(text: str, rng: np.random.Generator) -> Image.Image:
    """In black, of some size, at some angle, somewhere about the middle."""
    image = Image.new("L", (105, 105), 255)
    place = tuple(52 + rng.integers(-6, 7, 2))
    font = ImageFont.load_default(float(rng.integers(60, 85)))
    ImageDraw.Draw(image).text(place, text, fill=0, font=font, anchor="mm")
    return image.rotate(rng.uniform(-10, 10), fillcolor=255)


@pytest.mark.parametrize("name", weights.names())
def test_one_is_small_and_what_its_kept_training_found(name):
    path = weights.FOLDER / f"{name}.pt"
    assert path.stat().st_size <= LARGEST
    kept, saved = results.load(training.FOLDER / f"{name}.json"), checkpoint.load(path)
    assert saved.epoch == kept["result"]["best"]["epoch"]
    trained = Config.from_dict(saved.config)
    assert not trained.differences(training.configuration(kept["config"]).to_dict())
    assert saved.data_identity == kept["result"]["identity"]


@pytest.mark.parametrize("name", [n for n in weights.names() if n.startswith("omniglot")])
def test_letters_that_are_drawn_here_are_told_apart(name):
    rng, letters = np.random.default_rng(0), "QRSTU"
    classifier = FewShotClassifier.load(name)
    classifier.fit([letter(c, rng) for c in letters], list(letters))
    asked = list(letters) * 20
    assert classifier.score([letter(c, rng) for c in asked], asked) >= 0.9


def test_it_answers_and_is_tested_as_the_run_is(finished, images, tiny, tmp_path, capsys):
    support, outputs = tmp_path / "support", []
    for c in range(3):
        shutil.copytree(images / "test" / f"test{c}", support / f"test{c}")
    for source in (finished, tiny):
        file = tmp_path / "answers.json"
        assert (
            here(predict, [source, "--support", support, support, "--json", file], capsys)[0] == 0
        )
        outputs.append(json.loads(file.read_text()))
        argv = [source, "--data", images, "--eval-tasks", 4, "--json", tmp_path / "test.json"]
        assert here(evaluate, argv, capsys)[0] == 0
        outputs.append(json.loads((tmp_path / "test.json").read_text())["best"])
    assert outputs[:2] == outputs[2:]


def test_a_training_begins_with_it(images, finished, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    argv = flags(images, run, "--init", tiny, "--epochs", 1, "--iterations", 1)
    code, out, err = here(train, argv, capsys)
    assert code == 0, err
    assert "of tiny, trained on folder:tiny" in out
    shipped = checkpoint.load(weights.FOLDER / "tiny.pt")
    assert not any(t.any() for n in ("first", "second") for t in shipped.state[n].values())
    best = checkpoint.load(finished / f"epoch-{shipped.epoch:04d}.pt")
    for group in ("params", "running"):
        assert all(map(torch.equal, shipped.state[group].values(), best.state[group].values()))


def test_what_lies_there_goes_before_it(finished, tiny, tmp_path, capsys):
    (tmp_path / tiny).mkdir()
    argv = [tiny, "--support", "x", "y.png"]
    code, _, err = here(predict, argv, capsys)
    assert code == 2
    one_line(err, f"{tiny} is no run folder")


def test_a_name_that_is_none_is_told_the_nearest(tiny, capsys):
    code, _, err = here(predict, ["tyny", "--support", "x", "y.png"], capsys)
    assert code == 2
    one_line(err, "no checkpoint at tyny: did you mean tiny? give a run folder, a .pt file")


def test_of_no_run_nothing_is_shipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    assert shipping.main([str(tmp_path / "none"), "none"]) == 2
    assert capsys.readouterr().err.startswith("error: no checkpoint at")
    assert shipping.main([]) == 2 and weights.names() == []
