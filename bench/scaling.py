"""What more ranks bring: the iteration and its gather, measured here, and a model of more of them.

    python -m bench.scaling [--ranks 1 2 4] [--cases conv4 resnet12] [--json FILE]

Ranks on one machine share its cores, so that they cannot be faster than one process; what is
measured is the cost of sharing: the seconds of the gather, and those of an iteration of the same
tasks by more processes with fewer threads. It goes over loopback, and where root may make them and
the system has `tc`'s netem, between network namespaces with the delays and bandwidths of LINKS. The
model takes from it the seconds of a task and of what every rank does alone, and says its
assumptions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from bench import namespaces, results, tables
from bench.cases import TARGETS, episode
from bench.namespaces import DEVICE, Link, Unavailable, machines
from engine import meta
from engine.config import Config
from engine.models import network
from engine.runtime import ranks
from engine.runtime.workers import keep_freed_memory
from kernels.threads import cores

TASKS = 4


class Case(NamedTuple):
    name: str
    network: str
    config: Config
    rounds: int
    warm: int


_RESNET12 = Config.of(
    "htym-head",
    **{"dataset": "mini", "network": "resnet12", "ways": 5, "shots": 1, "targets": 15, "steps": 5},
    **{"inner_rate": 0.01, "msl_epochs": 1, "first_order_epochs": 0, "task_reduction": "mean"},
    tasks=TASKS,
)
CASES = (
    Case(str(TARGETS[0]), "conv4", replace(TARGETS[0].config(), tasks=TASKS), 15, 3),
    Case(str(TARGETS[4]), "conv4", replace(TARGETS[4].config(), tasks=TASKS), 15, 3),
    # An iteration takes minutes; what its ranks send differs by nothing from round to round.
    Case("mini-5w1s-ResNet-12-second-K5-MSL", "resnet12", _RESNET12, 1, 1),
)
LOOPBACK = "loopback"
# What such links are sold as, a tenth less bandwidth for headers. In the model bandwidth is what a
# rank sends and receives, latency that of a step of the ring.
LINKS = {
    "1 GbE": Link(0.9 * 125e6, 50e-6),
    "25 GbE": Link(0.9 * 3.1e9, 20e-6),
    "NVLink": Link(0.9 * 300e9, 5e-6),
}
EMULATED = ("1 GbE", "25 GbE")
MANY = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PAYS = 1.1  # a doubling that is not so much faster does not pay


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    known = sorted({case.network for case in CASES})
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cases", choices=known, nargs="+", default=known)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--worker", type=int, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.worker is not None:
        return _worker(asked.worker)
    emulated, reason = _emulated()
    if reason:
        print(f"over loopback alone: {reason}", flush=True)
    rows = [
        {"case": case.name, "ranks": count, "link": link} | _measured(i, count, link)
        for i, case in enumerate(CASES)
        if case.network in asked.cases
        for count in asked.ranks
        for link in (LOOPBACK, *(emulated if count > 1 else ()))
    ]
    run = results.describe(full=False) | {"command": "python -m bench.scaling", "rows": rows}
    run["loopback_alone"] = reason
    print(text(run))
    if asked.json:
        results.save(run, asked.json)
    return 0


def _emulated() -> tuple[Sequence[str], str | None]:
    """The links that can be made here; or none, and why."""
    try:
        with machines(1, LINKS[EMULATED[0]]):
            return EMULATED, None
    except Unavailable as error:
        return (), str(error)


def commands(case: int, count: int, names: Sequence[str] = ()) -> list[list[str]]:
    """The agents of torchrun: one of all ranks, or in each namespace one of a single rank."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    worker = ["-m", "--", "bench.scaling", "--worker", str(case)]
    if not names:
        return [[*torchrun, "--standalone", "--nproc-per-node", str(count), *worker]]
    meet = ["--nnodes", str(count), "--master-addr", namespaces.address(0)]
    return [
        ["ip", "netns", "exec", name, *torchrun, *meet, "--node-rank", str(i), *worker]
        for i, name in enumerate(names)
    ]


def _measured(case: int, count: int, link: str) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        names = ()
        if link != LOOPBACK:
            names = stack.enter_context(machines(count, LINKS[link]))
            environment["GLOO_SOCKET_IFNAME"] = DEVICE
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options |= {"cwd": results.ROOT, "env": environment}
        agents = [subprocess.Popen(c, **options) for c in commands(case, count, names)]
        told = [agent.communicate() for agent in agents]
    for agent, (_, err) in zip(agents, told, strict=True):
        if agent.returncode:
            raise RuntimeError(f"{count} ranks failed over {link}: {err}")
    return json.loads(told[0][0].splitlines()[-1])


def _worker(case: int) -> int:
    _, network, cfg, rounds, warm = CASES[case]
    if network == "conv4":
        keep_freed_memory()
    with ranks.joined() as team:
        torch.set_num_threads(max(1, cores() // team.size))
        first, own = team.share(cfg.tasks)
        batch = episode(cfg).slice(first, first + own)
        state, row = meta.init_state(cfg), _row_bytes(cfg)
        rows, seconds, gathers = [torch.zeros(own, row // 4)], [], []
        for _ in range(warm + rounds):
            team.gathered(rows)  # all begin at once: waiting for a slower one is not gathering
            began = time.perf_counter()
            team.gathered(rows)
            gathers.append(time.perf_counter() - began)
            began = time.perf_counter()
            state, _ = meta.meta_step(state, batch, cfg)
            seconds.append(time.perf_counter() - began)
        if team.first:
            found = {"seconds": seconds[warm:], "gather": gathers[warm:], "row_bytes": row}
            print(json.dumps(found | {"tasks": TASKS}), flush=True)
    return 0


def _row_bytes(cfg) -> int:
    """Of what a task sends: its gradient, and the moments of its passes."""
    model, passes = network(cfg), cfg.steps + sum(w != 0 for w in meta.loss_weights(0, cfg))
    gradient = sum(model.sizes) + cfg.steps * (2 * model.stat_width + len(model.sizes))
    return 4 * (gradient + 2 * passes * model.stat_width + 3)


def text(run: dict) -> str:
    parts = [tables.machine({**run, "peaks": [], "ops": []})]
    head = ["iteration, 4 tasks", "ranks", "link", "s", "s, gather", "share", "sent by a task"]
    body = [
        [
            row["case"],
            str(row["ranks"]),
            row.get("link", LOOPBACK),
            f"{median(row['seconds']):.3f}",
            f"{median(row['gather']):.4f}",
            f"{100 * median(row['gather']) / median(row['seconds']):.1f} %",
            f"{row['row_bytes'] / 1024:,.0f} KiB",
        ]
        for row in run["rows"]
    ]
    if run.get("loopback_alone"):
        parts.append(f"Over loopback alone: {run['loopback_alone']}\n")
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
