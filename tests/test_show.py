"""``engine.train --show``: the settings with their sources, the costs, and that nothing is made."""

import json
import os
import re

import pytest
import torch

from engine import meta, show, train
from engine.config import Config
from engine.settings import resolve
from engine.show import Cost, Part
from tests.tiny import flags

CPU = torch.device("cpu")


def small(**options) -> Config:
    values = dict(image_size=16, filters=4, stages=2, steps=2, ways=3, targets=2, tasks=2)
    return Config.of(dataset="folder", **(values | options))


def test_it_says_where_each_setting_comes_from_and_makes_nothing(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"filters": 4, "ways": 4, "dataset": "folder"}))
    argv = [*flags(images, tmp_path / "run"), "--config", str(file), "--preset", "maml", "--show"]
    del argv[(at := argv.index("--filters")) : at + 2]
    assert train.main(argv) == 0
    out = capsys.readouterr().out
    settings, _, _ = out.partition(" parameters are learned")
    rows = dict(re.findall(r"^  (\w+) +(\S+ .*)$", settings, re.MULTILINE))
    shown = {name: row.split(maxsplit=1) for name, row in rows.items()}
    cfg = resolve(argv).cfg
    for name, value in cfg.to_dict().items():
        assert shown[name][0] == str(value), name
    expected = {"ways": "flag", "filters": str(file), "lr": "preset maml", "init": "default"}
    expected |= {"preset": "flag", "dataset": "flag", "norm_stats": "preset maml"}
    assert {name: shown[name][1] for name in expected} == expected
    assert re.search(r"the whole run: \d+\.\d+ hours, of 3 epochs of 4 iterations", out)
    assert re.search(r"^an iteration of 2 tasks on cpu by 1 thread in \w+:$", out, re.MULTILINE)
    assert "order)\nmemory: " in out and "a validation of 4 tasks: " in out
    assert os.listdir(tmp_path) == ["own.json"]


@pytest.mark.parametrize(
    ("preset", "options", "parts"),
    [
        ("maml++", {}, [(0, 15, 5, 1), (15, 50, 1, 1), (50, 150, 1, 2)]),
        ("maml++", {"msl_epochs": 60}, [(0, 50, 5, 1), (50, 60, 5, 2), (60, 150, 1, 2)]),
        ("maml++", {"msl_epochs": 50}, [(0, 50, 5, 1), (50, 150, 1, 2)]),
        ("maml++", {"epochs": 2, "first_order_epochs": 9, "msl_epochs": 9}, [(0, 2, 5, 1)]),
        ("maml", {"epochs": 2**62}, [(0, 2**62, 1, 2)]),
    ],
)
def test_the_parts_of_a_schedule(preset, options, parts):
    cfg = Config.of(preset, **options)
    found = show.parts_of(cfg)
    assert [(p.epochs.start, p.epochs.stop, p.losses, p.order) for p in found] == parts
    if cfg.epochs < 200:
        for part in found:
            for epoch in part.epochs:
                losses = sum(weight != 0 for weight in meta.loss_weights(epoch, cfg))
                order = 1 + meta.second_order(epoch, cfg)
                assert (losses, order) == (part.losses, part.order)


def test_hours_are_of_all_iterations_validations_and_the_test():
    cfg = small(epochs=10, iterations=100, eval_tasks=50, ensemble=3)
    parts = [Part(range(0, 4), 2, 1, 0.5), Part(range(4, 10), 1, 2, 2.0)]
    found = Cost(parts, 0.1, 300 * 2**20, 200 * 2**20)
    assert found.seconds(cfg) == pytest.approx(400 * 0.5 + 600 * 2.0 + (10 + 3 + 1) * 50 * 0.1)
    running = small(epochs=10, iterations=100, eval_tasks=50, ensemble=3, norm_statistics="running")
    assert found.seconds(cfg) - found.seconds(running) == pytest.approx(50 * 0.1)
    lines = show.report(cfg, CPU, found)
    assert "  epochs 1 to 4: 0.500 s (loss after every step, first order)" in lines
    assert "  epochs 5 to 10: 2.000 s (loss after the last step, second order)" in lines
    assert any(line.startswith("memory: 300 MiB at the peak, 200 MiB before") for line in lines)
    assert "a validation of 50 tasks: 5.0 s" in lines
    assert lines[-1].startswith("the whole run: 0.41 hours, of 10 epochs of 100 iterations")
    short = found._replace(parts=[Part(range(2, 3), 1, 1, 0.25)])
    assert "  epoch 3: 0.250 s (loss after the last step, first order)" in show.report(
        cfg, CPU, short
    )
    unknown = show.report(cfg, CPU, found._replace(memory=None, before=None))
    assert "memory: this system does not say" in unknown


@pytest.mark.parametrize("rotations", ["none", "classes", "augment"])
def test_the_iterations_of_every_part_are_taken(rotations, monkeypatch):
    taken, step = [], meta.meta_step

    def counted(state, episode, cfg, *model):
        taken.append((state.iteration // cfg.iterations, tuple(episode.target_x.shape)))
        return step(state, episode, cfg, *model)

    monkeypatch.setattr(meta, "meta_step", counted)
    cfg = small(rotations=rotations, epochs=9, msl_epochs=2, first_order_epochs=3, iterations=100)
    found = show.cost(cfg, CPU)
    assert {epoch for epoch, _ in taken} == {0, 2, 3}
    assert {shape for _, shape in taken} == {(2, 6, 3, 16, 16)}
    assert len(taken) == 3 * (1 + show.ITERATIONS)
    assert all(part.seconds > 0 for part in found.parts) and found.task > 0
    linux = os.path.exists("/proc/self/status")
    assert found.memory >= found.before > 2**20 if linux else found.memory is None


def test_a_long_iteration_is_timed_once(monkeypatch):
    monkeypatch.setattr(show, "SECONDS", 0.0)
    taken, step = [], meta.meta_step
    monkeypatch.setattr(meta, "meta_step", lambda *a: taken.append(a) or step(*a))
    show.cost(small(epochs=1, msl_epochs=0), CPU)
    assert len(taken) == 2


@pytest.mark.parametrize("rates", ["learned", "fixed"])
def test_parameters_are_those_of_the_state(rates):
    cfg = small(rates=rates)
    theta, norm, inner = (tensor.numel() for tensor in meta.init_state(cfg).params)
    learned = theta + norm + (inner if rates == "learned" else 0)
    line = show.parameters(cfg)
    assert line.startswith(f"{learned} parameters are learned: {theta} weights, {norm} gains")
    assert (f"({inner} are fixed)" in line) is (rates == "fixed")
