"""The page of a GPU run and the README say what was measured, and whether it is enough."""

import pytest

from bench import report, results
from bench.gpu import report as gpu
from bench.gpu import sections
from bench.gpu.rows import GOALS
from tests.test_bench_report import cells

MINI, LAST, OMNIGLOT, FIVE = GOALS
MIB = 2**20


def check(error: float, budget: float, **changes) -> dict:
    part = {"error": error, "budget": budget, "worst": "a", "within": error <= budget}
    return {"parts": {"fwd": part}, "repeats": True, "replayed": True, "call": 0} | changes


def played(row, **milliseconds) -> dict:
    rounds = {name.replace("_", ", "): [1e-3 * m] for name, m in milliseconds.items()}
    return {"row": vars(row), "rounds": rounds, "absent": {}, "flops": 1e9, "call": 0}


def time(seconds: float, flops: float, bytes: float) -> dict:
    return {"seconds": seconds, "flops": flops, "bytes": bytes}


RUN = {
    "name": "a-gpu",
    "device": "cuda",
    "quick": False,
    "calls": [
        {"date": "2025-01-02T03:04:05+00:00", "commit": "0123456789", "changed": False},
        {"date": "2025-01-03T03:04:05+00:00", "commit": "0123456789", "changed": True},
    ],
    "parts": {
        "environment": {
            "machine": {
                "gpu": "A GPU",
                "torch": "2.11.0",
                "triton": "3.6.0",
                "cuda": "13.0",
                "nvidia-smi": {"driver_version": "580.1", "clocks.max.sm": "1980 MHz"},
            },
            "tf32": {"per_second": 400e12},
            "copy": {"per_second": 4e12},
        },
        "kernels": {
            "conv-mini": check(1e-7, 2e-7),
            "passes": check(3e-3, 2e-3),
            "update": check(1e-7, 2e-7, repeats=False),
            "native": check(1.0, 2e-7, replayed=False),
        },
        "gradients": {
            "triton tf32": check(1e-3, 2e-3, free=0.5, bends={"rounded": 1, "apart": 0}),
            "golden files": {"files": []},
        },
        "bits": {"mini tf32": {"same": True, "said": "the same bits over 5 iterations"}},
        "profile": {
            "mini": {
                "graph": dict(kernels=180, copies=3, span=900.0, busy=810.0, longest_gap=2.0)
                | {"by_name": {"conv": [100, 799.0], "sum": [79, 0.5], "one": [1, 0.5]}},
                "eager": dict(kernels=180, copies=3, span=5000.0, busy=810.0, longest_gap=99.0),
                "load": {"clocks.sm": "1755 MHz", "power.draw": "512.30 W"},
            },
        },
        "tune": {
            "conv_fwd a": {"default": 2e-5, "best": 1e-5, "config": {"BM": 64, "BN": 32}},
            "conv_fwd b": {"default": 2e-5, "best": 1.99e-5, "config": None},
            "conv_fwd c": {"failed": "ValueError: no"},
        },
        "ops": {
            "passes": {
                "op": "passes",
                "case": "mini support",
                "shape": "4 × 5",
                "backend": "triton",
                "precision": "tf32",
                "times": {
                    "fwd": time(1e-3, 200e9, 1e9),
                    "bwd": time(2e-3, 200e9, 8e9),
                    "tan": time(4e-3, 400e9, 8e9),
                },
            }
        },
        "alone": {"mini": played(MINI, ours_tf32=4.0, ours_bf16=3.5)},
        "iterations": {
            "mini loop": played(MINI, ours_tf32=5.0, loop=150.0),
            "mini JAX": {"left_out": "the package jax is not installed"},
            "last alone": played(LAST, ours_tf32=2.0) | {"absent": {"ours, bf16": "no graph"}},
        },
        "networks": {
            "ResNet": {
                "case": "ResNet, MSL",
                "rounds": {"ours": [0.002], "ours, launched anew": [0.01], "loop": [0.05]},
                "graphs": 1,
            },
        },
        "memory": {
            "mini": {
                "row": vars(MINI),
                "implementation": "ours, tf32",
                "allocated": 100 * MIB,
                "reserved": 200 * MIB,
            }
        },
        "training": {
            "seed 0": {
                "seconds": 250.0,
                "best": {"accuracy": 0.97, "interval": 0.002},
                "ensemble": {"accuracy": 0.976, "interval": 0.002},
            },
            "seed 1": {"unfinished": True, "seconds": 100.0},
        },
    },
}


def test_a_page_says_where_it_was_measured_and_what_is_possible_there():
    page = gpu.page(RUN)
    where = "A GPU, torch 2.11.0, triton 3.6.0, cuda 13.0, driver 580.1, at most 1980 MHz, commit "
    commits = "01234567, 01234567 with uncommitted changes, 2025-01-03: `python -m bench.gpu`\n"
    assert where + commits in page
    assert "tf32 product 400.0 TFLOP/s, copy of memory 4.00 TB/s.\n" in page
    dry = sections.machine(RUN | {"device": "cpu", "quick": True})
    assert "2025-01-03, a quick run, a dry run: " in dry


def test_networks_of_one_s_own_are_by_turns_with_the_loop():
    assert ["ResNet, MSL", "2.00", "10.00", "50.00 (25.0×)", "1"] in cells(sections.networks(RUN))
    assert sections.networks({"parts": {}}) == ""


def test_errors_are_judged_by_their_budgets_and_bits():
    rows = cells(gpu.page(RUN))
    assert ["conv-mini", "1e-07 (2e-07)", "yes", "yes", "–", "–"] in rows
    assert ["passes", "3e-03 (2e-03) TOO MUCH", "yes", "yes", "–", "–"] in rows
    assert ["update", "1e-07 (2e-07)", "NO", "yes", "–", "–"] in rows
    assert ["native", "1e+00 (2e-07)", "yes", "no", "–", "–"] in rows
    assert ["triton tf32", "1e-03 (2e-03)", "yes", "yes", "1 (0)", "5e-01"] in rows
    said = sections.verdict(RUN)
    otherwise = {"a": check(1e-7, 2e-7, bends={"rounded": 1, "apart": 1})}
    assert sections.verdict({"parts": {"passes": otherwise}}).startswith("0 of 1 ops")
    assert said.startswith("2 of 4 ops, passes and meta-gradients are within twice")
    assert said.endswith("; 1 of 1 captured iterations are the eager ones.\n")


def test_the_console_is_told_the_verdict_and_what_failed():
    found = gpu.summary(RUN)
    assert found == [sections.verdict(RUN).strip(), "1 failed; the same command tries again"]
    assert gpu.summary(RUN | {"parts": {}}) == []


def test_iterations_are_held_against_their_goals():
    rows = cells(sections.iterations(RUN))
    mini, last = (f"mini 5w1s, 4 tasks, {loss}, second order" for loss in ("MSL", "last"))
    assert ["ms an iteration", "ours, tf32", "ours, bf16", "loop"] in rows
    assert [mini, "4.50", "3.50", "150.00 (30.0×)"] in rows
    assert [last, "2.00", "–", "–"] in rows
    assert [f"{mini}, tf32", "4.50 ms", "≤ 5.0 ms", "yes"] in rows
    assert [f"{mini}, bf16", "3.50 ms", "≤ 3.0 ms", "no"] in rows
    assert [f"{mini}, against loop", "30.0×", "≥ 25×", "yes"] in rows
    assert [f"{last}, tf32", "2.00 ms", "≤ 1.8 ms", "no"] in rows
    assert "against JAX" not in sections.iterations(RUN)
    assert "≤" not in sections.iterations(RUN | {"quick": True})


def test_launches_rates_memory_and_tuning_have_tables():
    rows = cells(gpu.page(RUN))
    assert ["mini, graph", "180", "3", "900", "10 %", "2.0"] in rows
    assert "mini: clocks.sm 1755 MHz, power.draw 512.30 W\n" in gpu.page(RUN)
    assert ["conv", "100", "799.0", "99.9 %"] in rows
    assert ["2 others", "80", "1.0", "0.1 %"] in rows and len([r for r in rows if "sum" in r]) == 0
    assert ["mini, eager", "180", "3", "5,000", "84 %", "99.0"] in rows
    shares = ["1,000.0 (50, 25)", "2,000.0 (25, 100)", "4,000.0 (25, 50)"]
    assert ["passes mini support, triton tf32", "4 × 5", *shares] in rows
    assert ["mini 5w1s, 4 tasks, MSL, second order", "100 (200)"] in rows
    assert ["conv_fwd a", "20.0", "10.0", "BM=64 BN=32"] in rows
    assert ["conv_fwd b", "20.0", "19.9", "–"] in rows


def test_what_was_left_out_or_failed_is_told():
    page = gpu.page(RUN)
    assert "- tune, conv_fwd c: FAILED, ValueError: no\n" in page
    assert "- iterations, mini JAX: the package jax is not installed\n" in page
    assert page.count("- iterations: ours, bf16, no graph\n") == 1


@pytest.mark.parametrize(
    ("seconds", "accuracy", "reached"),
    [(250.0, 0.976, "yes"), (301.0, 0.976, "no"), (250.0, 0.973, "no")],
)
def test_a_training_is_to_be_fast_and_as_good_as_the_paper(seconds, accuracy, reached):
    test = {"accuracy": accuracy, "interval": 0.002}
    seed = {"seconds": seconds, "best": test, "ensemble": test}
    (row,) = cells(sections.training(RUN | {"parts": {"training": {"seed 0": seed}}}))[2:]
    tests = [f"{100 * accuracy:.2f} ± 0.20 %"] * 2
    assert row == ["seed 0", *tests, f"{seconds:.0f}", reached]
    quick = RUN | {"quick": True, "parts": {"training": {"seed 0": seed}}}
    assert cells(sections.training(quick))[2][-1] == "shortened"


def test_unfinished_trainings_are_shown_as_such():
    assert ["seed 1", "–", "–", "100", "unfinished"] in cells(sections.training(RUN))


def test_the_readme_shows_runs_of_a_gpu_alone(tmp_path, monkeypatch):
    folder = tmp_path / "bench" / "results" / "gpu"
    monkeypatch.setattr(gpu, "FOLDER", folder)
    empty = "a\n<!-- gpu -->\n<!-- /gpu -->\nb\n"
    not_yet = report.with_kept(empty)
    assert "Not measured yet: no GPU was at hand." in not_yet
    results.save(RUN | {"device": "cpu"}, folder / "dry.json")
    assert report.with_kept(not_yet) == not_yet
    results.save(RUN, folder / "one.json")
    shown = report.with_kept(not_yet)
    assert "Not measured" not in shown and shown.endswith("<!-- /gpu -->\nb\n")
    assert "A GPU, torch 2.11.0" in shown and "2 of 4 ops" in shown and "150.00 (30.0×)" in shown
    assert "[results/gpu/one.md](results/gpu/one.md)" in shown
    assert report.with_kept(shown) == shown


def test_an_empty_run_has_an_empty_page():
    page = gpu.page(RUN | {"parts": {}})
    assert page.startswith("# a-gpu\n\nan unknown machine, commit 01234567") and "##" not in page
