"""Configuration: presets against the published protocols, flags, values, messages."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config
from engine.allowed import PATH
from engine.config import DATASETS, Config, default_run
from engine.errors import UserError
from engine.presets import PRESETS


def expect(cfg: Config, **values):
    assert {name: getattr(cfg, name) for name in values} == values


@pytest.mark.parametrize(
    ("dataset", "shots", "tasks"),
    [
        ("omniglot", 1, 16),
        ("omniglot", 5, 16),
        ("mini", 1, 4),
        ("mini", 5, 2),
    ],
)
def test_default_preset_is_the_protocol_of_the_paper(dataset, shots, tasks):
    expect(
        Config.resolve(["--dataset", dataset, "--shots", str(shots)]),
        preset="maml++",
        tasks=tasks,
        lr=1e-3,
        min_lr=1e-5,
        beta1=0.9,
        beta2=0.99,
        epochs=150,
        iterations=500,
        first_order_epochs=50,
        rates="learned",
        norm_weights="per-step",
        norm_stats="per-step",
        msl_epochs=10 if dataset == "omniglot" else 15,
        eval_tasks=600,
        filters=64 if dataset == "omniglot" else 48,
        steps=5,
        ensemble=5,
        rotations="classes" if dataset == "omniglot" else "none",
    )


@pytest.mark.parametrize("dataset", DATASETS)
def test_maml_differs_from_the_default_only_in_the_tricks(dataset):
    full, plain = (Config.of(name, dataset) for name in ("maml++", "maml"))
    expect(
        plain,
        msl_epochs=0,
        first_order_epochs=0,
        norm_weights="shared",
        norm_stats="shared",
        rates="fixed",
        min_lr=plain.lr,
    )
    tricks = {
        "msl_epochs",
        "first_order_epochs",
        "norm_weights",
        "norm_stats",
        "rates",
        "min_lr",
        "preset",
    }
    different = {k for k, v in full.to_dict().items() if plain.to_dict()[k] != v}
    assert different == tricks


@pytest.mark.parametrize(("preset", "task", "expected"), [
    ("htym-2019", {"dataset": "mini"},
     {"tasks": 4, "inner_rate": 0.01, "first_order_epochs": 11, "task_reduction": "sum"}),
    ("htym-2019", {"dataset": "mini", "shots": 5}, {"tasks": 2}),
    ("htym-2019", {"dataset": "omniglot", "ways": 20, "shots": 5},
     {"tasks": 8, "inner_rate": 0.1, "first_order_epochs": 0}),
    ("htym-2019", {"dataset": "omniglot", "ways": 20}, {"tasks": 16}),
    ("htym-head", {"dataset": "mini"},
     {"tasks": 2, "inner_rate": 0.1, "first_order_epochs": 0, "task_reduction": "mean"}),
    ("htym-head", {"dataset": "omniglot"}, {"tasks": 8, "inner_rate": 0.1}),
])  # fmt: skip
def test_reference_presets(preset, task, expected):
    omniglot = task["dataset"] == "omniglot"
    expect(
        Config.of(preset, **task),
        epochs=100,
        iterations=500,
        beta2=0.999,
        lr=1e-3,
        min_lr=1e-5 if omniglot else 1e-3,
        clamp=0.0 if omniglot else 10.0,
        targets=1 if omniglot else 15,
        negative_slope=0.01,
        msl_epochs=10 if omniglot else 15,
        rotations="augment" if omniglot else "none",
        **expected,
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_explicit_flags_win_over_every_preset(preset, dataset):
    argv = (
        f"--preset {preset} --dataset {dataset} --tasks 3 --steps 4 --msl-epochs 7 --min-lr 1e-4 "
        "--epochs 9"
    )
    expect(Config.resolve(argv.split()), tasks=3, steps=4, msl_epochs=7, min_lr=1e-4, epochs=9)


@pytest.mark.parametrize(("task", "expected"), [
    ({"dataset": "mini"},
     {"filters": 32, "inner_rate": 0.05, "clamp": 10 / 75, "targets": 15, "eval_targets": 1,
      "steps": 5, "eval_steps": 10, "tasks": 4, "downsample": "pool"}),
    ({"dataset": "mini", "shots": 5}, {"clamp": 10 / 15, "eval_targets": 5, "tasks": 4}),
    ({"dataset": "omniglot"},
     {"filters": 64, "inner_rate": 2.0, "clamp": 0.0, "targets": 1, "eval_targets": 1, "steps": 1,
      "eval_steps": 3, "tasks": 32, "downsample": "stride", "rotations": "augment"}),
    ({"dataset": "omniglot", "ways": 20, "shots": 5},
     {"inner_rate": 2.0, "targets": 5, "eval_targets": 5, "steps": 5, "eval_steps": 5,
      "tasks": 16}),
])  # fmt: skip
def test_the_protocol_of_maml_itself(task, expected):
    """Its rate and bound are of losses that are means, where its code has sums divided by S."""
    cfg = Config.of("finn-2017", **task)
    length = {"epochs": 120, "iterations": 500, "lr": 1e-3, "min_lr": 1e-3, "beta2": 0.999}
    same = {"method": "maml", "norm_gains": "fixed", "norm_eps": 1e-3, "negative_slope": 0.0}
    expect(cfg, **length, **same, rates="fixed", msl_epochs=0, **expected)
    assert default_run(cfg, "x").name.endswith("-finn-2017-maml-seed0")


def test_a_method_is_a_set_of_choices_that_flags_change():
    expect(Config.of(method="meta-sgd", steps=3), rates="per-parameter", steps=3, msl_epochs=0)
    expect(Config.of(method="meta-sgd"), steps=1, inner_rate=0.01, min_lr=1e-5, norm_stats="shared")
    expect(Config.of(method="anil", rates="learned"), adapt="head", rates="learned", steps=5)
    expect(Config.of(method="boil", inner_rate=0.5), adapt="body", rates="fixed", inner_rate=0.5)
    expect(Config.of("maml", "omniglot", method="fomaml", epochs=7), first_order_epochs=7)
    assert default_run(Config.of(method="anil"), "mini").name == "mini-5w1s-maml++-anil-seed0"


def test_schedules_shrink_with_the_epochs_so_that_a_short_run_reaches_second_order():
    expect(Config.of(epochs=30), first_order_epochs=10, msl_epochs=3)
    expect(Config.of(epochs=1), first_order_epochs=0, msl_epochs=1)
    expect(Config.of(epochs=30, first_order_epochs=30), first_order_epochs=30, msl_epochs=3)
    expect(Config.of("maml", epochs=30), first_order_epochs=0, msl_epochs=0)


def test_each_network_has_its_slope_and_another_is_honoured():
    expect(Config.of(), negative_slope=0.01)
    expect(Config.of(network="resnet12"), negative_slope=0.1, widths="64,160,320,640")
    other = "--network resnet12 --negative-slope 0 --widths 64,128,256,512"
    expect(Config.resolve(other.split()), negative_slope=0.0, widths="64,128,256,512")


def test_methods_whose_steps_have_the_rate_may_give_it_beside_weights():
    expect(Config.of(method="imaml", init="x", inner_rate=0.5), inner_rate=0.5)
    expect(Config.of(method="reptile", init="x", inner_rate=0.5), inner_rate=0.5)
    expect(Config.of(method="protonet", init="x"), inner_rate=0.01)


def test_without_annealing_the_end_follows_the_learning_rate():
    expect(Config.of("maml", lr=0.01), min_lr=0.01)
    expect(Config.of("htym-head", "mini", lr=0.01), min_lr=0.01)


@pytest.mark.parametrize(("argv", "words"), [
    ("--unknown 1", ["--unknown"]),
    ("--ways", ["--ways", "expected one argument"]),
    ("--way 5", ["--way"]),
    ("--ways five", ["--ways", "five"]),
    ("--ways 1", ["--ways is 1", ">= 2"]),
    ("--lr 0", ["--lr is 0.0", "> 0"]),
    ("--lr nan", ["--lr is nan"]),
    ("--inner-rate inf", ["--inner-rate is inf"]),
    ("--beta2 1", ["--beta2 is 1.0", "[0, 1)"]),
    ("--dataset cifar", ["--dataset is 'cifar'", "omniglot, mini, folder"]),
    ("--preset best", ["--preset is 'best'", "maml++"]),
    ("--channels 2", ["--channels is 2", "1, 3"]),
    ("--run=", ["--run is empty", "leave it out"]),
    ("--cache=", ["--cache is empty", "leave it out"]),
    ("--data=", ["--data is empty", "leave it out"]),
    ("--lr 1e-6", ["--min-lr is 1e-05", "1e-06"]),
    ("--image-size 15", ["--image-size is 15", "16"]),
    ("--image-size 9000000000000000000", ["--image-size is 9000000000000000000", "up to 8192"]),
    ("--filters 70000", ["--filters is 70000", "up to 65536"]),
    ("--data ~nobody-here/x", ["--data is ~nobody-here/x", "no user nobody-here", "./~nobody"]),
    ("--init=", ["--init is empty"]),
    ("--init x --inner-rate 0.5", ["--inner-rate is 0.5 with --init x, which has", "leave it out"]),
    ("--network resnet12 --widths 64,128", ["--widths is '64,128'", "as 64,160,320,640"]),
    ("--network resnet12 --widths 64,0,8,9", ["--widths is '64,0,8,9'", "from 1 to 9999"]),
    ("--widths 64,128,256,512", ["--widths is 64,128,256,512 with --network conv4"]),
    ("--network resnet12 --filters 32", ["--filters is 32 with --network resnet12"]),
    ("--network resnet12 --stages 3", ["--stages is 3 with --network resnet12"]),
    ("--network resnet12 --downsample stride", ["--downsample is stride with --network res"]),
    ("--method protonet --inner-rate 0.5", ["--inner-rate is 0.5 with --method protonet, which h"]),
    ("--method memory --norm-eps 0.1", ["--norm-eps is 0.1 with --method memory"]),
    ("--method metanet --norm-gains fixed", ["--norm-gains is fixed with --method metanet"]),
    ("--method siamese --network own --protocol inductive", ["--protocol is inductive with --met"]),
    ("--method protonet --protocol inductive", ["is inductive with --norm-statistics running, w"]),
    ("--steps 1 --msl-epochs 4", ["--msl-epochs is 4 with --steps 1, which has none"]),
    ("--method reptile --first-order-epochs 0", ["--first-order-epochs is 0 with --method rep"]),
    ("--optimizer sgd --beta2 0.5", ["--beta2 is 0.5 with --optimizer sgd, which has none"]),
    ("--halving-epochs 5", ["--halving-epochs is 5 with --annealing cosine, which has none"]),
    ("--preset maml --annealing linear", ["--annealing is linear with --min-lr equal to --lr"]),
    ("--split background", ["--split background", "mini"]),
    ("--dataset omniglot --channels 3", ["--channels is 3", "give 1"]),
])  # fmt: skip
def test_mistakes_are_one_line_with_the_value_and_what_is_allowed(argv, words):
    with pytest.raises(UserError) as caught:
        Config.resolve(argv.split())
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("field", "value", "words"), [
    ("ways", True, "ways is True, of type bool: it takes int"),
    ("ways", 5.0, "ways is 5.0, of type float: it takes int"),
    ("lr", "1", "lr is '1', of type str: it takes float"),
    ("epochs", "3", "epochs is '3', of type str: it takes int"),
    ("lr", False, "lr is False, of type bool: it takes float"),
    ("fresh", 1, "fresh is 1, of type int: it takes bool"),
    ("data", [], r"data is \[\], of type list: it takes str . None"),
    ("preset", None, "preset is None"),
    ("split", {"x": 1}, "split is .*, of type dict: it takes str"),
    ("run", "a\0b", "no path holds"),
])  # fmt: skip
def test_values_of_another_type_are_refused(field, value, words):
    with pytest.raises(UserError, match=words):
        Config.from_dict(Config.of().to_dict() | {field: value})


def test_small_images_are_allowed_where_nothing_is_pooled_away():
    Config.of("maml++", "folder", image_size=5, downsample="stride")
    Config.of("maml++", "folder", image_size=5, stages=2)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_saved_form_gives_the_same_configuration(preset, dataset):
    cfg = Config.of(preset, dataset, data="somewhere", seed=3)
    assert Config.from_dict(cfg.to_dict()) == cfg


def test_a_configuration_without_paths_is_the_same_run():
    cfg = Config.of(data="a", cache="b", run="c", seed=3)
    given = cfg.without_paths()
    expect(given, data=None, cache=None, run=None, seed=3)
    assert given.differences(cfg.to_dict()) == []


def test_a_field_that_an_older_version_had_not_takes_its_neutral_value():
    cfg = Config.of(threads=3, precision="fp32")
    older = {k: v for k, v in cfg.to_dict().items() if k not in ("threads", "precision")}
    assert Config.from_dict(older) == dataclasses.replace(cfg, threads=0, precision="auto")
    assert cfg.differences(older) == ["precision: auto -> fp32"]


def test_a_neutral_value_may_differ_from_the_default():
    made = [config._flag("help", group="run", **d) for d in ({"default": 5, "neutral": 0}, {})]
    assert [f.metadata["neutral"] for f in made] == [0, dataclasses.MISSING]


def test_every_field_with_a_default_has_a_neutral_value_that_is_allowed():
    for f in dataclasses.fields(Config):
        if f.default is not dataclasses.MISSING:
            dataclasses.replace(Config.of(), **{f.name: f.metadata["neutral"]})


def test_saved_form_of_a_newer_version_or_of_something_else_is_refused():
    values = Config.of().to_dict()
    for read in (Config.from_dict, Config.of().differences):
        with pytest.raises(UserError, match="does not know: colour; a newer version"):
            read(values | {"colour": 1})
        with pytest.raises(UserError, match="lacks ways, tasks"):
            read({k: v for k, v in values.items() if k not in ("ways", "tasks")})


def test_differences_name_only_what_changes_the_result():
    cfg = Config.of("maml++", "mini")
    other = dataclasses.replace(
        cfg, threads=2, prefetch=0, log_every=1, device="cpu", data="elsewhere", fresh=True
    )
    assert other.differences(cfg.to_dict()) == []
    other = dataclasses.replace(cfg, lr=0.002, steps=3)
    assert other.differences(cfg.to_dict()) == ["steps: 5 -> 3", "lr: 0.001 -> 0.002"]


def test_what_has_no_effect_is_no_difference():
    cfg = Config.of(method="memory")
    older = cfg.to_dict() | {"inner_rate": 0.5, "halving_epochs": 3}
    assert cfg.differences(older) == [] and cfg.differences(older | {"seed": 1}) == ["seed: 1 -> 0"]
    cfg = Config.of(norm_statistics="running", steps=1)
    assert cfg.differences(cfg.to_dict() | {"protocol": "inductive", "msl_epochs": 4}) == []
    assert cfg.other_protocol is None


def test_every_field_that_decides_the_result_is_printed():
    cfg = Config.of(data=None)
    shown = "\n".join(cfg.lines())
    for f in dataclasses.fields(cfg):
        path_or_switch = f.metadata["allowed"] == PATH or f.type == "bool" and f.metadata["free"]
        if not path_or_switch:
            assert f.name in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_run_folder_names_data_task_preset_and_seed():
    cfg = Config.of("maml", shots=5, seed=2)
    assert str(default_run(cfg, "mini-standin")) == "runs/mini-standin-5w5s-maml-seed2"
    assert default_run(cfg, "folder:a/b").name == "folder-a-b-5w5s-maml-seed2"


@given(
    ways=st.integers(-3, 30),
    lr=st.floats(allow_nan=True),
    stages=st.integers(-2, 9),
    size=st.integers(-5, 100),
)
def test_any_numbers_give_a_valid_configuration_or_a_clear_line(ways, lr, stages, size):
    argv = f"--dataset folder --ways {ways} --lr {lr!r} --stages {stages} --image-size {size}"
    try:
        cfg = Config.resolve(argv.split())
    except UserError as error:
        assert "--" in str(error) and "\n" not in str(error)
    else:
        assert cfg.ways >= 2 and 0 < cfg.min_lr <= cfg.lr < math.inf
        assert cfg.image_size >> cfg.stages >= 1


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--seed", "9" * 30),
        ("--ways", "9" * 400),
        ("--eval-tasks", "9" * 30),
        ("--lr", "1e300"),
        ("--threads", "5000"),
    ],
)
def test_numbers_that_torch_cannot_take_are_refused(flag, value):
    with pytest.raises(UserError, match=f"{flag} is .*: give a number"):
        Config.resolve([flag, value])
