"""How many iterations every run of a table gets, so that all of it takes so many hours.

What a run costs is measured as `engine.train --show` does. It is measured once: plan.json in the
table's folder keeps what was chosen, so that the same command continues with the same lengths.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from engine.commandline import FIELDS
from engine.config import Config
from engine.errors import UserError, say
from engine.files import write
from engine.runs.interrupt import Interrupt
from engine.tables.cells import Cell

PLAN = "plan.json"
# Divisors of the paper's 150 epochs, so that its parts of a schedule stay whole epochs where they
# can, the longest whose validations and tests are a small part of the hours.
EPOCHS = (150, 75, 30, 15, 6, 3)
SHARE = 0.2
ASKED = ("table", "budget", "seeds", "rows", "flags")  # what a plan was made for


class Cost(NamedTuple):
    """Of a cell, measured."""

    iteration: float  # mean seconds over the schedule
    task: float  # seconds of an evaluation task
    cfg: Config  # in full length

    def seconds(self, epochs: int, iterations: int) -> float:
        """Of a run of so many epochs of so many iterations."""
        return epochs * iterations * self.iteration + self.evaluations(epochs)

    def evaluations(self, epochs: int) -> float:
        """Seconds of its validations and of its test."""
        return self.cfg.evaluations(epochs) * self.cfg.eval_tasks * self.task

    @property
    def whole(self) -> tuple[int, int]:
        """Epochs and iterations of an epoch in full length."""
        return self.cfg.epochs, self.cfg.iterations


class Plan(NamedTuple):
    asked: dict[str, Any]  # ASKED
    epochs: int | None  # None: the hours suffice for the whole length
    iterations: int | None  # of an epoch
    hours: float  # that the runs should take
    seconds: dict[str, list[float]]  # by cell: an iteration, an evaluation task

    @property
    def given(self) -> dict[str, int]:
        """Settings of every run."""
        if self.epochs is None:
            return {}
        return {"epochs": self.epochs, "iterations": self.iterations}


def made(cells: list[Cell], asked: dict[str, Any], interrupt: Interrupt) -> Plan:
    """Measures a run of each row and chooses the lengths. Raises UserError when the hours do not
    even suffice for three epochs of one iteration."""
    costs = {}
    trained = [cell for cell in cells if cell.members and not cell.untrained]
    for number, cell in enumerate(trained, 1):
        found = costs[cell.name] = measured(cell)
        say(
            f"row {number} of {len(trained)}: {cell.label}: {found.iteration:.3f} s an iteration, "
            f"{found.task:.4f} s an evaluation task"
        )
        interrupt.check()
    length = chosen(costs.values(), asked["seeds"], asked["budget"])
    hours = asked["seeds"] * sum(cost.seconds(*(length or cost.whole)) for cost in costs.values())
    seconds = {name: [cost.iteration, cost.task] for name, cost in costs.items()}
    return Plan(asked, *(length or (None, None)), hours / 3600, seconds)


def measured(cell: Cell) -> Cost:
    """On random images: no data is read."""
    from engine import show  # which imports torch
    from engine.runtime.machine import machine, settled

    cfg = cell.members[0].cfg
    with machine(cfg) as device:
        found = show.cost(settled(cfg, device, {}), device)
    return Cost(found.iteration(cfg), found.task, cfg)


def chosen(costs: Iterable[Cost], seeds: int, hours: float) -> tuple[int, int] | None:
    """Epochs and iterations of an epoch, the same for all; None if all can have their full length.

    Raises UserError when the hours are too few.
    """
    costs, seconds = list(costs), 3600 * hours
    shortest = min(epochs * iterations for epochs, iterations in (cost.whole for cost in costs))
    if seeds * sum(cost.seconds(*cost.whole) for cost in costs) <= seconds:
        return None
    an_iteration = seeds * sum(cost.iteration for cost in costs)
    for epochs in EPOCHS:
        evaluations = seeds * sum(cost.evaluations(epochs) for cost in costs)
        iterations = int((seconds - evaluations) / an_iteration) // epochs
        few = evaluations <= SHARE * seconds or epochs == EPOCHS[-1]
        if few and iterations >= 1:
            return epochs, min(iterations, shortest // epochs)
    least = math.ceil((evaluations + epochs * an_iteration) / 3.6) / 1000
    raise UserError(
        f"--budget is {hours:g} hours: {seeds} seeds of {len(costs)} runs take at least "
        f"{least:g}, of which their tests and validations are most; give more, or fewer --seeds, "
        "--rows or --eval-tasks"
    )


def keep(folder: Path, plan: Plan) -> None:
    write(folder / PLAN, json.dumps(plan._asdict(), indent=2) + "\n")


def kept(folder: Path) -> Plan | None:
    """What an earlier command chose. Raises UserError when it cannot be read."""
    path, why = folder / PLAN, "it is no plan"
    if not os.path.lexists(path):
        return None
    from engine.runs.checkpoint import read_json  # which imports torch

    try:
        found = Plan(**read_json(path))
        known = found.asked.keys() == {*ASKED} and found.asked["flags"].keys() <= FIELDS.keys()
        if known and all(isinstance(n, int | None) for n in (found.epochs, found.iterations)):
            return found
    except OSError as error:
        why = str(error.strerror)
    except (ValueError, TypeError, AttributeError):
        pass
    raise UserError(
        f"{path} cannot be read ({why}): put a whole copy in its place, or remove it, and the "
        "hours are divided anew"
    )
