"""Options of the benchmark, the rows that its tests record, the tables at the end and the JSON."""

from pathlib import Path

import pytest
import torch

from bench import results, tables

RECORDED = pytest.StashKey[dict[str, list[dict]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mamlpp")
    group.addoption("--full", action="store_true", help="every row and peer, more rounds")
    group.addoption("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    group.addoption(
        "--json",
        type=Path,
        default=None,
        help="where to save (default: a new file in bench/results/, complete runs only)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # our tables, below, instead of the plugin's
    # What stops a row before its clock starts is the error to show, not that nothing was timed.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")
    config.stash[RECORDED] = {kind: [] for kind in results.KINDS}
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
    run, path = _run(config), config.option.json
    left_out = any(terminalreporter.stats.get(each) for each in ("deselected", "failed", "error"))
    if path is None and all(rows.values()) and not left_out:
        path = results.path_of(run)
    if path is not None:
        results.save(run, path)
    terminalreporter.section("benchmark")
    terminalreporter.write(tables.text(run))
    missing = "not saved, some rows are missing; --json PATH saves them"
    terminalreporter.line(f"saved in {path}" if path else missing)
