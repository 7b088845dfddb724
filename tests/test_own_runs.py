"""A run of engine.fit, of a network of its script: each command says that it cannot build it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import engine
from engine import FewShotClassifier, Learner, Tasks, adapt, evaluate, predict, train
from engine.errors import UserError
from engine.runs import checkpoint
from tests.tiny import flags, one_line


class Own(nn.Sequential):
    pass


def fitted(images, run, module) -> Learner:
    torch.manual_seed(0)
    task = {"ways": 3, "shots": 1, "targets": 2, "image_size": 16, "tasks": 2}
    parts = {part: Tasks(images, part=part, **task) for part in ("train", "val")}
    learner = Learner(module, steps=2, rate=0.4)
    options = {"epochs": 1, "iterations": 2, "eval_tasks": 4, "ensemble": 1}
    engine.fit(learner, parts["train"], val=parts["val"], run=run, **options)
    return learner


@pytest.fixture(scope="module")
def run(images):
    folder = images.parent / "own"
    fitted(images, folder, Own(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)))
    return folder


WORDS = (
    "(Own) of a script's own, that engine.fit trained",
    "give the learner and this run folder to engine.fit there",
    "then call learner.adapt(x, y) or learner.evaluate(tasks)",
)


@pytest.mark.parametrize("name", ["", "latest.pt", "epoch-0001.pt"])
def test_every_command_says_so(images, run, name, tmp_path, capsys):
    source = run / name
    support = images / "test"
    for main, argv in (
        (evaluate.main, [source, "--data", images]),
        (adapt.main, [source, support, "-o", tmp_path / "pets.pt"]),
        (predict.main, [source, "--support", support, support / "test0" / "0.png"]),
        (train.main, flags(images, tmp_path / "new", "--init", source)),
    ):
        capsys.readouterr()
        assert main(list(map(str, argv))) == 2
        one_line(capsys.readouterr().err, str(source), *WORDS)
    assert not (tmp_path / "new").exists() and not (tmp_path / "pets.pt").exists()
    for read in (FewShotClassifier.load, lambda path: FewShotClassifier(path).fit([], [])):
        with pytest.raises(UserError) as caught:
            read(source)
        assert all(word in str(caught.value) for word in WORDS)


def test_a_training_does_not_go_on_in_it(images, run, capsys):
    before = (run / "latest.pt").read_bytes()
    assert train.main(flags(images, run)) == 2
    one_line(capsys.readouterr().err, f"{run} was trained on own", "give another --run")
    assert (run / "latest.pt").read_bytes() == before


def test_the_engines_own_network_given_to_fit_is_a_scripts_own_too(images, tmp_path):
    fitted(images, tmp_path / "run", engine.Backbone(3, 16, 3, 2, 4))
    assert checkpoint.load(tmp_path / "run" / "latest.pt").own_network == "Backbone"
    with pytest.raises(UserError, match="a network .Backbone. of a script's own"):
        FewShotClassifier.load(tmp_path / "run")


def test_what_the_line_says_is_true(images, run):
    """The same call again loads the best epoch, and the learner adapts and is evaluated."""
    learner = fitted(images, run, Own(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)))
    saved = checkpoint.load(run / "epoch-0001.pt")
    assert torch.equal(learner.params().theta, saved.state["params"]["theta"])
    test = Tasks(images, part="test", ways=3, shots=1, targets=2, image_size=16, length=2)
    (x, y, new, _) = (field[0] for field in vars(test.episode(0)).values())
    assert learner.adapt(x, y)(new).shape == (6, 3)
    assert 0 < learner.evaluate(test).accuracy <= 1
