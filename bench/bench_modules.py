"""Seconds and peak memory of one iteration of networks of one's own, against plain autograd."""

import pytest

from bench.modules import ROWS, SHORT, ModuleRow
from bench.turns import take_turns

BUDGET = {False: (3.0, 2, 9), True: (20.0, 3, 15)}  # of --full: as take_turns has it


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("row", ROWS if metafunc.config.option.full else SHORT, ids=str)


def bench_module(row: ModuleRow, benchmark, record, request):
    others = ["loop"] + ["ours, low"] * row.has_low
    measured = take_turns(row, others, "iteration", BUDGET[request.config.option.full], benchmark)
    record("modules", {"case": row.case, "loss": row.loss} | measured.result())
