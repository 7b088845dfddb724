"""Seconds and peak memory of one outer iteration, ours against the loop.

Each lives in a process of its own for the whole row. The two take turns, round by round, so that
what else the machine does meets both; the table gives the ratio of the medians. A row whose results
differ fails before anything is timed.
"""

from statistics import median

import pytest
import torch

from bench import gate
from bench.cases import ROWS, Row
from bench.worker import Worker

SHORT = 4.0, 3, 9  # seconds to spend on a row's rounds, fewest and most rounds
FULL = 20.0, 5, 15


@pytest.mark.parametrize("row", ROWS, ids=str)
def bench_meta_iteration(row: Row, benchmark, record, request):
    full = request.config.option.full
    if not (full or row.short):
        pytest.skip("only with --full")
    cfg = row.config()
    gate.check_exact(cfg)
    threads = torch.get_num_threads()
    times: dict[str, list[float]] = {"ours": [], "loop": []}
    with Worker(row, "ours", threads) as ours, Worker(row, "loop", threads) as loop:
        gate.check_single(ours.iteration().loss, loop.iteration().loss)
        warm = ours.iteration().seconds + loop.iteration().seconds
        budget, fewest, most = FULL if full else SHORT
        benchmark.pedantic(
            lambda: times["ours"].append(ours.iteration().seconds),
            setup=lambda: times["loop"].append(loop.iteration().seconds),
            rounds=min(max(int(budget / warm), fewest), most),
        )
        memory = {"ours": ours.peak(), "loop": loop.peak()}
    record(
        "meta",
        vars(row)
        | {
            "tasks": cfg.tasks,
            "seconds": {how: median(each) for how, each in times.items()},
            "rounds": times,
            "memory": memory,
        },
    )
