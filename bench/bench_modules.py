"""Seconds and peak memory of one iteration of networks of one's own, against plain autograd, and of
the engine's own network in a script of one's own.
"""

import pytest

from bench.cases import TARGETS, Row
from bench.modules import ROWS, SHORT, ModuleRow
from bench.turns import Budget, take_turns

BUDGET = {False: Budget(3.0, 1, 9), True: Budget(20.0, 3, 15)}  # of --full


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.option.full
    if metafunc.function is bench_module:
        rows = ROWS if full else SHORT
    else:
        rows = (TARGETS[0], TARGETS[4]) if full else TARGETS[4:]
    metafunc.parametrize("row", rows, ids=str)


def bench_module(row: ModuleRow, benchmark, record, request):
    full = request.config.option.full
    measured = take_turns(row, ["loop"], "iteration", BUDGET[full], benchmark)
    record("modules", {"row": str(row)} | measured.result())


def bench_learner(row: Row, benchmark, record, request):
    full = request.config.option.full
    measured = take_turns(row, ["ours, learner"], "iteration", BUDGET[full], benchmark)
    record("modules", {"row": f"{row}, {row.loss}"} | measured.result())
