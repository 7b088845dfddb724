"""Training of any learner: by the command line's loop, to its bits, and continued to them."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine
from engine import train
from engine.config import Config
from engine.episodes import Episode, EpisodeSampler
from engine.errors import Diverged, UserError
from engine.learner import Learner
from engine.models.backbone import Backbone
from engine.runs import checkpoint
from engine.runs.problem import load_dataset
from engine.runs.saved import load_best
from tests.foreign import ResNet, problem
from tests.tiny import flags, same, timeless

SHORT = {
    "epochs": 3,
    "iterations": 4,
    "eval_tasks": 6,
    "ensemble": 2,
    "log_every": 1,
    "lr": 1e-2,
    "no_report": True,
}


def waves(i: int) -> Episode:
    g = torch.Generator().manual_seed(i)
    x = torch.rand(4, 20, 1, generator=g) * 6
    y = torch.sin(x - torch.rand(4, 1, 1, generator=g) * 3)
    return Episode(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])


def mlp() -> Learner:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    return Learner(net, F.mse_loss, steps=2, rate=0.05)


def rows(folder, kind: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row for row in lines if row["kind"] == kind]


def fitted(learner: Learner, folder, **settings) -> engine.fitting.Run:
    options = SHORT | {"metric": "loss"} | settings
    return engine.fit(learner, waves, val=lambda i: waves(-1 - i), run=folder, **options)


def test_a_rate_for_each_parameter_is_trained_and_its_means_are_logged(tmp_path):
    learner = Learner(mlp().module, F.mse_loss, steps=2, rate=0.05, rates="per-parameter")
    run = fitted(learner, tmp_path / "run")
    (*_, last) = (row["rates"] for row in rows(run.folder, "validation"))
    assert [*last] == [*learner.adapted_names] and all(len(means) == 1 for means in last.values())
    means = [part.mean().item() for part in run.state.params.rates[0].split(learner.model.sizes)]
    assert [mean for (mean,) in last.values()] == pytest.approx(means)
    assert learner.rates.unique().numel() > 10


@pytest.mark.parametrize(
    "setting", [{"method": "anil"}, {"adapt": "head"}, {"norm_gains": "fixed"}]
)
def test_what_the_learner_says_is_no_setting(tmp_path, setting):
    with pytest.raises(UserError, match="the learner or its tasks say it already; leave it out"):
        fitted(mlp(), tmp_path / "run", **setting)


def test_a_regression_trains_and_keeps_its_best(tmp_path, capsys):
    learner = mlp()
    run = fitted(learner, tmp_path / "run", epochs=8, iterations=10)
    assert run.epoch == 8 and run.folder == tmp_path / "run"
    losses = [row["validation_loss"] for row in rows(run.folder, "validation")]
    assert losses[-1] < 0.7 * losses[0] and all(
        "accuracy" not in row for row in rows(run.folder, "train")
    )
    row = rows(run.folder, "validation")[0]
    assert list(row["rates"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(row["step_loss"]) == 2 and row["step_loss"][1] < row["step_loss"][0]
    result = json.loads((run.folder / "result.json").read_text())
    assert result["best"]["loss"] == pytest.approx(min(losses))
    assert "accuracy" not in result["best"] | result["ensemble"]
    score = learner.evaluate([waves(-1), waves(-2).slice(0, 2)], "loss")
    assert score.accuracy == pytest.approx(min(losses), rel=1e-5)
    out = capsys.readouterr().out
    assert "validation loss" in out and f"loss {min(losses):.4f} ± " in out


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_little_memory_leaves_the_allocator_as_it_is(memory, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("engine.fitting.keep_freed_memory", lambda: calls.append(memory))
    network = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    fitted(Learner(network, F.mse_loss, steps=1, memory=memory), tmp_path, epochs=1, iterations=1)
    assert calls == ["fast"] * (memory == "fast")


def test_a_loss_below_zero_is_told_as_it_is(tmp_path, capsys):
    """Of a density, say: it may be any number."""
    learner = Learner(nn.Linear(1, 1), lambda o, y: F.mse_loss(o, y) - 5, steps=2, rate=0.05)
    run = fitted(learner, tmp_path / "run", epochs=1, iterations=1)
    (row,) = rows(run.folder, "validation")
    assert -5 < row["step_loss"][0] < 0 and -5 < row["validation_loss"] < 0
    assert f"validation loss {row['validation_loss']:.4f} ± " in capsys.readouterr().out


def test_a_stopped_run_continues_to_the_same_bits(tmp_path):
    straight, stopped = mlp(), mlp()
    fitted(straight, tmp_path / "straight")
    calls = []

    def at_seven(i):
        calls.append(i)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return waves(i)

    options = SHORT | {"metric": "loss", "prefetch": 0, "run": tmp_path / "stopped"}
    with pytest.raises(KeyboardInterrupt):
        engine.fit(stopped, at_seven, val=lambda i: waves(-1 - i), **options)
    again = mlp()
    fitted(again, tmp_path / "stopped")
    assert same(dict(again.state_dict()), dict(straight.state_dict()))
    for kind in ("train", "validation"):
        logs = [timeless(rows(tmp_path / name, kind)) for name in ("straight", "stopped")]
        assert logs[0] == logs[1]


def test_a_classifier_with_batch_norm_and_an_outer_body(tmp_path):
    made = problem("resnet")
    torch.manual_seed(0)
    learner = Learner(ResNet(), steps=2, rate=0.1, adapt="head")
    floats = made.episode.map(lambda v: v.float() if v.is_floating_point() else v)
    before = copy.deepcopy(learner.state_dict())
    run = engine.fit(learner, lambda i: floats, val=lambda i: floats, run=tmp_path, **SHORT)
    assert rows(run.folder, "validation")[-1]["accuracy"] >= 1 / 3
    shared = run.state.params.norm[:, learner.norm.shape[1] :]
    assert shared.shape == (2, shared.shape[1]) and shared[0].equal(shared[1])
    changed = {n for n, v in learner.state_dict().items() if not torch.equal(v, before[n])}
    assert {"module.0.weight", "module.7.weight", "norm", "rates", "running_mean"} <= changed


def test_the_engines_own_network_has_the_command_lines_bits(images, tmp_path):
    argv = flags(images, tmp_path / "line", "--tasks", 2, "--init", "")[:-2]
    assert train.main(argv) == 0
    cfg = Config.resolve(argv)
    dataset = load_dataset(cfg)
    sources = {
        part: EpisodeSampler.of(cfg, dataset, part, seed)
        for part, seed in (("train", cfg.seed), ("val", 0), ("test", 0))
    }
    torch.manual_seed(cfg.seed)
    settled = load_best(tmp_path / "line")[0].precisions["cpu"]
    backbone = Backbone.of(dataclasses.replace(cfg, precision=settled))
    learner = Learner(backbone, steps=cfg.steps, rate=cfg.inner_rate)
    kept = "epochs iterations lr min_lr msl_epochs first_order_epochs clamp eval_tasks ensemble"
    settings = {n: getattr(cfg, n) for n in [*kept.split(), "beta1", "beta2", "task_reduction"]}
    run = engine.fit(
        learner,
        lambda i: sources["train"].episode(i, cfg.tasks),
        val=lambda i: sources["val"].episode(0, 4, first_task=4 * i),
        test=lambda i: sources["test"].episode(0, 4, first_task=4 * i),
        run=tmp_path / "own",
        **settings,
    )
    line = checkpoint.load(tmp_path / "line" / "latest.pt")
    own = checkpoint.load(run.folder / "latest.pt")
    assert same(own.state, line.state) and own.best == line.best
    results = [json.loads((f / "result.json").read_text()) for f in (run.folder, tmp_path / "line")]
    assert results[0]["best"] == results[1]["best"]
    assert results[0]["ensemble"] == results[1]["ensemble"]


def test_what_another_run_or_setting_says(tmp_path):
    fitted(mlp(), tmp_path / "run")
    other = Learner(nn.Linear(1, 1), F.mse_loss, steps=2, rate=0.05)
    with pytest.raises(UserError, match="was trained on own"):
        fitted(other, tmp_path / "run")
    with pytest.raises(UserError, match="has another configuration .lr: 0.01 -> 0.1"):
        fitted(mlp(), tmp_path / "run", lr=0.1, min_lr=1e-5)
    for settings, message in (
        ({"metric": "f1"}, "metric is 'f1': choose one of accuracy, loss"),
        ({"learning_rate": 1}, "learning_rate: no such setting of engine.fit, which trains"),
        (
            {"inner_rate": 0.1, "device": "cuda"},
            "device, inner_rate: no such setting of engine.fit",
        ),
        ({"dataset": "mini"}, "dataset: no such setting of engine.fit"),
        ({"epochs": "3"}, "epochs is '3', of type str"),
        ({"steps": 3}, "steps: the learner or its tasks say it already"),
        ({"epochs": 0}, "^epochs is 0"),
    ):
        with pytest.raises(UserError, match=message):
            fitted(mlp(), tmp_path / "new", **settings)
    with pytest.raises(UserError, match="run is 5"):
        engine.fit(mlp(), waves, val=waves, metric="loss", run=5)
    with pytest.raises(UserError, match="tasks are a list: give Tasks"):
        engine.fit(mlp(), [waves(0)], val=waves, run=tmp_path / "new")
    assert not (tmp_path / "new").exists()


class Features(nn.Module):
    """Of sines at points that no learner learns."""

    def __init__(self, seed: int = 0, act=torch.tanh):
        super().__init__()
        points = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("points", points)
        torch.manual_seed(0)
        self.out, self.act, self.calls = nn.Linear(16, 1), act, 0

    def forward(self, x):
        return self.out(self.act(x @ self.points))


def test_a_run_goes_on_with_its_own_network_alone(tmp_path):
    def again(net: nn.Module, epochs: int = 3) -> engine.fitting.Run:
        return fitted(Learner(net, F.mse_loss, steps=2), tmp_path / "run", epochs=epochs)

    again(Features())
    before = (tmp_path / "run" / "result.json").read_bytes()
    for other in (Features(1), Features(0, torch.relu), Features(0, F.hardtanh)):
        with pytest.raises(UserError, match="is of a run with another network, by its values on"):
            again(other, 4)
    with pytest.raises(UserError, match="name, metric, steps, parameters or frozen weights are"):
        again(nn.Linear(1, 1), 4)
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    trained = Features()
    trained.out.weight.data.mul_(3)  # what is learned is the run's
    assert again(trained, 4).epoch == 4
    other = {"epochs": 4, "protocol": "inductive"}
    with pytest.raises(UserError, match="another configuration .protocol: transductive -> induc"):
        fitted(Learner(Features(), F.mse_loss, steps=2), tmp_path / "run", **other)


class Counting(Features):
    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Noisy(Features):
    def forward(self, x):
        return super().forward(x) + random.random()


class Scaling(nn.MSELoss):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, y):
        self.seen += 1
        return super().forward(output, y)


@pytest.mark.parametrize(("net", "loss", "line"), [
    (Features, nn.MSELoss, None),
    (Counting, nn.MSELoss, "passes of the module change its calls, which no checkpoint has"),
    (Noisy, nn.MSELoss, "the module draws random numbers of other generators than torch's"),
    (Features, Scaling, "the loss keeps something of its own from call to call, which no"),
])  # fmt: skip
def test_what_a_continued_run_would_lack_is_said(net, loss, line, tmp_path, capfd):
    fitted(Learner(net(), loss(), steps=2), tmp_path / "run", epochs=1, iterations=1)
    said = [text for text in capfd.readouterr().out.splitlines() if "that is continued" in text]
    assert len(said) == (line is not None) and all(line in text for text in said)


def test_a_run_goes_on_with_its_own_tasks_and_loss_alone(tmp_path):
    folder = tmp_path / "run"

    def again(loss=F.mse_loss, test=waves, tasks=waves, val=waves):
        learner = Learner(mlp().module, loss, steps=2, rate=0.05)
        options = SHORT | {"metric": "loss", "run": folder}
        return engine.fit(learner, tasks, val=val, test=test, **options)

    again()
    before = (folder / "result.json").read_bytes()
    for wrong, named in (
        ({"loss": lambda output, y: 2 * F.mse_loss(output, y)}, "loss"),
        ({"test": lambda i: waves(i + 5)}, "test"),
        ({"tasks": lambda i: waves(i + 5), "val": lambda i: waves(i + 9)}, "tasks"),
    ):
        with pytest.raises(UserError, match=f"is of a run with another {named}, by its values on"):
            again(**wrong)
    again(loss=lambda output, y: ((output - y) ** 2).mean())  # the same by another name
    assert (folder / "result.json").read_bytes() == before


def test_tasks_that_change_are_told_and_each_episode_has_as_many(tmp_path, capsys):
    def changing(i: int) -> Episode:
        return waves(torch.randint(1000, ()).item())

    engine.fit(mlp(), changing, val=waves, metric="loss", run=tmp_path / "run", **SHORT)
    assert "episode 0 of tasks is another each time it is made" in capsys.readouterr().out

    def fewer(i: int) -> Episode:
        return waves(i).slice(0, 3 if i == 2 else 4)

    for parts in ({"tasks": fewer, "val": waves}, {"tasks": waves, "val": fewer}):
        name = next(name for name, part in parts.items() if part is fewer)
        with pytest.raises(UserError, match=f"episode 2 of {name} has 3 tasks, and episode 0 4: g"):
            options = SHORT | {"eval_tasks": 12, "run": tmp_path / name, "metric": "loss"}
            engine.fit(mlp(), parts["tasks"], val=parts["val"], **options)


def test_tasks_of_ones_own_are_made_by_the_thread_that_draws_for_dropout(tmp_path):
    threads, states = set(), []

    def seeded(i: int) -> Episode:
        threads.add(threading.current_thread())
        torch.manual_seed(i)
        x = torch.rand(2, 20, 1)
        return Episode(x[:, :10], x[:, :10].sin(), x[:, 10:], x[:, 10:].sin())

    for name in "ab":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.3), nn.Linear(16, 1))
        learner = Learner(net, F.mse_loss, steps=2, rate=0.05)
        run = engine.fit(learner, seeded, val=seeded, metric="loss", run=tmp_path / name, **SHORT)
        states.append(learner.state_dict())
        assert run.cfg.prefetch == 0
    assert threads == {threading.main_thread()}
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    x, y = torch.rand(40, 1), torch.arange(40) % 4
    tasks = engine.Tasks((x, y), ways=2, shots=1, targets=1)
    net = Learner(nn.Linear(1, 2), F.cross_entropy, steps=1)
    run = engine.fit(net, tasks, val=tasks, run=tmp_path / "tasks", **SHORT)
    assert run.cfg.prefetch == 2


def test_what_is_not_to_be_learned_is_not_trained(tmp_path):
    normed = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    made = Learner(normed, F.mse_loss, steps=2)
    made.norm.requires_grad_(False)
    with pytest.raises(UserError, match="learner.norm does not require grad, and engine.fit"):
        fitted(made, tmp_path)
    made = Learner(Backbone(1, 8, 4, 1, 2), steps=2)
    made.theta.requires_grad_(False)
    with pytest.raises(UserError, match="learner.theta does not require grad"):
        fitted(made, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_validation_that_is_not_finite_is_told_and_loses_nothing(tmp_path):
    def far(i: int) -> Episode:
        episode = waves(-1 - i)
        if far.away:
            episode.target_y[:] = torch.inf
        return episode

    far.away, made = False, mlp()
    options = SHORT | {"metric": "loss"}
    engine.fit(made, waves, val=far, run=tmp_path, **options)
    with pytest.raises(UserError, match="a task's loss is NaN or infinite: the inner loop went"):
        far.away = True
        made.evaluate([far(0)], "loss")
    far.away, longer = False, options | {"epochs": 5}

    def tasks(i: int) -> Episode:
        far.away = i >= 12  # after the first of the new epochs has begun
        return waves(i)

    with pytest.raises(Diverged, match="epoch 4: a task's loss is NaN .* last good checkpoint is"):
        engine.fit(made, tasks, val=far, run=tmp_path, **longer)
    assert checkpoint.load(tmp_path / "latest.pt").epoch == 3


def test_what_chose_the_best_is_no_test(tmp_path):
    run = fitted(mlp(), tmp_path / "a")
    found = json.loads((run.folder / "result.json").read_text())
    assert found["split"] == "val" and found["made_by"]["torch"] == torch.__version__
    run = fitted(mlp(), tmp_path / "b", test=lambda i: waves(1000 + i))
    assert json.loads((run.folder / "result.json").read_text())["split"] == "test"
