"""Trainings in bfloat16 are judged by the spread of their seeds, and continue when stopped."""

import signal

import pytest

import kernels
from bench import curves, report, results
from engine.runs.interrupt import Stopped
from kernels import native
from tests.test_bench_report import cells
from tests.tiny import FLAGS, RATE, make_images


def run(seed: int, *accuracies: float, seconds: float = 1.0) -> dict:
    """Of two epochs; the last accuracy is that of both tests."""
    test = {"accuracy": accuracies[-1], "interval": 0.01}
    return {
        "seed": seed,
        "validation": list(accuracies[:-1]),
        "best": test,
        "ensemble": test,
        "seconds_per_iteration": seconds,
    }


FP32 = [run(0, 0.3, 0.5, 0.50), run(1, 0.4, 0.5, 0.51), run(2, 0.5, 0.5, 0.52)]
BF16 = [
    run(0, 0.3, 0.5, 0.52, seconds=0.25),
    run(1, 0.4, 0.5, 0.49, seconds=0.5),
    run(2, 0.2, 0.44, 0.49, seconds=2.0),
]


def test_a_difference_is_measured_by_the_spread_of_the_seeds():
    found = curves.verdict([0.50, 0.51, 0.52], [0.52, 0.49, 0.49])
    assert found["mean"] == pytest.approx({"fp32": 0.51, "bf16": 0.50})
    assert found["spread"] == pytest.approx({"fp32": 0.01, "bf16": 0.0003**0.5})
    assert found["by_seed"] == pytest.approx([0.02, -0.02, -0.03])
    assert found["difference"] == pytest.approx(-0.01)
    assert found["standard_error"] == pytest.approx((0.0004 / 3) ** 0.5)
    assert found["interval"] == pytest.approx(0.03206, abs=1e-5)


@pytest.mark.parametrize(
    ("bf16", "accepted"),
    [
        ([0.50, 0.51, 0.52], True),
        ([0.52, 0.50, 0.51], True),  # the order of the seeds is no matter
        ([0.49, 0.50, 0.51], True),
        ([0.47, 0.48, 0.49], False),  # less, beyond the spread
        ([0.53, 0.54, 0.55], False),  # more: then it is not float32's either
        ([0.48, 0.51, 0.54], False),  # the same mean, in too much noise
    ],
)
def test_acceptance_needs_a_small_difference_and_little_noise(bf16, accepted):
    assert curves.verdict([0.50, 0.51, 0.52], bf16)["accepted"] == accepted


def test_both_tests_are_to_be_accepted_and_the_farthest_epoch_is_told():
    found = curves.comparison({"fp32": FP32, "bf16": FP32})
    assert found["accepted"] and found["validation"] == {"epoch": 1, "difference": 0}
    lower = [r | {"ensemble": {"accuracy": r["ensemble"]["accuracy"] - 0.1}} for r in FP32]
    found = curves.comparison({"fp32": FP32, "bf16": lower})
    assert found["best"]["accepted"] and not found["ensemble"]["accepted"]
    assert not found["accepted"]
    found = curves.comparison({"fp32": FP32, "bf16": BF16})
    assert found["validation"] == {"epoch": 1, "difference": pytest.approx(-0.1)}


def test_the_readme_shows_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "FOLDER", tmp_path)
    empty = "a\n<!-- curves -->\n<!-- /curves -->\nb\n"
    assert report.with_kept(empty) == empty
    runs = {"fp32": FP32, "bf16": BF16}
    config = {"ways": 5, "shots": 1, "epochs": 2, "iterations": 500, "tasks": 2}
    kept = {"data": {"data": "mini"}, "config": config, "runs": runs}
    kept["machine"] = {"processor": "a processor", "torch": "2.6", "commit": 40 * "a"}
    results.save(kept | {"comparison": curves.comparison(runs)}, tmp_path / "mini.json")
    shown = report.with_kept(empty)
    fp32, bf16 = cells(shown)[4:6]
    task = ["mini, 5-way 1-shot", "1,000 × 2"]
    one = ["51.00 ± 1.00 %", "–"]
    assert fp32 == [*task, "fp32", "40.0 50.0", *one, *one, "–", "1.000"]
    one = ["50.00 ± 1.73 %", "-1.00 ± 3.21"]
    assert bf16 == [*task, "bf16", "30.0 48.0", *one, *one, "no", "0.500"]
    assert report.with_kept(shown) == shown
    assert "\nBy a processor, torch 2.6, commit aaaaaaaa.\n" in shown


@pytest.fixture
def flags(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curves, "FOLDER", tmp_path / "kept")
    images, cache = make_images(tmp_path / "tiny"), tmp_path / "cache"
    return ["tiny", *FLAGS, *RATE, "--epochs", "2", "--data", str(images), "--cache", str(cache)]


def test_it_continues_and_keeps_curve_test_and_time_of_every_run(
    flags, tmp_path, monkeypatch, capsys
):
    if reason := kernels.refusal("bf16"):
        pytest.skip(reason)
    trained, train = [], curves.train

    def stopped_after_three(cfg, interrupt):
        train(cfg, interrupt)
        trained.append((cfg.seed, cfg.precision))
        if len(trained) == 3:
            raise Stopped(signal.SIGINT)

    monkeypatch.setattr(curves, "train", stopped_after_three)
    assert curves.main(flags) == 130
    assert capsys.readouterr().err == "Ctrl-C: stopped; the same command continues\n"
    assert trained == [(0, "fp32"), (0, "bf16"), (1, "fp32")] and not curves.FOLDER.exists()

    assert curves.main(flags) == 0
    shown = capsys.readouterr().out
    assert shown.count("already finished") == 3
    kept = results.load(curves.FOLDER / "tiny.json")
    table, where = curves.text().split("\n\n")
    assert table in shown and kept["machine"]["commit"][:8] in where
    assert str(tmp_path) not in str(kept) and kept["config"]["ways"] == 3
    assert not {"seed", "precision"} & kept["config"].keys()
    assert kept["comparison"] == curves.comparison(kept["runs"])
    for precision, runs in kept["runs"].items():
        assert [found["seed"] for found in runs] == [0, 1, 2]
        for found in runs:
            folder = tmp_path / "runs" / "curves" / "tiny" / f"{precision}-seed{found['seed']}"
            saved = results.load(folder / "config.json")
            assert (saved["precision"], saved["seed"]) == (precision, found["seed"])
            result = results.load(folder / "result.json")
            assert found["best"] == result["best"] and found["ensemble"] == result["ensemble"]
            assert len(found["validation"]) == 2 and found["seconds_per_iteration"] > 0


def refused(argv: list[str], capsys, words: str) -> None:
    assert curves.main(argv) == 2
    out, err = capsys.readouterr()
    assert all(line.startswith("kernels checked on ") for line in out.splitlines())
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_a_processor_without_bfloat16_is_told_before_any_training(flags, tmp_path, capsys):
    if native.module is None:
        pytest.skip(f"native module: {native.reason}")
    try:
        native.module.limit_isa(native.module.Isa.avx2)
        refused(flags, capsys, "native takes products in bf16 where")
    finally:
        native.module.limit_isa(native.module.Isa.amx)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--backend", "plain"], "plain has no passes"),
        (["--unroll", "autograd"], "--precision is bf16 with --unroll autograd"),
        (["--precision", "bf16"], "there is no flag --precision: see"),
        (["--seed", "3"], "there is no flag --seed: see"),
        (["--run", "here"], "there is no flag --run: see"),
    ],
)
def test_what_cannot_be_compared_is_refused(more, words, flags, tmp_path, capsys):
    refused([*flags, *more], capsys, words)
    assert not (tmp_path / "runs").exists()
