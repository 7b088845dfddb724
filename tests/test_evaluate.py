"""Evaluation: the interval, the ensemble, fixed tasks, and the command line on any checkpoint."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch

from engine import FewShotClassifier, evaluate, meta, scoring, train
from engine.config import Config
from engine.episodes import EpisodeSampler
from engine.errors import Diverged
from engine.runs import checkpoint
from engine.runs.packed import pack
from engine.runs.problem import load_dataset
from engine.runs.saved import load_best, own_data, restore
from engine.runtime.machine import machine
from tests.tiny import flags, make_images, one_line


@pytest.fixture(scope="module")
def members(finished):
    """Its configuration, data, and states by epoch."""
    saved = load_best(finished)
    cfg = Config.from_dict(saved[0].config)
    cfg = dataclasses.replace(cfg, **own_data(finished, cfg))
    with machine(cfg) as device:
        return cfg, load_dataset(cfg), restore(meta.layout(cfg), saved, device)


def test_interval_is_196_standard_errors_over_tasks():
    result = scoring.score(torch.tensor([0.2, 0.4, 0.9, 0.5], dtype=torch.float64))
    assert result.accuracy == pytest.approx(0.5)
    deviation = ((0.3**2 + 0.1**2 + 0.4**2 + 0.0) / 3) ** 0.5
    assert result.interval == pytest.approx(1.96 * deviation / 2)
    assert result.tasks == 4


def test_a_single_task_has_no_interval(recwarn):
    found = scoring.score(torch.tensor([0.5], dtype=torch.float64))
    assert found.accuracy == 0.5 and np.isnan(found.interval) and not recwarn.list


def test_evaluation_tasks_are_fixed_and_blocks_do_not_matter(members, monkeypatch):
    cfg, dataset, states = members
    first = scoring.evaluate(cfg, list(states.values()), dataset, "test", 10)
    again = dataclasses.replace(cfg, seed=7, tasks=5)
    assert scoring.evaluate(again, list(states.values()), dataset, "test", 10) == first
    monkeypatch.setattr("kernels.task_block", lambda like, keeps: 4)
    assert scoring.evaluate(cfg, list(states.values()), dataset, "test", 10) == first


def test_ensemble_of_one_is_the_model_and_of_equals_too(members):
    cfg, dataset, states = members
    state = next(iter(states.values()))
    (one,), ensemble = scoring.evaluate(cfg, [state], dataset, "val", 6)
    assert one == ensemble
    pair, ensemble = scoring.evaluate(cfg, [state, state], dataset, "val", 6)
    assert pair == [one, one] and ensemble == one


@pytest.mark.parametrize(
    "options", [{}, {"norm_statistics": "running"}, {"protocol": "inductive", "eval_steps": 4}]
)
def test_a_validation_has_the_accuracy_after_each_step_on_its_first_tasks(members, options):
    cfg, dataset, states = members
    cfg, state = dataclasses.replace(cfg, eval_tasks=61, **options), next(iter(states.values()))
    score, by_step = scoring.validate(cfg, state, dataset)
    assert ([score], score) == scoring.evaluate(cfg, [state], dataset, "val", 61)
    assert by_step.tasks == 2 and len(by_step.accuracy) == (cfg.eval_steps or cfg.steps)
    for steps, accuracy in enumerate(by_step.accuracy, start=1):
        until = dataclasses.replace(cfg, eval_steps=steps)
        (alone,), _ = scoring.evaluate(until, [state], dataset, "val", 2)
        assert alone.accuracy == accuracy


def test_ensemble_takes_the_mean_of_the_logits(members, monkeypatch):
    cfg, dataset, states = members
    state = next(iter(states.values()))
    shape = cfg.ways * cfg.targets, cfg.ways

    def logits(model, params, running, episode, **options):
        # right by a little or wrong by much: a vote says right, the mean of logits wrong
        right = torch.nn.functional.one_hot(episode.target_y, cfg.ways).float().view(-1, *shape)
        return right if params.theta is not states[last].params.theta else -5 * right

    last = list(states)[-1]
    monkeypatch.setattr("engine.unroll.adapt_and_predict", logits)
    single, ensemble = scoring.evaluate(cfg, [state, state, states[last]], dataset, "test", 3)
    assert [s.accuracy for s in single] == [1, 1, 0] and ensemble.accuracy == 0


def test_a_run_folder_gives_what_the_training_reported(finished, capsys):
    assert evaluate.main([str(finished)]) == 0
    out = capsys.readouterr().out
    result = json.loads((finished / "result.json").read_text())
    numbers = re.findall(r"([\d.]+) % ± ([\d.]+)", out)
    assert numbers == [
        (f"{100 * result[k]['accuracy']:.2f}", f"{100 * result[k]['interval']:.2f}")
        for k in ("best", "ensemble")
    ]
    assert "trained on folder:tiny, tested on folder:tiny\n" in out


def test_one_file_and_other_settings(finished, capsys):
    argv = "--eval-steps 4 --norm-statistics running --eval-tasks 7 --shots 2"
    assert evaluate.main([str(finished / "latest.pt"), *argv.split(), "--on", "val"]) == 0
    out = capsys.readouterr().out
    assert "3-way 2-shot, 7 val tasks, 4 inner steps, running statistics" in out
    assert "ensemble of 1" in out


def test_a_flag_without_effect_is_refused(finished, capfd):
    running = [str(finished), "--norm-statistics", "running", "--protocol"]
    assert evaluate.main([*running, "inductive"]) == 2
    one_line(capfd.readouterr().err, "--protocol is inductive with --norm-statistics running")
    out = finished.parent / "running.json"
    assert evaluate.main([*running, "transductive", "--json", str(out)]) == 0  # as it was trained
    assert json.loads(out.read_text())["protocol"] is None


def test_classes_that_chose_the_network_are_no_new_ones(finished, tmp_path, capsys):
    for part, seen in (("train", True), ("val", True), ("test", False)):
        argv = [str(finished), "--on", part, "--json", str(tmp_path / f"{part}.json")]
        assert evaluate.main(argv) == 0
        found = json.loads((tmp_path / f"{part}.json").read_text())["seen_classes"]
        assert (found > 0) is seen, part
        assert ("trained on or chosen by" in capsys.readouterr().out) is seen


def test_other_data_of_the_same_shape(finished, images, capsys):
    other = make_images(images.parent / "elsewhere" / "other", seed=5)
    assert evaluate.main([str(finished), "--data", str(other)]) == 0
    assert "trained on folder:tiny, tested on folder:other, other data\n" in capsys.readouterr().out


def test_a_checkpoint_alone_needs_data(finished, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    alone = tmp_path / "given.pt"
    alone.write_bytes((finished / "latest.pt").read_bytes())
    for config in (None, "{", "[]", '{"data": "x"}'):  # none, and three of no run of its own
        if config:
            (tmp_path / "config.json").write_text(config)
        refused([alone], capsys, "given.pt was trained on folder:tiny", "--data")
    cache = images.parent / "cache"
    assert evaluate.main([str(alone), "--data", str(images), "--cache", str(cache)]) == 0
    assert "tested on folder:tiny\n" in capsys.readouterr().out


@pytest.mark.parametrize("place", [None, "datasets/mini"])
def test_no_stand_in_for_the_data_that_a_checkpoint_was_trained_on(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if place:
        (tmp_path / place).mkdir(parents=True)  # empty
    cfg = Config.of(filters=1)
    state = pack(meta.init_state(cfg))
    rng = torch.get_rng_state()
    content = checkpoint.Checkpoint(cfg.to_dict(), "mini", "", state, 1, [], {}, rng)
    checkpoint.save(tmp_path / "real.pt", content)
    refused(["real.pt"], capsys, "--data" if place else "real.pt was trained on mini")


def refused(argv, capsys, *words):
    assert evaluate.main([str(argument) for argument in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def test_mistakes_are_one_line(finished, images, tmp_path, capsys):
    refused([tmp_path / "none.pt"], capsys, "no checkpoint at", "none.pt")
    refused(["x" * 5000], capsys, "give a run folder or a .pt file")
    refused([tmp_path], capsys, "no run folder", "latest.pt")
    refused([finished, "--ways", 5], capsys, "--ways is 5", "3 outputs")
    refused([finished, "--data", tmp_path / "none"], capsys, "none", "--data")
    refused([finished, "--dataset", "omniglot"], capsys, "omniglot", "3 channels")
    refused([finished, "--targets", 50], capsys, "folder:tiny")
    refused([finished, "--eval-tasks", 1], capsys, "--eval-tasks is 1")
    (tmp_path / "bad.pt").write_bytes(b"PK")
    refused([tmp_path / "bad.pt"], capsys, "bad.pt is damaged")


def test_a_run_without_a_validated_epoch(finished, tmp_path, capsys):
    found = checkpoint.load(finished / "latest.pt")
    found.best = []
    checkpoint.save(tmp_path / "latest.pt", found)
    refused([tmp_path], capsys, "no validated epoch", "latest.pt")


def test_pictures_are_prepared_as_those_that_the_network_was_trained_on(tmp_path, capsys):
    """Drawings in folders by a network of Omniglot: what the classifier answers of the files."""
    cfg = Config.of("maml++", "omniglot", filters=4, steps=2, ways=3, eval_tasks=20)
    content = checkpoint.Checkpoint(
        cfg.to_dict(), "omniglot", "", pack(meta.init_state(cfg)), 1, [], {}, torch.get_rng_state()
    )
    checkpoint.save(tmp_path / "drawings.pt", content)
    images, details = make_images(tmp_path / "drawn"), tmp_path / "details.json"
    argv = "--dataset", "folder", "--data", images, "--cache", tmp_path / "cache", "--threads", 1
    argv += "--protocol", "inductive", "--device", "cpu", "--json", details
    assert evaluate.main([*map(str, (tmp_path / "drawings.pt", *argv))]) == 0, capsys.readouterr()
    found = json.loads(details.read_text())
    cfg = Config.from_dict(found["config"])
    data = load_dataset(cfg)
    sampler = EpisodeSampler.of(cfg, data, "test", scoring.TASK_SEED)
    files = [
        file for name in found["classes"] for file in sorted((images / "test" / name).iterdir())
    ]
    classifier = FewShotClassifier.load(tmp_path / "drawings.pt", threads=1)
    hits = []
    for support, targets in np.moveaxis(sampler.draw(0, 20).rows, 2, 1):
        fitted = classifier.fit([files[row] for row in support], range(3))
        hits.append(np.mean(fitted.predict([files[row] for row in targets]) == np.arange(3)))
    assert hits == pytest.approx(found["best"]["by_task"]) and len({*hits}) > 1


NAN = torch.tensor(float("nan"))


def test_logits_that_are_not_finite_are_no_accuracy(members):
    cfg, dataset, states = members
    cfg, state = dataclasses.replace(cfg, norm_statistics="running"), next(iter(states.values()))
    broken = state._replace(params=state.params._replace(rates=state.params.rates * 1e30))
    with pytest.raises(Diverged, match="logits of 5 of 5 test tasks are not .*2 inner steps"):
        scoring.predictions(cfg, [state, broken], dataset, "test", 5)
    with pytest.raises(Diverged, match="of 4 of 4 val tasks"):
        scoring.validate(cfg, broken, dataset)


def test_what_has_diverged_is_refused_by_evaluate(finished, images, tmp_path, capsys):
    found = checkpoint.load(finished / "latest.pt")
    found.state["params"]["rates"] *= 1e30
    checkpoint.save(tmp_path / "broken.pt", found)
    argv = tmp_path / "broken.pt", "--data", images, "--norm-statistics", "running"
    words = "broken.pt: the logits of 4 of 4 test tasks", "2 inner steps, with running statistics"
    refused(argv, capsys, *words, "--eval-steps")


@pytest.mark.parametrize(("part", "where"), [("val", "epoch 1: "), ("test", "final test: ")])
def test_a_training_ends_where_its_evaluation_is_not_finite(
    images, tmp_path, monkeypatch, capsys, part, where
):
    collected = scoring._collected

    def broken(cfg, answers, tasks, of, between):
        def nan(*which):
            logits, labels = answers(*which)
            return logits * NAN if of == part else logits, labels

        return collected(cfg, nan, tasks, of, between)

    monkeypatch.setattr(scoring, "_collected", broken)
    run = tmp_path / "run"
    assert train.main(flags(images, run, "--epochs", 1)) == 3
    one_line(capsys.readouterr().err, where, f"4 of 4 {part} tasks are not finite", "--fresh")
    assert checkpoint.load(run / "latest.pt").epoch == (part == "test")
    assert not (run / "result.json").exists()


def test_a_protocol_that_nobody_asked_for_costs_no_test(images, tmp_path, monkeypatch, capsys):
    evaluated = scoring.evaluate

    def inductive(cfg, states, *rest, **named):
        assert cfg.protocol == "inductive"
        broken = [s._replace(params=s.params._replace(theta=s.params.theta * NAN)) for s in states]
        return evaluated(cfg, broken, *rest, **named)

    monkeypatch.setattr(scoring, "evaluate", inductive)
    run = tmp_path / "run"
    assert train.main(flags(images, run, "--epochs", 1)) == 0
    said = "no inductive test: the logits of 4 of 4 test tasks are not finite"
    assert said in capsys.readouterr().out
    assert json.loads((run / "details.json").read_text())["other"] is None


def test_the_training_s_classes_and_other_splits_are_evaluated_as_any(tmp_path, images, capsys):
    flat = tmp_path / "flat"
    for place in images.glob("*/*"):
        shutil.copytree(place, flat / place.name)
    more = ["--method", "protonet", "--train-ways", "8", "--rotations", "augment"]
    more += ["--epochs", "1", "--steps", "1", "--split-ratio", "8/5/5"]
    assert train.main(flags(flat, tmp_path / "run", *more)) == 0
    assert evaluate.main([str(tmp_path / "run"), "--on", "train"]) == 0
    assert "4 train tasks" in capsys.readouterr().out
    cfg = Config.from_dict(json.loads((tmp_path / "run" / "config.json").read_text()))
    sampler = EpisodeSampler.of(cfg, load_dataset(cfg), "train", 0)
    assert sampler.ways == 3 and not sampler.draw(0, 20).turns.any()
    assert evaluate.main([str(tmp_path / "run"), "--data", str(images)]) == 0
    assert f"tested on folder:{images.name}, other data" in capsys.readouterr().out
    assert (
        evaluate.main([str(tmp_path / "run"), "--data", str(images), "--split-ratio", "8/5/5"]) == 2
    )
    assert "has its own train, val and test; leave it out" in capsys.readouterr().err


def flat(folder, images):
    """The classes of all splits beside each other."""
    for split in ("train", "val", "test"):
        shutil.copytree(images / split, folder, dirs_exist_ok=True)
    return folder


def test_classes_that_a_network_has_seen_are_told_of(tmp_path, images, capsys):
    birds, run = flat(tmp_path / "birds", images), tmp_path / "run"
    ratio = "--split-ratio", "12/3/3"
    assert train.main(flags(birds, run, *ratio, "--epochs", 1)) == 0
    again = [str(run), "--data", str(birds), "--cache", str(images.parent / "cache")]
    assert evaluate.main(again) == 0
    assert "have names of classes" not in capsys.readouterr().out
    # a class that sorts before all others moves each into another place of the division
    shutil.copytree(birds / "test0", birds / "a-new-one")
    found = tmp_path / "found.json"
    assert evaluate.main([*again, "--json", str(found)]) == 0
    told = re.search(r"(\d) of the 3 test classes have names of classes", capsys.readouterr().out)
    assert int(told[1]) == json.loads(found.read_text())["seen_classes"] > 0
    # so does a training that begins with its weights, and what is then trained knows of both
    more = flags(birds, tmp_path / "more", *ratio, "--epochs", 1, "--init", run)
    assert train.main(more) == 0
    assert "test classes have names of classes" in capsys.readouterr().out
    first, second = (checkpoint.load(f / "latest.pt").seen for f in (run, tmp_path / "more"))
    assert {*first["train"], *first["val"]} == {*second["before"]}
