"""Keeps a table of the paper that `engine.table` made, in bench/results/tables: page and data.

    python -m bench.published [--commit REV] runs/tables/NAME

--commit says which one trained it, if it is not that of this checkout. `python -m bench.report`
shows the page in bench/README.md.
"""

import argparse
import re
import sys
from pathlib import Path

from bench import results, training
from engine.errors import UserError
from engine.tables.page import DATA, PAGE, table_in

FOLDER = results.FOLDER / "tables"


def record(folder: Path, commit: str | None) -> dict:
    """What to keep of the folder of a table. Raises UserError when it holds none."""
    if table_in(folder) is None:
        raise UserError(f"{folder} holds no {DATA}: give the folder of a table, runs/tables/NAME")
    table = results.load(folder / DATA)
    for settings in (
        table["given"],
        *(r["settings"] for row in table["rows"] for r in row["runs"]),
    ):
        for name in training.LOCAL & settings.keys():
            del settings[name]
    described = results.describe(full=False)
    names = "processor", "cores", "system", "torch"
    machine = {name: described[name] for name in names}
    return {
        "machine": machine | {"commit": results.commit(commit or "HEAD")},
        "table": table,
        "page": (folder / PAGE).read_text(encoding="utf-8").splitlines(),
    }


def keep(folder: Path, commit: str | None) -> Path:
    found = record(folder, commit)
    return results.save(found, FOLDER / f"{found['table']['table']}.json")


def text(run: dict) -> str:
    """The page, its title one of a section's parts."""
    machine = run["machine"]
    where = f"{machine['processor']}, torch {machine['torch']}, commit {machine['commit'][:8]}"
    lines = [re.sub("^# ", "### ", line) for line in run["page"]]
    return "\n".join([lines[0], "", where, *lines[1:]]) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.published")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", metavar="REV")
    given = parser.parse_args(arguments)
    return results.kept(lambda: keep(given.folder, given.commit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
