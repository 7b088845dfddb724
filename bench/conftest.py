"""Options of the benchmark, the rows that its tests record, the table at the end and the JSON."""

from pathlib import Path

import pytest
import torch

from bench import report, results
from bench.cases import CASES, ROWS

RECORDED = pytest.StashKey[dict[str, list[dict]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mamlpp")
    group.addoption("--full", action="store_true", help="every row, more rounds")
    group.addoption("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    group.addoption(
        "--json",
        type=Path,
        default=None,
        help="where to save (default: a new file in bench/results/, complete runs only)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # one table, below, instead of the plugin's
    # What stops a row before its clock starts is the error to show, not that nothing was timed.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")
    config.stash[RECORDED] = {"meta": [], "episodes": []}
    if config.option.threads:
        torch.set_num_threads(config.option.threads)


@pytest.fixture
def record(request: pytest.FixtureRequest):
    """record(kind, row) adds a row to the table `kind`, and to the file of --json at once."""
    config = request.config

    def add(kind: str, row: dict) -> None:
        config.stash[RECORDED][kind].append(row)
        if config.option.json:
            results.save(_run(config), config.option.json)

    return add


def _run(config: pytest.Config) -> dict:
    return results.describe(config.option.full) | config.stash[RECORDED]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash[RECORDED]
    if not any(rows.values()):
        return
    run = _run(config)
    terminalreporter.section("benchmark")
    terminalreporter.write(report.tables(run))
    timed = [row for row in ROWS if config.option.full or row.short]
    complete = len(rows["meta"]) == len(timed) and len(rows["episodes"]) == len(CASES)
    path = config.option.json
    if path is None and complete:
        path = results.path_of(run)
    if path is None:
        terminalreporter.line("not saved, some rows are missing; --json PATH saves them")
    else:
        results.save(run, path)
        terminalreporter.line(f"saved in {path}")
