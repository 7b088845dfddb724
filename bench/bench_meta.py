"""Seconds and peak memory of one outer iteration, ours against the others.

A row whose results differ fails before anything is timed.
"""

import pytest

from bench import flops
from bench.cases import ROWS, SHORT, Row, others
from bench.turns import Budget, take_turns

BUDGET = {False: Budget(4.0, 3, 9, 30.0), True: Budget(12.0, 3, 15)}  # of --full


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("row", ROWS if metafunc.config.option.full else SHORT, ids=str)


def bench_meta_iteration(row: Row, benchmark, record, request):
    full = request.config.option.full
    measured = take_turns(row, others(row, full), "iteration", BUDGET[full], benchmark)
    cfg = row.config()
    work = {"flops": flops.iteration(cfg).all, "products": flops.performed(cfg)}
    record("meta", vars(row) | {"short": row in SHORT} | work | measured.result())
