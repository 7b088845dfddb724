"""Seconds an iteration of each method beside one of MAML++, and what its convolutions count to.

    python -m bench.methods [METHOD ...] [--json FILE]

mini-ImageNet's 5-way 1-shot tasks, two of them, on random images; MAML++ with the multi-step loss
in second order. The two take turns in one process. A count is in forward passes of one image: its
gradient is 2 more, the tangent of both another 6. Methods with networks or tasks of their own have
none.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench import results, tables
from engine.config import Config
from engine.methods import METHODS
from engine.runtime.machine import machine, settled
from engine.tables.timing import ROUNDS, turns

# Passes of K steps with n support and m target images; `lstm`'s rule is a fifth of its passes.
COUNTS: dict[str, Callable[[Config, int, int], float]] = {
    "maml++": lambda cfg, n, m: cfg.steps * (9 * n + 3 * m),
    "maml": lambda cfg, n, m: 9 * cfg.steps * n + 3 * m,
    "fomaml": lambda cfg, n, m: 3 * cfg.steps * n + 3 * m,
    "meta-sgd": lambda cfg, n, m: 9 * cfg.steps * n + 3 * m,
    "anil": lambda cfg, n, m: 3 * (n + m),
    "boil": lambda cfg, n, m: 9 * cfg.steps * n + 3 * m,
    "protonet": lambda cfg, n, m: 3 * (n + m),
    "matching": lambda cfg, n, m: 3 * (n + m),
    "protomaml": lambda cfg, n, m: 9 * cfg.steps * n + 3 * m + 3 * n,
    "reptile": lambda cfg, n, m: 3 * cfg.steps * cfg.inner_batch,
    "imaml": lambda cfg, n, m: 3 * (cfg.steps + 1) * n + 6 * cfg.cg_steps * n + 3 * m,
    "lstm": lambda cfg, n, m: 1.2 * (3 * cfg.steps * n + 3 * m),
}
BASE = "maml++"
HEAD = ["method", "inner steps", "s", "s, MAML++", "ratio", "counted", "of the count"]


def config(method: str, **given: Any) -> Config:
    """Of an iteration as a training ends with: in second order where the method has one."""
    task = {"ways": 5, "shots": 1, "tasks": 2, "epochs": 1} | given
    schedule = {"msl_epochs": 1} if method == BASE else {}
    if "first_order_epochs" not in {*METHODS[method].fixed, *METHODS[method].ignored({})}:
        schedule["first_order_epochs"] = 0
    return Config.of("maml++", "mini", method=method, **task | schedule)


def counted(cfg: Config) -> float:
    """In iterations of MAML++ on the same tasks."""
    base = config(BASE)
    n, m = base.ways * base.shots, base.ways * base.targets
    return COUNTS[cfg.method](cfg, n, m) / COUNTS[BASE](base, n, m)


def measured(configs: tuple[Config, ...]) -> list[float]:
    """Median seconds of an iteration of each, by turns; the first turn does not count."""
    seconds: list[list[float]] = [[] for _ in configs]
    with machine(configs[0]) as device, contextlib.ExitStack() as stack:
        last = [[*turns(settled(cfg, device, {}), device, stack)][-1][1] for cfg in configs]
        for number in range(ROUNDS + 1):
            for turn, took in zip(last, seconds, strict=True):
                took += [turn()][: number > 0]
    return [median(took) for took in seconds]


def text(run: dict) -> str:
    body = [
        [
            row["method"],
            str(row["steps"]),
            *(f"{row[name]:.3f}" for name in ("seconds", "base")),
            f"{row['seconds'] / row['base']:.3f}",
            f"{row['count']:.3f}",
            f"{row['seconds'] / row['base'] / row['count']:.2f}×",
        ]
        for row in run["rows"]
    ]
    return tables.where(run) + "\n\n" + tables.table(HEAD, body)


def main(arguments: list[str] | None = None) -> int:
    known = [method for method in COUNTS if method != BASE]
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(known))
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args(arguments)
    if odd := [method for method in asked.methods if method not in known]:
        parser.error(f"no count of {', '.join(odd)}; give some of {', '.join(known)}")
    rows = []
    for method in asked.methods or known:
        cfg = config(method)
        base, seconds = measured((config(BASE), cfg))
        row = {"method": method, "steps": cfg.steps, "seconds": seconds, "base": base}
        rows.append(row | {"count": counted(cfg)})
        print(f"{method}: {seconds:.3f} s, MAML++ {base:.3f} s", flush=True)
    run = results.describe(full=False) | {"command": "python -m bench.methods", "rows": rows}
    print(text(run))
    if asked.json:
        results.save(run, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
