"""Options of the benchmark, the rows that its tests record, the table at the end and the JSON."""

from pathlib import Path

import pytest
import torch

from bench import report, results

ROWS = pytest.StashKey[dict[str, list[dict]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mamlpp")
    group.addoption("--full", action="store_true", help="every row, more rounds, memory of each")
    group.addoption("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    group.addoption(
        "--json",
        type=Path,
        default=None,
        help="where to save (default: a new file in bench/results/, complete runs only)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # one table, below, instead of the plugin's
    config.stash[ROWS] = {"meta": [], "episodes": []}
    if config.option.threads:
        torch.set_num_threads(config.option.threads)


@pytest.fixture
def record(request: pytest.FixtureRequest):
    """record(kind, row) adds a row to the table `kind`."""
    return lambda kind, row: request.config.stash[ROWS][kind].append(row)


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not any(rows.values()):
        return
    run = results.describe(config.option.full) | rows
    terminalreporter.section("benchmark")
    terminalreporter.write(report.tables(run))
    path, complete = config.option.json, exitstatus == 0 and not config.option.keyword
    if path is None and complete:
        path = results.path_of(run)
    if path is None:
        terminalreporter.line("not saved: a part of the rows, or a failure; --json PATH saves")
    else:
        results.save(run, path)
        terminalreporter.line(f"saved in {path}")
