"""Seconds and peak memory of one outer iteration, ours against the loop.

The two take turns, round by round, so that what else the machine does meets both; the table gives
the ratio of the medians. A row whose results differ fails before anything is timed.
"""

from statistics import median

import pytest

from bench import gate, memory
from bench.cases import IMPLEMENTATIONS, ROWS, Ours, Row, Theirs, seconds

SHORT = 4.0, 3, 9  # seconds to spend on a row's rounds, fewest and most rounds
FULL = 20.0, 5, 15


@pytest.mark.parametrize("row", ROWS, ids=str)
def bench_meta_iteration(row: Row, benchmark, record, request):
    full = request.config.option.full
    if not (full or row.short):
        pytest.skip("only with --full")
    cfg = row.config()
    gate.check_exact(cfg)
    ours, theirs = Ours(cfg), Theirs(cfg)
    warm_up = seconds(lambda: gate.check_single(ours, theirs))

    budget, fewest, most = FULL if full else SHORT
    rounds = min(max(int(budget / warm_up), fewest), most)
    loop_times: list[float] = []
    benchmark.pedantic(
        ours.iteration,
        setup=lambda: loop_times.append(seconds(theirs.iteration)),
        rounds=rounds,
    )
    our_times = list(benchmark.stats.stats.data)
    peaks = None
    if full or row.short_memory:
        peaks = {how: memory.measure(row, how) for how in IMPLEMENTATIONS}
    record(
        "meta",
        vars(row)
        | {
            "tasks": cfg.tasks,
            "seconds": {"ours": median(our_times), "loop": median(loop_times)},
            "rounds": {"ours": our_times, "loop": loop_times},
            "memory": peaks,
        },
    )
