"""Keeps a table of the paper that `engine.table` made, in bench/results/tables: page and data.

    python -m bench.published [--commit REV] runs/tables/NAME
    python -m bench.published --unpack NAME runs/tables/NAME

--commit says which one trained it, if it is not that of this checkout. `python -m bench.report`
shows the page in bench/README.md. --unpack makes run folders, without models, of a kept table's
finished runs, so that `engine.table --runs` trains the others, perhaps on another machine.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from bench import results, training
from engine.config import Config
from engine.errors import UserError, listed
from engine.files import CONFIG, LOG, RESULT
from engine.tables.page import DATA, PAGE, table_in

FOLDER = results.FOLDER / "tables"
MACHINE = "machine.json"  # of an unpacked run, that which trained it


def record(folder: Path, commit: str | None) -> dict:
    """What to keep of the folder of a table. Raises UserError when it holds none."""
    if table_in(folder) is None:
        raise UserError(f"{folder} holds no {DATA}: give the folder of a table, runs/tables/NAME")
    table = results.load(folder / DATA)
    machine = results.machine() | {"commit": results.commit(commit or "HEAD")}
    for run in _runs(table):
        if run["result"]:
            config = results.load(folder / run["folder"] / CONFIG)
            run["settings"]["precision"] = config["precision"]
            path = folder / run["folder"] / MACHINE
            run["machine"] = results.load(path) if path.exists() else machine
    for settings in (
        table.get("given", {}),
        ((table.get("plan") or {}).get("asked", {})).get("flags", {}),
        *(run["settings"] for run in _runs(table)),
    ):
        for name in training.LOCAL & settings.keys():
            del settings[name]
    page = (folder / PAGE).read_text(encoding="utf-8").splitlines()
    return {"machine": machine, "table": table, "page": page}


def keep(folder: Path, commit: str | None) -> Path:
    found = record(folder, commit)
    return results.save(found, FOLDER / f"{found['table']['table']}.json")


def unpack(name: str, folder: Path) -> Path:
    """Raises UserError when no such table is kept, or a run's folder is there already."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        known = listed(sorted(p.stem for p in FOLDER.glob("*.json"))) or "none"
        raise UserError(f"--unpack is {name}: no such table is kept; there is {known}")
    table = results.load(path)["table"]
    finished = [run for run in _runs(table) if run["result"]]
    if there := [run["folder"] for run in finished if (folder / run["folder"]).exists()]:
        raise UserError(f"{folder} has {listed(there)} already: give another folder")
    for run in finished:
        made = folder / run["folder"]
        results.save(Config.of(**run["settings"], run=str(made)).to_dict(), made / CONFIG)
        rows = (json.dumps({"kind": "validation"} | row) + "\n" for row in run["validations"])
        (made / LOG).write_text("".join(rows), encoding="utf-8")
        results.save(run["machine"], made / MACHINE)
        results.save(run["result"], made / RESULT)
    return folder


def text(run: dict) -> str:
    """The page, its title one of a section's parts."""
    machines = [made["machine"] for made in _runs(run["table"]) if made["result"]]
    where = dict.fromkeys(
        f"{machine['processor']}, torch {machine['torch']}, commit {machine['commit'][:8]}"
        for machine in machines or [run["machine"]]
    )
    lines = [re.sub("^# ", "### ", line) for line in run["page"]]
    return "\n".join([lines[0], "", "; ".join(where), *lines[1:]]) + "\n"


def _runs(table: dict) -> list[dict]:
    """None of one that trains nothing."""
    return [run for row in table["rows"] for run in row.get("runs", ())]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.published")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", metavar="REV")
    parser.add_argument("--unpack", metavar="NAME")
    given = parser.parse_args(arguments)
    if given.unpack is not None:
        return results.kept(lambda: unpack(given.unpack, given.folder))
    return results.kept(lambda: keep(given.folder, given.commit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
