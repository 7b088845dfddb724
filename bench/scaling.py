"""What more ranks bring: the iteration and its gather, measured here, and a model of more of them.

    python -m bench.scaling [--ranks 1 2] [--json FILE]

Ranks on one machine share its cores, so that they cannot be faster than one process; what is
measured is the cost of sharing: the seconds of the gather over loopback, and those of an iteration
of the same tasks by more processes with fewer threads. The model takes from it the seconds of a
task and of what every rank does alone, and says its assumptions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from bench import results, tables
from bench.cases import TARGETS, episode
from engine import meta
from engine.models import network
from engine.runtime import ranks
from engine.runtime.workers import keep_freed_memory
from kernels.threads import cores

ROUNDS, WARM = 15, 3
TASKS = 4
CASES = (TARGETS[0], TARGETS[4])  # mini 5w1s, MSL; omniglot 5w1s, last


class Link(NamedTuple):
    bandwidth: float  # bytes a second that a rank sends and receives
    latency: float  # seconds of a step of the ring


LINKS = {  # what such links are sold as; a tenth less bandwidth for headers
    "1 GbE": Link(0.9 * 125e6, 50e-6),
    "25 GbE": Link(0.9 * 3.1e9, 20e-6),
    "NVLink": Link(0.9 * 300e9, 5e-6),
}
MANY = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PAYS = 1.1  # a doubling that is not so much faster does not pay


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--worker", type=int, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.worker is not None:
        return _worker(asked.worker)
    rows = [
        {"case": str(CASES[i]), "ranks": count} | _measured(i, count)
        for i in range(len(CASES))
        for count in asked.ranks
    ]
    run = results.describe(full=False) | {"command": "python -m bench.scaling", "rows": rows}
    print(text(run))
    if asked.json:
        results.save(run, asked.json)
    return 0


def _measured(case: int, count: int) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "--", "bench.scaling", "--worker", str(case)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=results.ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{count} ranks failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _worker(case: int) -> int:
    cfg = replace(CASES[case].config(), tasks=TASKS)
    keep_freed_memory()
    with ranks.joined() as team:
        torch.set_num_threads(max(1, cores() // team.local_size))
        first, own = team.share(cfg.tasks)
        batch = episode(cfg).slice(first, first + own)
        state, row = meta.init_state(cfg), _row_bytes(cfg)
        rows, seconds, gathers = [torch.zeros(own, row // 4)], [], []
        for _ in range(WARM + ROUNDS):
            team.gathered(rows)  # all begin at once: waiting for a slower one is not gathering
            began = time.perf_counter()
            team.gathered(rows)
            gathers.append(time.perf_counter() - began)
            began = time.perf_counter()
            state, _ = meta.meta_step(state, batch, cfg)
            seconds.append(time.perf_counter() - began)
        if team.first:
            found = {"seconds": seconds[WARM:], "gather": gathers[WARM:], "row_bytes": row}
            print(json.dumps(found | {"tasks": TASKS}), flush=True)
    return 0


def _row_bytes(cfg) -> int:
    """Of what a task sends: its gradient, and the moments of its passes."""
    model, passes = network(cfg), cfg.steps + sum(w != 0 for w in meta.loss_weights(0, cfg))
    gradient = sum(model.sizes) + cfg.steps * (2 * model.stat_width + len(model.sizes))
    return 4 * (gradient + 2 * passes * model.stat_width + 3)


def text(run: dict) -> str:
    parts = [tables.machine({**run, "peaks": [], "ops": []})]
    head = ["iteration, 4 tasks", "ranks", "s", "s, gather", "share", "sent by a task"]
    body = [
        [
            row["case"],
            str(row["ranks"]),
            f"{median(row['seconds']):.3f}",
            f"{median(row['gather']):.4f}",
            f"{100 * median(row['gather']) / median(row['seconds']):.1f} %",
            f"{row['row_bytes'] / 1024:,.0f} KiB",
        ]
        for row in run["rows"]
    ]
    return "\n".join([*parts, tables.table(head, body), modelled(run["rows"])])


def modelled(rows: list[dict]) -> str:
    """Where adding ranks stops paying, each rank a machine as this one."""
    head = ["tasks a batch", *LINKS]
    parts = [
        "Modelled: R machines as this one, T/R tasks each; the rows of all tasks by a ring, "
        "(R − 1) · (latency + rows of T/R tasks / bandwidth); nothing overlaps. Most ranks whose "
        f"last doubling still makes an iteration {PAYS}× as fast:\n"
    ]
    for row in (row for row in rows if row["ranks"] == 1):
        task = median(row["seconds"]) / row["tasks"]
        body = [
            [
                str(tasks),
                *(str(_most(tasks, task, row["row_bytes"], link)) for link in LINKS.values()),
            ]
            for tasks in (2, 8, 32, 128, 1024)
        ]
        parts.append(f"{row['case']}, {task:.3f} s a task\n\n" + tables.table(head, body))
    return "\n".join(parts)


def _most(tasks: int, task: float, row: int, link: Link) -> int:
    def seconds(ranks: int) -> float:
        own = tasks / ranks
        return own * task + (ranks - 1) * (link.latency + own * row / link.bandwidth)

    most = 1
    while 2 * most <= min(tasks, MANY[-1]) and seconds(most) >= PAYS * seconds(2 * most):
        most *= 2
    return most


if __name__ == "__main__":
    sys.exit(main())
