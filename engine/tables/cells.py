"""The runs of a table: of each row, task and seed the settings and the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from engine.combinations import not_its_own, without_effect
from engine.commandline import FIELDS
from engine.config import Config
from engine.errors import UserError, flag
from engine.methods import METHODS
from engine.presets import preset_fields
from engine.sweep import Member, finished
from engine.tables.quoted import Quoted, Task
from engine.tables.rows import Row, Table

# What makes a row the row that it is: no flag changes it.
DECIDED = (
    "preset method dataset ways shots steps downsample rates adapt context class_scores norm_gains "
    "norm_weights norm_stats msl_epochs first_order_epochs min_lr annealing halving_epochs "
    "optimizer temperature seed run fresh init"
).split()


class Cell(NamedTuple):
    """A row in a task."""

    row: Row
    task: Task
    members: tuple[Member, ...]  # a run a seed; none where it is quoted alone
    untrained: str = ""  # why it is quoted alone, or shown as far as it was trained

    @property
    def name(self) -> str:
        return _name(self.row, self.task)

    @property
    def label(self) -> str:
        return f"{self.row.label}, {named(self.task)}"

    @property
    def quoted(self) -> Quoted | None:
        return self.row.quoted.get(self.task)


def named(task: Task) -> str:
    return "{}-way {}-shot".format(*task)


def of(
    table: Table, folder: Path, seeds: int, given: Mapping[str, Any], rows: tuple[str, ...] = ()
) -> list[Cell]:
    """In the table's order. ``given``: settings of all runs where they have an effect; ``rows``:
    the keys of those that are trained, all if empty; of the others those with a finished run are
    shown.

    Raises UserError when these settings are not allowed in a row, or one means nothing in any.
    """
    found = [
        _cell(table, row, task, folder, seeds, given, rows)
        for row in table.rows
        for task in table.tasks
        if task in row.tasks
    ]
    taken = [member.settings for cell in found for member in cell.members]
    for name, value in given.items():
        if taken and not any(name in settings for settings in taken):
            raise UserError(
                f"{flag(name)} is {value}, which means nothing in any row of {table.name} that is "
                f"trained: leave it out{', or give other --rows' * bool(rows)}"
            )
    return found


def members(cells: list[Cell]) -> list[Member]:
    """Those to train, one seed after the other, so that a stopped table has whole rows of fewer
    seeds."""
    trained = [cell.members for cell in cells if not cell.untrained]
    seeds = max(map(len, trained), default=0)
    return [of_cell[seed] for seed in range(seeds) for of_cell in trained if of_cell]


def _cell(
    table: Table,
    row: Row,
    task: Task,
    folder: Path,
    seeds: int,
    given: Mapping[str, Any],
    rows: tuple[str, ...],
) -> Cell:
    if row.method not in METHODS:
        return Cell(row, task, (), f"there is no method {row.method} here")
    if unknown := [name for name in row.settings if name not in FIELDS]:
        return Cell(row, task, (), f"there is no setting {' or '.join(unknown)} here")
    left_out = Cell(row, task, (), "left out by --rows") if rows and row.key not in rows else None
    own = row.settings | dict(
        zip(("dataset", "ways", "shots"), (table.dataset, *task), strict=True)
    )
    try:
        alone = Config.of(**own)
    except UserError as error:
        return Cell(row, task, (), str(error))
    bare = Cell(row, task, ())
    try:
        given = _meant(alone, own, given)
        own = own | given | _tricks(row, own, given)
        found = tuple(_member(bare, own, folder, seed) for seed in range(seeds))
    except UserError as error:
        if left_out:
            return left_out
        raise UserError(f"{bare.label}: {error}") from error
    if left_out and not any(map(finished, found)):
        return left_out
    return (left_out or bare)._replace(members=found)


def _meant(alone: Config, own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given settings that mean something in a row, which ``alone`` is without them."""
    none = not_its_own(alone)
    found = {name: value for name, value in given.items() if name not in none}
    settings = {**own, **found}
    whole = Config(**preset_fields(alone.preset, alone.dataset, settings) | settings)
    idle = without_effect(whole)
    return {name: value for name, value in found.items() if name not in idle}


def _tricks(row: Row, own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of MAML++ under the same protocol and length."""
    if not row.tricks:
        return {}
    without = Config.of(**own | given)
    whole = Config.of(**own | given | {"preset": "maml++"})
    found = {name: getattr(whole, name) for name in row.tricks}
    if found == {name: getattr(without, name) for name in row.tricks}:
        if "min_lr" in row.tricks:
            raise UserError(f"--lr is {whole.lr}, where CA ends: nothing is annealed; give more")
        raise UserError(
            f"--epochs is {whole.epochs}: none of them is left for {', '.join(row.tricks)}; give 3 "
            "or more"
        )
    return found


def _member(cell: Cell, own: Mapping[str, Any], folder: Path, seed: int) -> Member:
    name = f"{cell.name}_seed-{seed}"
    run = str(folder / name)
    cfg = Config.of(**own, seed=seed)
    return Member(name, {**own, "seed": seed, "run": run}, replace(cfg, run=run))


def _name(row: Row, task: Task) -> str:
    return "{}_{}w{}s".format(row.key, *task)
