"""Compares trainings in bfloat16 with trainings in float32, by their curves and tests.

    python -m bench.curves NAME [flags of engine.train, without --precision --seed --run]

Trains, validates and tests in each precision from each of three seeds, in folders of their own in
runs/curves/NAME, where the same command continues, and keeps it all in bench/results/curves.

Two runs of a seed share their first weights and training tasks, and all six their test tasks, but
rounding moves the winners of poolings and with them the course of a run. So what is judged is the
difference of the mean test accuracies over the seeds, bf16 - fp32, against the spread s of the
seeds within each precision. Its standard error is sqrt((s_fp32^2 + s_bf16^2) / 3), with four
degrees of freedom if both spread alike; it takes the runs of a seed for independent, so that it is
too large where they go together. Test tasks are not drawn again: all is said of the same ones.

bf16 is accepted when, for the best model and for the ensemble, the 95 % interval of the difference
(2.776 standard errors, by Student's t) contains zero and is at most three points to either side: a
comparison in whose noise a larger loss may hide is no evidence. The largest difference of the mean
validation curves is kept beside it, not judged.
"""

import sys
from dataclasses import fields
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev

from bench import results, tables, training
from engine.commandline import Parser, add_flags, parse
from engine.config import Config
from engine.errors import say
from engine.runs.interrupt import Interrupt, answered
from engine.runtime.machine import machine
from engine.train import train

FOLDER = results.FOLDER / "curves"
PRECISIONS = ("fp32", "bf16")
SEEDS = (0, 1, 2)
STUDENT = 2.776  # 97.5 % quantile at len(PRECISIONS) * (len(SEEDS) - 1) degrees of freedom
WIDEST = 0.03  # interval that can still accept
TESTS = ("best", "ensemble")


def main(argv: list[str]) -> int:
    """The command line; returns the exit code."""
    again = "stopped; the same command continues"
    return answered(lambda interrupt: compare(argv, interrupt), stopped=again)


def compare(argv: list[str], interrupt: Interrupt) -> None:
    """Trains what is left of the runs, then keeps and shows them."""
    name, runs = configurations(argv)
    for cfg in runs:
        with machine(cfg):  # a precision that is not to be had is met before any training
            pass
    for cfg in runs:
        train(cfg, interrupt)
        interrupt.check()
    path = FOLDER / f"{name}.json"
    kept = record(runs)
    results.save(kept, path)
    say(*tables.table(HEAD, _rows(kept)).splitlines(), f"saved in {path}")


def configurations(argv: list[str]) -> tuple[str, list[Config]]:
    """NAME and the runs in their order: one precision after the other, so that a machine that grows
    slower or faster does so for both."""
    parser = Parser(prog="python -m bench.curves", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", metavar="NAME", help="of the folder of runs and of the JSON")
    ours = {"precision", "seed", "run"}
    add_flags(parser, [f.name for f in fields(Config) if f.name not in ours])
    given = parse(parser, argv)
    name = given.pop("name")
    folder = Path("runs") / "curves" / name
    return name, [
        Config.of(**given, precision=p, seed=seed, run=str(folder / f"{p}-seed{seed}"))
        for seed in SEEDS
        for p in PRECISIONS
    ]


def record(runs: list[Config]) -> dict:
    """What to keep of finished runs."""
    config, _, result = training.read(Path(runs[0].run))
    settings = training.settings(config)
    found = {p: [_run(cfg) for cfg in runs if cfg.precision == p] for p in PRECISIONS}
    return {
        "machine": training.machine(config) | {"commit": results.commit("HEAD")},
        "config": {k: v for k, v in settings.items() if k not in ("precision", "seed")},
        "data": {name: result[name] for name in ("data", "identity")},
        "runs": found,
        "comparison": comparison(found),
    }


def _run(cfg: Config) -> dict:
    _, rows, result = training.read(Path(cfg.run))
    seconds = [row["seconds_per_iteration"] for row in rows if row["kind"] == "train"]
    return {
        "seed": cfg.seed,
        "validation": [row["accuracy"] for row in rows if row["kind"] == "validation"],
        **{test: result[test] for test in TESTS},
        "seconds_per_iteration": median(seconds),
    }


def comparison(runs: dict[str, list[dict]]) -> dict:
    """Of the runs of each precision, in the order of the seeds."""
    tests = {
        test: verdict(*([run[test]["accuracy"] for run in runs[p]] for p in PRECISIONS))
        for test in TESTS
    }
    by_epoch = [b - a for a, b in zip(*(_curve(runs[p]) for p in PRECISIONS), strict=True)]
    epoch, difference = max(enumerate(by_epoch, 1), key=lambda entry: abs(entry[1]))
    return {
        **tests,
        "validation": {"epoch": epoch, "difference": difference},
        "accepted": all(test["accepted"] for test in tests.values()),
    }


def verdict(fp32: list[float], bf16: list[float]) -> dict:  # accuracies in the order of the seeds
    """The difference of the means, its standard error and 95 % interval, and what follows."""
    spread = stdev(fp32), stdev(bf16)
    difference = fmean(bf16) - fmean(fp32)
    error = sqrt(sum(s * s for s in spread) / len(SEEDS))
    return {
        "mean": dict(zip(PRECISIONS, (fmean(fp32), fmean(bf16)), strict=True)),
        "spread": dict(zip(PRECISIONS, spread, strict=True)),
        "by_seed": [b - a for a, b in zip(fp32, bf16, strict=True)],
        "difference": difference,
        "standard_error": error,
        "interval": STUDENT * error,
        "accepted": abs(difference) <= STUDENT * error <= WIDEST,
    }


def _curve(runs: list[dict]) -> list[float]:
    """Validation by epoch, mean over seeds."""
    return [fmean(epoch) for epoch in zip(*(run["validation"] for run in runs), strict=True)]


HEAD = [
    "data, task", "iterations × tasks", "precision", "validation by epoch", "best model",
    "difference", "ensemble", "difference", "accepted", "s/iteration",
]  # fmt: skip


def text() -> str:
    """For the README, of the comparisons that are kept: a row for each precision, and where."""
    kept = [results.load(path) for path in sorted(FOLDER.glob("*.json"))]
    if not kept:
        return ""
    rows = tables.table(HEAD, [row for each in kept for row in _rows(each)])
    return "\n".join([rows, *dict.fromkeys(_where(each["machine"]) for each in kept), ""])


def _where(machine: dict) -> str:
    commit = f", commit {machine['commit'][:8]}" if "commit" in machine else ""
    return f"By {machine['processor']}, torch {machine['torch']}{commit}."


def _rows(kept: dict) -> list[list[str]]:
    task = training.task(kept["data"]["data"], kept["config"])
    return [[*task, precision, *_cells(kept, precision)] for precision in PRECISIONS]


def _cells(kept: dict, precision: str) -> list[str]:
    runs, found, tests = kept["runs"][precision], kept["comparison"], []
    for test in map(found.get, TESTS):
        difference = f"{100 * test['difference']:+.2f} ± {100 * test['interval']:.2f}"
        mean, spread = (100 * test[what][precision] for what in ("mean", "spread"))
        tests += [f"{mean:.2f} ± {spread:.2f} %", difference if precision == "bf16" else "–"]
    return [
        " ".join(f"{100 * accuracy:.1f}" for accuracy in _curve(runs)),
        *tests,
        ("yes" if found["accepted"] else "no") if precision == "bf16" else "–",
        f"{median(run['seconds_per_iteration'] for run in runs):.3f}",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
