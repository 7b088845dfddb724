"""Trains the rows of a table of the paper and prints them beside its figures.

    python -m engine.table omniglot-20way|omniglot-5way|mini|ablation|figure1|timing [flags]

Each row is trained with each of ``--seeds``, a run folder each, as ``engine.sweep`` does it: what
is finished is passed by, what was stopped is continued. The page, table.md, and table.json lie
beside the run folders and are written anew after every run. ``timing`` trains nothing: it measures
seconds an iteration. engine/README.md says more.

Exit code: as of engine.sweep.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine import sweep
from engine.allowed import PATH, check
from engine.commandline import FIELDS, Parser, add_flags, parse
from engine.errors import UserError, flag, listed, nearest, say, silence
from engine.files import make_folder
from engine.runs.interrupt import Interrupt, answered
from engine.sweep import Member
from engine.tables import budget, cells, rows
from engine.tables.budget import Plan
from engine.tables.cells import DECIDED, Cell
from engine.tables.rows import TABLES, Table

TIMING = "timing"
SEEDS, MOST = 3, 100
_SHOWN = "data epochs iterations eval_tasks device threads".split()


class _Parser(Parser):
    def _unknown(self, words: list[str]) -> str:
        given = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if given in {flag(name) for name in DECIDED} - {"--seed", "--run"}:  # but --seeds, --runs
            return f"there is no flag {given} here: a table decides it; "
        return super()._unknown(words)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(
        lambda interrupt: _asked(argv, interrupt),
        stopped="the table is stopped; the same command continues",
    )


def _parser() -> Parser:
    parser = _Parser(
        prog="python -m engine.table",
        usage="%(prog)s NAME [flags]",
        description=__doc__.split("\n\n")[0],
        epilog="Other flags of engine.train that change no row's nature go to every run. The same "
        "command continues a stopped table.",
    )
    names = (*TABLES, TIMING)
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--seeds", type=int, metavar="INT", help=f"runs of each row, from seed 0 (default: {SEEDS})"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="HOURS",
        help="of all runs together: the iterations of every row are shortened alike",
    )
    parser.add_argument("--rows", metavar="A,B", help="train these alone, by the keys of --list")
    parser.add_argument(
        "--runs", metavar="PATH", help="folder of the run folders (default: runs/tables/NAME)"
    )
    looks = parser.add_mutually_exclusive_group()
    text = "only print each row and the command of each of its runs; --budget is measured for it"
    looks.add_argument("--list", action="store_true", help=text)
    looks.add_argument("--status", action="store_true", help="only show how far each run is")
    flags = [name for name in FIELDS if name not in DECIDED]
    add_flags(parser, flags, hidden={*flags} - {*_SHOWN})
    return parser


def _asked(argv: list[str], interrupt: Interrupt) -> int:
    given = parse(_parser(), argv)
    name = given.pop("name")
    own = {word: given.pop(word, None) for word in ("seeds", "budget", "rows", "runs")}
    looks = given.pop("list", False), given.pop("status", False)
    folder = _folder(name, own["runs"])
    if name == TIMING:
        return _timing(folder, own, given, looks, interrupt)
    asked = {
        "table": name,
        "budget": own["budget"],
        "seeds": SEEDS if own["seeds"] is None else own["seeds"],
        "rows": _rows(rows.of(name), own["rows"]),
        "flags": given,
    }
    _check(asked)
    interrupt.phase = "unwind"
    return _run(rows.of(name), folder, asked, looks, interrupt)


def _folder(name: str, runs: str | None) -> Path:
    check("runs", runs, PATH)
    return Path("runs") / "tables" / name if runs is None else Path(runs).expanduser()


def _rows(table: Table, given: str | None) -> list[str]:
    known, wanted = [row.key for row in table.rows], (given or "").split(",")
    for key in wanted if given is not None else ():
        if key not in known:
            raise UserError(
                f"--rows has {key!r}: {nearest(key, known)}{table.name} has {', '.join(known)}"
            )
    return wanted if given else []


def _check(asked: dict[str, Any]) -> None:
    if not 1 <= asked["seeds"] <= MOST:
        raise UserError(f"--seeds is {asked['seeds']}: give a number from 1 to {MOST}")
    if asked["budget"] is None:
        return
    check("budget", asked["budget"], "> 0")
    for name in ("epochs", "iterations"):
        if name in asked["flags"]:
            raise UserError(
                f"--{name} is {asked['flags'][name]} with --budget, which chooses it: leave one out"
            )


def _run(
    table: Table,
    folder: Path,
    asked: dict[str, Any],
    looks: tuple[bool, bool],
    interrupt: Interrupt,
) -> int:
    listing, looking = looks
    with silence(listing):  # its lines are for a shell
        plan, found = _planned(table, folder, asked, looking, interrupt)
    if listing:
        say(*_listed(found))
        return 0
    members = cells.members(found)
    if not members:
        reasons = dict.fromkeys(c.untrained for c in found if c.row.key in asked["rows"])
        raise UserError(f"--rows: none of them is trained here: {listed(reasons)}; give others")
    if looking:
        say(*sweep.status(members))
        return 0
    from engine.tables import page  # which imports torch

    given = asked["flags"] | (plan.given if plan else {})
    _make(folder, table.name)
    sweep.refuse_other_data([member for cell in found for member in cell.members])
    _refuse_shorter(members)

    def write() -> list[str]:
        return page.written(folder, table, found, given, plan)

    code = sweep.run(members, interrupt, after=write)
    say("", *write(), "", f"saved in {folder / page.PAGE} and {page.DATA}")
    return code


def _refuse_shorter(members: list[Member]) -> None:
    for member in members:
        word, text = sweep.state(member)
        if word == "shorter":
            raise UserError(
                f"{member.folder} has {text}, by two schedules: the runs of a table have one; give "
                "the length that they have, or other --runs"
            )


def _planned(
    table: Table, folder: Path, asked: dict[str, Any], looking: bool, interrupt: Interrupt
) -> tuple[Plan | None, list[Cell]]:
    """The lengths, measured and kept if a budget asks for them and none are kept, and the runs."""

    def of(given: dict[str, Any]) -> list[Cell]:
        return cells.of(table, folder, asked["seeds"], given, tuple(asked["rows"]))

    plan, found = budget.kept(folder), of(asked["flags"])
    if plan is not None:
        _refuse_another(folder, plan, asked)
    elif asked["budget"] is None:
        return None, found
    elif looking:
        raise UserError(f"{folder} has no plan for --budget yet: the table has not begun")
    else:
        _make(folder, table.name)
        plan = budget.made(found, asked, interrupt)
        budget.keep(folder, plan)
        say(f"every run has {_length(plan)}; about {plan.hours:.2g} hours in all", "")
    return plan, of(asked["flags"] | plan.given)


def _length(plan: Plan) -> str:
    if plan.epochs is None:
        return "the length of its preset"
    iterations = plan.epochs * plan.iterations
    return f"{iterations:,} iterations, {plan.epochs} epochs of {plan.iterations:,}"


def _refuse_another(folder: Path, plan: Plan, asked: dict[str, Any]) -> None:
    """Machine and places may change."""

    def fixed(all_asked: dict[str, Any]) -> dict[str, Any]:
        flags = all_asked["flags"]
        kept = {n: v for n, v in flags.items() if not FIELDS[n].metadata["free"]}
        return {n: value for n, value in all_asked.items() if n != "flags"} | kept

    before, now = fixed(plan.asked), fixed(asked)
    different = [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]
    if different:
        raise UserError(
            f"{folder} has runs of another command ({'; '.join(different)}): give the same, or "
            "another --runs"
        )


def _listed(found: list[Cell]) -> list[str]:
    """For a shell: what is no command is a comment."""
    lines = []
    for cell in found:
        quoted = f", quoted {cell.quoted.text}" if cell.quoted else ""
        alone = "" if cell.members else "quoted alone, "
        why = f": {alone}{cell.untrained}" if cell.untrained else ""
        lines += [f"# {cell.row.key}: {cell.label}{quoted}{why}"]
        lines += [member.command() for member in cell.members if not cell.untrained]
    return lines


def _make(folder: Path, name: str) -> None:
    """Raises UserError when another page lies there, or other processes would write it."""
    from engine.runtime import ranks  # which import torch
    from engine.tables import page

    if ranks.launched():
        raise UserError(
            "engine.table is of one process, and torchrun started several: start it without, or "
            "give the lines of --list to torchrun"
        )
    make_folder(folder, "the table's folder", "--runs")
    if (of := page.table_in(folder)) not in (None, name):
        raise UserError(f"{folder} has table {of}: give another --runs")


def _timing(
    folder: Path,
    own: dict[str, Any],
    given: dict[str, Any],
    looks: tuple[bool, bool],
    interrupt: Interrupt,
) -> int:
    """Its rows are measured, and no run is made."""
    for name in ("seeds", "budget", "rows"):
        if own[name] is not None:
            raise UserError(
                f"--{name} is {own[name]} with timing, which trains nothing: leave it out"
            )
    listing, looking = looks
    if looking:
        raise UserError("--status with timing, which trains nothing: leave it out")
    interrupt.phase = "unwind"
    from engine.tables import timing  # which imports torch

    cases = timing.cases(given)
    if listing:
        say(*(line for case in cases for line in case.listed()))
        return 0
    _make(folder, TIMING)
    say("", *timing.run(cases, folder, interrupt))
    return 0


if __name__ == "__main__":
    sys.exit(main())
