"""A whole run of each method: stopped and continued, evaluated, adapted to one's own pictures."""

from __future__ import annotations

import json
import signal
from functools import partial

import numpy as np
import pytest
import torch

from engine import FewShotClassifier, adapt, evaluate, predict, train
from engine.config import Config
from engine.data.pictures import prepared
from engine.episodes import Episode
from engine.errors import UserError
from engine.methods import METHODS
from engine.methods.inner import Inner
from engine.methods.loops import loop
from engine.models import network
from engine.runs.interrupt import Stopped
from engine.runs.learned import learned_from
from engine.runtime.ranks import Alone
from engine.settings import resolve
from engine.show import parameters, settings
from tests.tiny import flags, one_line, same, without_rate

NAMES = [name for name in METHODS if name != "maml++"]
# By the names of their folders: method, and what it is trained with.
IN_CONTEXT = "--context 2 --class-scores sum --temperature 3".split()
REPTILE = "--train-shots 2 --inner-batch 4 --eval-batch 2 --eval-steps 3".split()
VARIANTS = {name: (name, []) for name in NAMES} | {
    "reptile": ("reptile", REPTILE),
    "in-context": ("matching", IN_CONTEXT),
}


@pytest.fixture(scope="module", params=VARIANTS)
def run(request, images):
    """The method, the folder of its run, and how it was trained."""
    (name, more), folder = VARIANTS[request.param], images.parent / request.param
    more = [*more, *(["--steps", 1, "--train-ways", 4] if METHODS[name].closed_form else [])]
    if METHODS[name].fixed.get("network") == "own":
        more = ["--steps", 1, "--stages", 4]  # which it has not: the usual number says nothing
    argv = flags(images, folder, "--method", name, "--epochs", 2, *more)
    argv += ["--inner-rate", "0.05"] * ("--inner-rate" in argv)
    assert train.main(argv) == 0
    return name, folder, argv


def test_a_run_that_was_stopped_is_bit_for_bit_the_uninterrupted_one(run, images, monkeypatch):
    name, straight, argv = run
    folder = images.parent / f"{straight.name}-stopped"
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


def test_first_order_stays_first_order_when_it_is_trained_on(images, capsys):
    folder = images.parent / "longer"
    argv = flags(images, folder, "--method", "fomaml", "--epochs")
    assert train.main([*argv, "1"]) == 0 and train.main([*argv, "2"]) == 0
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    orders = [(row["epoch"], row["order"]) for row in rows if row["kind"] == "train"]
    assert {*orders} == {(1, 1), (2, 1)}


def test_targets_of_a_test_may_be_others_than_those_of_the_training(images, capsys):
    folder = images.parent / "few-targets"
    assert train.main(flags(images, folder, "--epochs", 1, "--eval-targets", 1)) == 0
    assert json.loads((folder / "result.json").read_text())["targets"] == 1
    out = folder / "evaluated.json"
    more = ["--data", str(images), "--json", str(out)]
    assert evaluate.main([str(folder), *more]) == 0
    assert json.loads(out.read_text())["targets"] == 1
    assert evaluate.main([str(folder), *more, "--targets", "3"]) == 0
    assert json.loads(out.read_text())["targets"] == 3


@pytest.mark.parametrize(("more", "words"), [
    (["--method", "protonet", "--steps", 1, "--train-ways", 9], "--train-ways is 9, but the train"),
    (["--ways", 9], "--ways is 9, but the train"),
    (["--eval-targets", 9], "--shots 1 and --eval-targets 9 need 10 images a class"),
])  # fmt: skip
def test_too_few_classes_or_images_are_told_by_the_flag_that_asked(images, capfd, more, words):
    assert train.main(flags(images, images.parent / "few", *more)) == 2
    one_line(capfd.readouterr().err, words)


def test_a_run_of_one_method_is_not_continued_by_another(run, capfd):
    name, _, argv = run
    other = "boil" if name == "anil" else "anil"
    neutral = "--train-ways 0 --inner-batch 0 --eval-batch 0 --context 0 --temperature 1".split()
    neutral += ["--class-scores", "attention"]
    assert train.main([*argv, "--method", other, *neutral]) == 2
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
    name, folder, trained = run
    out = folder / "evaluated.json"
    argv = [str(folder), "--data", str(images), "--json", str(out)]
    argv += ["--protocol", "inductive"] * (Config.resolve(trained).other_protocol is not None)
    loops = METHODS[name].has_steps
    assert evaluate.main([*argv, *["--eval-steps", "3"][: 2 * loops]]) == 0
    found = json.loads(out.read_text())
    assert (found["method"], found["steps"]) == (name, 3 if loops else 0)
    assert found["config"]["method"] == name and len(found["best"]["by_task"]) == 4


def test_rates_of_parameters_have_the_number_of_classes(images, tmp_path, capfd):
    argv = flags(images, tmp_path / "run", "--method", "protomaml", "--rates", "per-parameter")
    assert train.main(argv) == 0
    capfd.readouterr()
    assert evaluate.main([str(tmp_path / "run"), "--data", str(images), "--ways", "5"]) == 2
    one_line(capfd.readouterr().err, "--ways is 5: the classifier of")
    files = [images / "test" / f"test{c}" / "0.png" for c in range(5)]
    with pytest.raises(UserError, match="y has 5 classes, the network 3 outputs"):
        FewShotClassifier.load(tmp_path / "run").fit(files, range(5))


def test_more_classes_are_for_those_that_make_their_classifier_of_the_support_set(
    run, images, capfd
):
    name, folder, argv = run
    code = evaluate.main([str(folder), "--data", str(images), "--ways", "5"])
    out, err = capfd.readouterr()
    files = [images / "test" / f"test{c}" / "0.png" for c in range(5)]
    classifier = FewShotClassifier.load(folder)
    if METHODS[name].any_ways:
        assert code == 0 and "5-way 1-shot" in out
        assert classifier.fit(files, range(5)).predict_proba(files[:2]).shape == (2, 5)
        return
    assert code == 2
    one_line(err, "--ways is 5: the classifier of", "has 3 outputs")
    with pytest.raises(UserError, match="y has 5 classes, the network 3 outputs"):
        classifier.fit(files, range(5))
    argv = [*argv, "--train-ways", "4", "--run", str(folder / "other")]
    assert train.main(argv) == 2
    one_line(capfd.readouterr().err, f"--train-ways is 4 with --method {name}")


def test_the_command_lines_adapt_it_and_ask_it(run, images, tmp_path, capfd):
    _, folder, _ = run
    support = tmp_path / "pets"
    for c, name in enumerate(("ant", "bee")):
        (support / name).mkdir(parents=True)
        for n in range(2):
            file = images / "test" / f"test{c}" / f"{n}.png"
            (support / name / file.name).write_bytes(file.read_bytes())
    asked = [str(images / "test" / f"test{c}" / "4.png") for c in range(2)]
    own = tmp_path / "pets.pt"
    assert adapt.main([str(folder), str(support), "-o", str(own)]) == 0
    capfd.readouterr()
    assert predict.main([str(own), *asked]) == 0
    out, _ = capfd.readouterr()
    classifier = FewShotClassifier.load(folder).fit_folder(support)
    for file, label in zip(asked, classifier.predict(asked), strict=True):
        assert any(file in line and label in line for line in out.splitlines()), out


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_classes_of_ones_own(run, images, tmp_path, classes):
    """As the unroll does it, for as many classes as outputs; a picture as if it were alone."""
    name, folder, _ = run
    files = [images / "test" / f"test{c}" / f"{n}.png" for c in range(classes) for n in range(2)]
    labels = [f"class {i // 2}" for i in range(len(files))]
    asked = [images / "test" / f"test{c}" / "5.png" for c in range(classes)]
    classifier = FewShotClassifier.load(folder, precision="fp32").fit(files, labels)
    odds = classifier.predict_proba(asked)
    assert odds.shape == (classes, classes) and np.allclose(odds.sum(1), 1)
    alone = np.concatenate([classifier.predict_proba([each]) for each in asked])
    assert np.array_equal(odds, alone)
    classifier.save(tmp_path / "own.pt")
    again = FewShotClassifier.load(tmp_path / "own.pt", precision="fp32")
    assert np.array_equal(again.predict_proba(asked), odds)
    if classes < 3:
        return
    learned = learned_from(folder, ensemble=False)
    x, new = (learned.preparation.seen(prepared(p, learned.preparation)) for p in (files, asked))
    y = torch.arange(3).repeat_interleave(2)
    episode = Episode(x[None], y[None], new[None], torch.zeros(1, len(asked), dtype=torch.int64))
    ((params, running),) = learned.members
    cfg, model = learned.cfg, network(learned.cfg)
    own = loop(cfg, model)
    predict = own.adapt_and_predict
    if name == "reptile":  # whose own has each target among the support images
        predict = partial(Inner.adapt_and_predict, own)
    logits = predict(
        model,
        params,
        running,
        episode,
        steps=cfg.eval_steps or cfg.steps,
        protocol="inductive",
        norm_statistics=cfg.norm_statistics,
    )
    np.testing.assert_allclose(odds, logits[0].double().softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "words"), [
    ("maml", ["6 biases", "0 inner rates (10 are fixed)"]),
    ("meta-sgd", ["12 gains and biases", "{size:,} inner rates"]),
    ("anil", ["0 inner rates (10 are fixed)"]),
    ("protonet", ["{body:,} weights"]),
])  # fmt: skip
def test_show_counts_what_is_learned_and_says_what_the_method_chose(name, words):
    small = "--dataset folder --filters 2 --stages 3 --image-size 16".split()
    steps = [] if name == "protonet" else ["--steps", "2"]
    asked = resolve([*small, *steps, "--method", name])
    size, body = (sum(network(asked.cfg).sizes[:end]) for end in (None, -2))
    line = parameters(asked.cfg)
    assert all(word.format(size=size, body=body) in line for word in words), line
    lines = [row.split() for row in settings(asked)]
    assert ["method", name, "flag"] in lines
    chosen = {row[0]: row[1] for row in lines if row[2:] == ["method", name]}
    said = METHODS[name].settings(vars(asked.cfg)).keys() - ({"steps"} if steps else set())
    assert chosen == {field: str(getattr(asked.cfg, field)) for field in said}


def test_weights_of_another_rule_are_refused(run, images, capfd):
    name, folder, argv = run
    rates = "fixed" if name == "meta-sgd" else "per-parameter"
    other = ["--method", "maml++", "--preset", "maml", "--rates", rates, "--steps", "2"]
    if METHODS[name].closed_form:
        other[-1] = "1"
    again = flags(images, images.parent / f"{folder.name}-other", *other, "--init", folder)
    assert train.main(again) == 2
    one_line(capfd.readouterr().err, "of another network", f"-> {rates}")


def own(name: str, *more: object) -> list[object]:
    """Flags of a method with a network of its own."""
    return ["--method", name, "--steps", 1, "--stages", 4, "--epochs", 1, *more]


@pytest.mark.parametrize(("before", "after", "kept"), [
    (["siamese"], ["siamese", "--ways", 4], "its classifier"),
    (["protonet"], ["siamese"], "a new classifier"),
    (["memory"], ["memory", "--ways", 2], "its classifier"),
])  # fmt: skip
def test_weights_for_other_ways_are_taken_whole_where_they_fit(
    images, tmp_path, capsys, before, after, kept
):
    first, second = (
        flags(images, tmp_path / f"{i}", "--epochs", 1, "--steps", 1, "--method", *argv)
        + (["--stages", "4"] if argv[0] == "memory" else [])
        for i, argv in enumerate((before, after))
    )
    assert train.main(first) == 0
    still = ["--lr", "1e-9", "--min-lr", "1e-9"]
    assert train.main([*without_rate(second), "--init", str(tmp_path / "0"), *still]) == 0
    out = capsys.readouterr().out
    assert f"inner rates and running statistics, {kept}" in out
    a, b = (
        torch.load(tmp_path / f"{i}" / "latest.pt", weights_only=True)["state"]["params"]["theta"]
        for i in (0, 1)
    )
    same = torch.isclose(a[: len(b)], b[: len(a)], atol=1e-6)
    assert bool(same.all()) is (kept == "its classifier") and same.float().mean() > 0.9


@pytest.mark.parametrize(("more", "words"), [
    (["memory", "--image-size", 20], "image_size: 16 -> 20"),
    (["statistician"], "method: memory -> statistician"),
    (["metanet"], "method: memory -> metanet"),
])  # fmt: skip
def test_weights_of_another_network_of_a_methods_own_are_refused(images, capfd, more, words):
    folder = images.parent / "memory-for-init"
    if not folder.exists():
        assert train.main(flags(images, folder, *own("memory"))) == 0
    other = flags(images, images.parent / "none", *own(*more), "--init", folder)
    assert train.main(other) == 2
    one_line(capfd.readouterr().err.replace("\n\n", ""), "of another network", words)


def test_the_weights_of_a_network_whose_classifiers_lie_among_its_others_are_for_its_ways(
    images, capfd
):
    folder = images.parent / "metanet-for-init"
    assert train.main(flags(images, folder, *own("metanet"))) == 0
    other = flags(images, images.parent / "none", *own("metanet", "--ways", 2), "--init", folder)
    assert train.main(other) == 2
    one_line(capfd.readouterr().err.replace("\n\n", ""), "of another network", "ways: 3 -> 2")


@pytest.mark.parametrize("name", ["siamese", "memory", "statistician", "metanet"])
def test_what_is_remembered_of_pictures_has_its_length(images, tmp_path, name):
    """Of a file that is damaged, or for another task."""
    folder = images.parent / name
    if not folder.exists():
        assert train.main(flags(images, folder, *own(name))) == 0
    files = [images / "test" / f"test{c}" / f"{n}.png" for c in range(2) for n in range(2)]
    FewShotClassifier.load(folder).fit(files, [0, 0, 1, 1]).save(tmp_path / "own.pt")
    content = torch.load(tmp_path / "own.pt", weights_only=True)
    theta = content["adapted"][0]["theta"]
    for wrong in (theta[:-1], torch.cat([theta, theta[:1]]), theta[:5], "x"):
        content["adapted"][0]["theta"] = wrong
        torch.save(content, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match="adapted.theta") as caught:
            FewShotClassifier.load(tmp_path / "wrong.pt")
        assert "\n" not in str(caught.value)


def test_another_number_of_classes_starts_from_its_weights(run, images, capfd):
    """What it has beside the network comes along if it was learned, and else begins anew."""
    name, folder, argv = run
    if name == "metanet":
        pytest.skip("its classifiers lie among its other weights: refused, tested above")
    more = "--ways 2 --epochs 1 --iterations 1 --lr 1e-12 --min-lr 1e-12".split()
    new = folder.parent / f"{folder.name}-of-two"
    began = argv if METHODS[name].by_rate else without_rate(argv)
    assert train.main([*began, *more, "--init", str(folder), "--run", str(new)]) == 0
    best = json.loads((folder / "result.json").read_text())["best"]["epoch"]
    old = torch.load(folder / f"epoch-{best:04d}.pt", weights_only=True)["state"]["params"]
    params = torch.load(new / "latest.pt", weights_only=True)["state"]["params"]
    end = None if name != "reptile" else 2 * network(Config.resolve(argv)).stat_width
    torch.testing.assert_close(params["norm"][:, :end], old["norm"][:, :end])
    if name == "reptile":
        assert params["norm"][0, -1] == 2  # steps that its Adam has seen
    other = ["--method", "fomaml" if name == "lstm" else "lstm", "--init", str(folder)]
    assert train.main(flags(images, folder.parent / "refused", *other)) == 2
    one_line(capfd.readouterr().err, "numbers beside the network's: ")
