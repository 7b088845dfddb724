"""The comparison with the authors' own code: what needs a checkout of it is skipped without one."""

import json
from pathlib import Path

import pytest
import torch

from bench import alike, implementations
from bench.baselines import htym
from bench.cases import Row, noise
from engine.config import Config
from engine.episodes import EpisodeSampler
from engine.errors import UserError

SMALL = dict(image_size=20, filters=4, stages=4, targets=2, tasks=2, precision="fp32")


@pytest.fixture
def checkout() -> None:
    if reason := htym.missing():
        pytest.skip(reason)


@pytest.mark.parametrize(
    ("folder", "words"),
    [("", "HTYM_DIR names no checkout of the authors' code"), ("{}", "has no few_shot_learning_")],
)
def test_without_a_checkout_it_says_so_and_is_skipped(folder, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HTYM_DIR", folder.format(tmp_path))
    assert words in implementations.missing("authors' code")
    assert implementations.missing("authors' code", "cuda") == "it runs on a CPU only"
    assert alike.main([str(tmp_path / "out"), "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("skipped: ") and words in out and out.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="github.com/AntreasAntoniou/HowToTrainYourMAMLPytorch"):
        alike.Pair(Config.of("maml++", "mini", **SMALL))


@pytest.mark.parametrize("arguments", [[], ["folder"], ["folder", "many"]])
def test_a_wrong_command_line_gets_the_usage(arguments, capsys):
    assert alike.main(arguments) == 2
    assert capsys.readouterr().err == f"{alike.USAGE}\n"


def test_a_configuration_under_their_names():
    """Their own for mini-ImageNet are those of `htym-head`, but for the rate that they name and do
    not read.
    """
    found = vars(htym.arguments(Config.of("htym-head", "mini")))
    theirs = {
        "dataset_name": "mini_imagenet_full_size",
        "batch_size": 2,
        "num_classes_per_set": 5,
        "cnn_num_filters": 48,
        "num_stages": 4,
        "max_pooling": True,
        "conv_padding": True,
        "norm_layer": "batch_norm",
        "per_step_bn_statistics": True,
        "learnable_bn_gamma": True,
        "learnable_bn_beta": True,
        "enable_inner_loop_optimizable_bn_params": False,
        "number_of_training_steps_per_iter": 5,
        "number_of_evaluation_steps_per_iter": 5,
        "task_learning_rate": 0.1,
        "learnable_per_layer_per_step_inner_loop_learning_rate": True,
        "second_order": True,
        "first_order_to_second_order_epoch": -1,
        "use_multi_step_loss_optimization": True,
        "multi_step_loss_num_epochs": 15,
        "meta_learning_rate": 0.001,
        "min_learning_rate": 0.001,
        "total_epochs": 100,
    }
    assert found == theirs | {"seed": 0, "use_cuda": False}
    found = htym.arguments(Config.of("maml++", "mini"))
    assert (found.task_learning_rate, found.batch_size, found.total_epochs) == (0.01, 4, 150)
    assert (found.first_order_to_second_order_epoch, found.min_learning_rate) == (49, 1e-5)
    found = htym.arguments(Config.of("maml", "omniglot"))
    assert found.dataset_name == "omniglot_dataset"  # and so no clamp
    assert found.use_multi_step_loss_optimization is False
    assert found.per_step_bn_statistics is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"negative_slope": 0.2}, "negative_slope 0.2"),
        ({"clamp": 1.0, "norm_eps": 1e-3}, "norm_eps 0.001, clamp 1.0"),
        ({"network": "resnet12"}, "network resnet12"),
        ({"norm_stats": "shared"}, "norm_weights per-step with norm_stats shared"),
    ],
)
def test_what_they_cannot_do_is_refused(change, words):
    with pytest.raises(UserError, match=f"the authors' code has no .*{words}"):
        htym.arguments(Config.of("maml++", "mini", **change))


def test_distances_are_those_of_the_worst_tensor():
    ours = {"network": {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}}
    theirs = {"network": {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([2.0])}}
    assert alike.apart(ours, theirs) == {"network": 0.5}
    assert alike.apart(ours, ours) == {"network": 0.0}
    zero = {"network": {name: torch.zeros_like(t) for name, t in ours["network"].items()}}
    assert alike.apart(ours, zero) == {"network": 5.0}
    shared, row = {"norm": {"w": torch.ones(1, 2)}}, {"norm": {"w": torch.ones(2)}}
    assert alike.apart(shared, row) == {"norm": 0.0}


def test_lines_show_means_of_both():
    rows = [
        {
            "kind": "train",
            "iteration": i + 1,
            "loss": [2.0 - i, 1.0],
            "accuracy": [0.25 * i, 0.5],
            "seconds": [1.0, 8.0],
            "gradients": {"network": 1e-3},
            "parameters": {"network": 1e-4},
        }
        for i in range(3)
    ]
    rows[-1]["errors"] = [{"network": 1e-5}, {"network": 2e-5}]
    assert alike.line(rows, 2) == (
        "3: mean loss 0.5000 1.0000, accuracy 0.3750 0.5000, seconds 1.0000 8.0000, "
        "gradients 1e-03, parameters 1e-04, our errors 1e-05, their errors 2e-05"
    )
    row = {"kind": "validation", "iteration": 3, "accuracy": [0.25, 0.5], "interval": 0.01}
    assert alike.line([*rows, row], 2) == "3: validation 25.00 50.00 ± 1.00 %"


@pytest.mark.parametrize("preset", ["htym-head", "htym-2019", "maml++", "maml"])
def test_both_learn_the_same_in_float64(preset: str, checkout):
    """An epoch an iteration: so the multi-step loss, its end, both orders and the annealing."""
    dataset = "folder" if preset == "htym-head" else "mini"
    cfg = Config.of(preset, dataset, epochs=6, iterations=1, **SMALL)
    tasks = EpisodeSampler.of(cfg, noise(cfg, classes=6, images=4), "train", 0)
    pair = alike.Pair(cfg, torch.float64)
    for i in range(cfg.epochs):
        row = pair.step(tasks.episode(i, cfg.tasks), exact=True)
        assert row["loss"][0] == pytest.approx(row["loss"][1], rel=1e-9)
        assert row["accuracy"][0] == pytest.approx(row["accuracy"][1], abs=1e-6)
        assert max(*row["gradients"].values(), *row["parameters"].values()) < 1e-8
        assert row["errors"][0] == {kind: 0.0 for kind in row["gradients"]}
        assert max(row["errors"][1].values()) < 1e-8


def test_a_comparison_goes_on(checkout, images: Path, tmp_path):
    flags = f"--dataset folder --data {images} --image-size 16 --filters 4 --stages 3 --ways 3"
    flags += " --steps 2 --tasks 2 --targets 2 --epochs 3 --iterations 2 --eval-tasks 2"
    flags = f"{flags} --log-every 1 --threads 1 --device cpu --precision fp32".split()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert alike.main([str(whole), "3", *flags]) == 0
    for count in ("2", "3"):
        assert alike.main([str(parts), count, *flags]) == 0
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in alike.read(f / "log.jsonl")]
        for f in (whole, parts)
    ]
    assert [(row["kind"], row["iteration"]) for row in rows[0]] == [
        ("train", 1), ("train", 2), ("validation", 2), ("train", 3), ("validation", 3)
    ]  # fmt: skip
    assert json.dumps(rows[0]) == json.dumps(rows[1])


def test_baselines_have_tensors_as_pytorch_lays_them_out():
    row = Row.of("omniglot 20w1s", tasks=1)
    for make in (implementations.TheLoop, implementations.TheVmap):
        theirs = make(row.config())
        tensors = [*theirs.batch, *theirs.baseline.network.values()]
        for tensor in tensors:
            assert tensor.stride() == torch.empty(tensor.shape).stride()
