"""Seconds to adapt to a batch of evaluation tasks and to classify their targets."""

import pytest

from bench import flops
from bench.cases import EVALUATIONS, SHORT_EVALUATIONS, Row
from bench.turns import Budget, take_turns

BUDGET = {False: Budget(4.0, 1, 9), True: Budget(8.0, 3, 15)}  # of --full


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = EVALUATIONS if metafunc.config.option.full else SHORT_EVALUATIONS
    metafunc.parametrize("row", rows, ids=str)


def bench_evaluation(row: Row, benchmark, record, request):
    budget = BUDGET[request.config.option.full]
    measured = take_turns(row, ["loop"], "evaluation", budget, benchmark)
    work = flops.evaluation(row.config()).all
    record("evaluation", vars(row) | {"flops": work} | measured.result())
