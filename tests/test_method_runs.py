"""A whole run of each method: stopped and continued, evaluated, adapted to pictures of one's own."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

from engine import FewShotClassifier, evaluate, train, unroll
from engine.config import Config
from engine.data.pictures import prepared
from engine.episodes import Episode
from engine.methods import METHODS
from engine.models import network
from engine.runs.interrupt import Stopped
from engine.runs.learned import learned_from
from engine.runtime.ranks import Alone
from engine.settings import resolve
from engine.show import parameters, settings
from tests.tiny import flags, one_line, same

NAMES = [name for name in METHODS if name != "maml++"]


@pytest.fixture(scope="module", params=NAMES)
def run(request, images):
    """The method, the folder of its run, and how it was trained."""
    folder = images.parent / request.param
    argv = flags(images, folder, "--method", request.param, "--epochs", 2, "--inner-rate", 0.05)
    assert train.main(argv) == 0
    return request.param, folder, argv


def test_a_run_that_was_stopped_is_bit_for_bit_the_uninterrupted_one(run, images, monkeypatch):
    name, straight, argv = run
    folder = images.parent / f"{name}-stopped"
    argv, checks = [*argv, "--run", str(folder)], []

    def stop(*arguments) -> None:
        checks.append(arguments)
        if len(checks) == 3:
            raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Alone, "check", stop)
        assert train.main(argv) == 143
    assert torch.load(folder / "latest.pt", weights_only=True)["state"]["iteration"] == 3
    assert train.main(argv) == 0
    for path in straight.glob("*.pt"):
        a, b = (torch.load(f / path.name, weights_only=True) for f in (straight, folder))
        assert same(a["state"], b["state"]) and same(a["rng"], b["rng"])
        assert a["config"]["method"] == name
    results = [json.loads((f / "result.json").read_text()) for f in (straight, folder)]
    assert results[0] == results[1] and results[0]["method"] == name


def test_a_run_of_one_method_is_not_continued_by_another(run, capfd):
    name, _, argv = run
    other = "boil" if name == "anil" else "anil"
    assert train.main([*argv, "--method", other]) == 2
    one_line(capfd.readouterr().err, f"method: {name} -> {other}")


def test_the_log_has_the_rates_of_each_tensor(run):
    name, folder, argv = run
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]["rates"]
    cfg = Config.resolve(argv)
    assert [*last] == [*network(cfg).shapes]
    rates = torch.load(folder / "latest.pt", weights_only=True)["state"]["params"]["rates"]
    assert all(len(of_tensor) == len(rates) for of_tensor in last.values())
    left = {"anil": "conv", "boil": "linear"}.get(name, "none")
    for tensor, values in last.items():
        assert (not any(values)) is tensor.startswith(left)


def test_it_is_evaluated_by_the_loop_that_it_was_trained_by(run, images, capsys):
    name, folder, _ = run
    out = folder / "evaluated.json"
    argv = [str(folder), "--data", str(images), "--eval-steps", "3", "--json", str(out)]
    assert evaluate.main([*argv, "--protocol", "inductive"]) == 0
    found = json.loads(out.read_text())
    assert (found["method"], found["steps"]) == (name, 3)
    assert found["config"]["method"] == name and len(found["best"]["by_task"]) == 4


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_classes_of_ones_own(run, images, tmp_path, classes):
    """As the unroll does it, for as many classes as outputs; a picture as if it were alone."""
    _, folder, _ = run
    files = [images / "test" / f"test{c}" / f"{n}.png" for c in range(classes) for n in range(2)]
    labels = [f"class {i // 2}" for i in range(len(files))]
    asked = [images / "test" / f"test{c}" / "5.png" for c in range(classes)]
    classifier = FewShotClassifier.load(folder).fit(files, labels)
    odds = classifier.predict_proba(asked)
    assert odds.shape == (classes, classes) and np.allclose(odds.sum(1), 1)
    alone = np.concatenate([classifier.predict_proba([each]) for each in asked])
    assert np.array_equal(odds, alone)
    classifier.save(tmp_path / "own.pt")
    assert np.array_equal(FewShotClassifier.load(tmp_path / "own.pt").predict_proba(asked), odds)
    if classes < 3:
        return
    learned = learned_from(folder, ensemble=False)
    x, new = (learned.preparation.seen(prepared(p, learned.preparation)) for p in (files, asked))
    y = torch.arange(3).repeat_interleave(2)
    episode = Episode(x[None], y[None], new[None], torch.zeros(1, len(asked), dtype=torch.int64))
    ((params, running),) = learned.members
    cfg = learned.cfg
    logits = unroll.adapt_and_predict(
        network(cfg), params, running, episode, steps=cfg.steps, protocol="inductive"
    )
    np.testing.assert_allclose(odds, logits[0].double().softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "words"), [
    ("maml", ["6 biases", "0 inner rates (10 are fixed)"]),
    ("meta-sgd", ["12 gains and biases", "{size:,} inner rates"]),
    ("anil", ["0 inner rates (10 are fixed)"]),
])  # fmt: skip
def test_show_counts_what_is_learned_and_says_what_the_method_chose(name, words):
    small = "--dataset folder --filters 2 --stages 3 --image-size 16 --steps 2".split()
    asked = resolve([*small, "--method", name])
    size = sum(network(asked.cfg).sizes)
    line = parameters(asked.cfg)
    assert all(word.format(size=size) in line for word in words), line
    lines = [row.split() for row in settings(asked)]
    assert ["method", name, "flag"] in lines
    chosen = {row[0]: row[1] for row in lines if row[2:] == ["method", name]}
    said = METHODS[name].settings(vars(asked.cfg)).keys() - {"steps"}
    assert chosen == {field: str(getattr(asked.cfg, field)) for field in said}


def test_weights_of_another_rule_are_refused(run, images, capfd):
    name, folder, argv = run
    rates = "fixed" if name == "meta-sgd" else "per-parameter"
    other = ["--method", "maml++", "--preset", "maml", "--rates", rates, "--steps", "2"]
    again = flags(images, images.parent / f"{name}-other", *other, "--init", folder)
    assert train.main(again) == 2
    one_line(capfd.readouterr().err, "of another network", f"-> {rates}")
