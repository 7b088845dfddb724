"""A table as a page in Markdown and as JSON, beside its run folders."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.commandline import FIELDS
from engine.config import Config
from engine.errors import UserError, listed
from engine.files import write
from engine.runs.checkpoint import read_json
from engine.tables import results
from engine.tables.budget import Plan
from engine.tables.cells import Cell, named
from engine.tables.markdown import grid
from engine.tables.results import TESTS, Run, Summary
from engine.tables.rows import Table

PAGE, DATA = "table.md", "table.json"
POINTS = 10  # of a curve that are shown
_HEAD = [
    "method", "task", "quoted", "ours, best model", "over tasks", "ours, ensemble", "over tasks",
    "seeds", "s/iteration", "protocol, quoted", "protocol, ours",
]  # fmt: skip
_LEFT = (0, 1)  # columns of words
_LEGEND = (
    "Accuracy in %. Ours: mean ± sample deviation over the seeds, of the epoch best on validation "
    "and of the mean logits of the best epochs; over tasks: half-width of the 95 % interval over "
    "the test tasks, mean of the seeds', which are tested on the same tasks; s/iteration: median "
    "over the epochs. Quoted figures were not measured here, and their ± is what their source has."
)


class Found(NamedTuple):
    cell: Cell
    runs: list[Run]


def written(
    folder: Path, table: Table, cells: list[Cell], given: Mapping[str, Any], plan: Plan | None
) -> list[str]:
    """Writes the page and the JSON of what is there now; the page in lines."""
    found = [Found(cell, results.of(cell)) for cell in cells]
    text = page(table, found, given, plan)
    write(folder / DATA, json.dumps(data(table, found, given, plan), indent=1) + "\n")
    write(folder / PAGE, text)
    return text.splitlines()


def table_in(folder: Path) -> str | None:
    """Whose page lies there. Raises UserError when what lies there is no table's."""
    for path in filter(os.path.lexists, (folder / DATA, folder / PAGE)):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if isinstance(name := read_json(folder / DATA)["table"], str):
                return name
        raise UserError(f"{path} is of no table: move it away, or give another --runs")
    return None


def page(table: Table, found: list[Found], given: Mapping[str, Any], plan: Plan | None) -> str:
    sources, protocols = Marks("[{}]"), Marks("P{}")
    rows = [_row(each, sources, protocols) for each in found]
    parts = [f"# {table.title}", grid(_HEAD, rows, _LEFT)]
    if table.base:
        parts += _gains(table.base, found)
    if _of_seeds(found):
        parts += ["Accuracy on the validation tasks, by epoch, in %:"]
        parts += [_curves(found, lambda row: f"{100 * row['accuracy']:.1f}")]
        parts += [
            "Training loss, by epoch:",
            _curves(found, lambda row: f"{row['train_loss']:.3f}"),
        ]
    if sources:
        parts.append("Quoted, not measured here:\n\n" + sources.text())
    if protocols:
        parts.append(
            "Protocols (split; targets a class; statistics at test; tasks; one model or several):"
            "\n\n" + protocols.text()
        )
    notes = [_LEGEND, *table.notes, *_length(found, given, plan), *_missing(found), *_mixed(found)]
    return "\n\n".join([*parts, *notes]) + "\n"


class Marks(dict):
    """Numbers, as ``form`` has them, for texts in the order in which they are met."""

    def __init__(self, form: str):
        super().__init__()
        self._form = form

    def mark(self, text: str | None) -> str:
        """A dash for none."""
        return self.setdefault(text, self._form.format(len(self) + 1)) if text else "–"

    def text(self) -> str:
        return "\n".join(f"- {mark} {text}" for text, mark in self.items())


def _row(found: Found, sources: Marks, protocols: Marks) -> list[str]:
    cell, runs = found
    quoted = cell.quoted
    tests = [_cells(results.summary(runs, test)) for test in TESTS]
    done = sum(run.result is not None for run in runs)
    seconds = results.seconds(runs)
    return [
        cell.row.label,
        named(cell.task),
        f"{quoted.text} {sources.mark(quoted.source)}" if quoted else "–",
        *tests[0],
        *tests[1],
        f"{done} of {len(runs)}" if runs else "–",
        "–" if seconds is None else f"{seconds:.3f}",
        protocols.mark(quoted and quoted.protocol),
        protocols.mark(results.told(cell, runs)),
    ]


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["–", "–"]
    mean, deviation, interval = summary
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return [f"{100 * mean:.2f}{spread}", f"{100 * interval:.2f}"]


def _length(found: list[Found], given: Mapping[str, Any], plan: Plan | None) -> list[str]:
    """What was changed of the presets, and what became of their schedules."""
    own = {name: value for name, value in given.items() if plan is None or name not in plan.given}
    notes = []
    if own := {n: value for n, value in own.items() if not FIELDS[n].metadata["free"]}:
        told = ", ".join(f"{name} = {value}" for name, value in own.items())
        notes.append(f"Not as the presets have it, in every row where it has an effect: {told}.")
    whole = sorted({_whole(each.cell) for each in found if each.cell.members})
    if plan and plan.epochs is None:
        notes.append(f"{_hours(plan)} suffice for the whole length of every preset.")
    elif plan:
        notes.append(
            f"**Shortened**: {_hours(plan)} give {plan.epochs * plan.iterations:,} iterations, "
            f"{plan.epochs} epochs of {plan.iterations:,}, in every row alike, where the presets "
            f"have {' or '.join(f'{n:,}' for n in whole)}; the annealing schedules are "
            "shortened alike. Such figures are not those of the paper's protocol."
        )
    elif "epochs" in own or "iterations" in own:
        notes.append(
            "**Another length than the presets'**, in every row; such figures are not those of the "
            "paper's protocol."
        )
    return notes + ["\n".join(_schedules(found))] * bool(whole)


def _whole(cell: Cell) -> int:
    """Iterations of its preset."""
    own = {n: v for n, v in cell.members[0].settings.items() if n not in ("epochs", "iterations")}
    cfg = Config.of(**own)
    return cfg.epochs * cfg.iterations


def _schedules(found: list[Found]) -> list[str]:
    """A line for all rows that have the same."""
    labels: dict[str, dict[str, None]] = {}
    for each in found:
        if each.cell.members:
            cfg = each.cell.members[0].cfg
            text = (
                f"{cfg.epochs * cfg.iterations:,} iterations in {cfg.epochs} epochs, "
                f"{cfg.msl_epochs} with the multi-step loss"
                f"{', its weights all equal' if cfg.msl_epochs == 1 else ''}, "
                f"{cfg.first_order_epochs} of first order"
            )
            labels.setdefault(text, {})[each.cell.row.label] = None
    return [f"- {'; '.join(names)}: {text}" for text, names in labels.items()]


def _hours(plan: Plan) -> str:
    asked = plan.asked["budget"]
    return f"--budget {asked:g} hours ({plan.hours:.2g} by the speeds measured before)"


def _missing(found: list[Found]) -> list[str]:
    alone = dict.fromkeys(
        f"{each.cell.row.label}: {each.cell.untrained}" for each in found if not each.cell.members
    )
    open_runs = [
        f"{member.name}: {run.state}"
        for each in found
        for member, run in zip(each.cell.members, each.runs, strict=True)
        if not run.result and not each.cell.untrained
    ]
    notes = [f"Quoted alone: {'; '.join(alone)}."] if alone else []
    if open_runs:
        notes.append(f"Not finished: {listed(open_runs)}. The same command continues.")
    return notes


def _mixed(found: list[Found]) -> list[str]:
    """Of seeds that were made by different code, which is not always the same training."""
    codes = {each.cell.label: {*filter(None, map(results.code, each.runs))} for each in found}
    cells = [f"{label} ({listed(sorted(of))})" for label, of in codes.items() if len(of) > 1]
    return [f"Seeds made by different versions of the code: {listed(cells)}."] if cells else []


def _gains(base: str, found: list[Found]) -> list[str]:
    """Of each row over the base, the largest quoted one first, and the order of ours."""
    (of,) = (each for each in found if each.cell.row.key == base)
    others = [each for each in found if each is not of]
    others.sort(key=lambda each: -each.cell.quoted.accuracy)
    rows, ours = [], {}
    for each in others:
        gains = [results.gain(each.runs, of.runs, test) for test in TESTS]
        if gains[0]:
            ours[each.cell.row.label] = gains[0][0]
        over = each.cell.quoted.accuracy - of.cell.quoted.accuracy
        rows.append([each.cell.row.label, f"{over:+.2f}", *map(_gain, gains)])
    head = [f"points over {of.cell.row.label}", "quoted", "ours, best model", "ours, ensemble"]
    order = " > ".join(sorted(ours, key=ours.__getitem__, reverse=True)) or "no run is finished"
    return [
        grid(head, rows, left=(0,)),
        f"Quoted figures in their order; ours, best model: {order}.",
    ]


def _gain(gain: tuple[float, float | None] | None) -> str:
    if gain is None:
        return "–"
    mean, deviation = gain
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return f"{round(100 * mean, 2) + 0.0:+.2f}{spread}"  # no -0.00


def _of_seeds(found: list[Found]) -> bool:
    """Whether each seed is looked at, and not their mean: where there is no quoted one."""
    begun = any(run.validations for each in found for run in each.runs)
    return begun and not any(each.cell.row.quoted for each in found)


def _curves(found: list[Found], shown: Callable[[dict[str, Any]], str]) -> str:
    """Of every run that has begun."""
    runs = [(each.cell, run) for each in found for run in each.runs if run.validations]
    longest = max(row["epoch"] for _, run in runs for row in run.validations)
    epochs = [*range(longest, 0, -longest // POINTS)][::-1]
    body = []
    for cell, run in runs:
        by_epoch = {row["epoch"]: shown(row) for row in run.validations}
        name = f"{cell.row.label}, seed {run.seed}"
        body.append([name, *(by_epoch.get(epoch, "–") for epoch in epochs)])
    return grid(["run", *map(str, epochs)], body, left=(0,))


def data(
    table: Table, found: list[Found], given: Mapping[str, Any], plan: Plan | None
) -> dict[str, Any]:
    return {
        "table": table.name,
        "title": table.title,
        "given": dict(given),
        "plan": plan._asdict() if plan else None,
        "rows": [_datum(each) for each in found],
    }


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _datum(found: Found) -> dict[str, Any]:
    cell, runs = found
    quoted = cell.quoted
    known = {}
    if quoted:  # in shares of 1, as ours are
        known = {"accuracy": quoted.accuracy / 100, "deviation": _share(quoted.deviation)}
    summaries = {test: results.summary(runs, test) for test in TESTS}
    return {
        "row": cell.row.key,
        "label": cell.row.label,
        "ways": cell.task[0],
        "shots": cell.task[1],
        "quoted": quoted and quoted._asdict() | known,
        "ours": {test: summary and summary._asdict() for test, summary in summaries.items()},
        "protocol": results.told(cell, runs),
        "not_trained": cell.untrained or None,
        "runs": [
            {"folder": member.name, "settings": member.settings, **run._asdict()}
            for member, run in zip(cell.members, runs, strict=True)
        ],
    }
