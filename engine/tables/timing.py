"""The paper's Table 3: seconds a training iteration, MAML beside MAML++, 1 to 5 inner steps.

The two take turns, an iteration of each part of their schedules at a time, on random images, so
that what else the machine does meets both. An iteration of MAML++ is the mean over its schedule:
the first epochs with the multi-step loss and in first order, then first order, then second order.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from engine import meta
from engine.allowed import PATH
from engine.commandline import FIELDS
from engine.config import Config
from engine.episodes import EpisodeSampler
from engine.errors import flag, listed, say
from engine.files import write
from engine.runs.checkpoint import read_json
from engine.runs.interrupt import Interrupt
from engine.runtime.loop import loop
from engine.runtime.machine import machine, settled
from engine.show import Part, parts_of, random_images
from engine.tables.markdown import grid
from engine.tables.page import DATA, PAGE
from kernels.check import verdict

PRESETS = ("maml", "maml++")
STEPS = range(1, 6)
TASKS = (("mini", 5, 1), ("omniglot", 20, 1))
ROUNDS = 5  # that count; one before them compiles and warms up


class Case(NamedTuple):
    """A task and a number of inner steps."""

    dataset: str
    configs: tuple[Config, Config]  # of PRESETS
    given: Mapping[str, Any]

    @property
    def label(self) -> str:
        cfg = self.configs[0]
        return f"{self.dataset} {cfg.ways}-way {cfg.shots}-shot, {cfg.tasks} tasks"

    def listed(self) -> list[str]:
        """What shows the same of one of them."""
        lines = [f"# {self.label}, {self.configs[0].steps} inner steps"]
        for cfg in self.configs:
            names = ("preset", "dataset", "ways", "shots", "steps", *self.given)
            words = [
                flag(name) if value is True else f"{flag(name)}={value}"
                for name, value in ((name, getattr(cfg, name)) for name in names)
            ]
            lines.append(shlex.join(["python", "-m", "engine.train", *words, "--show"]))
        return lines


def cases(given: Mapping[str, Any]) -> list[Case]:
    """Raises UserError when settings are not allowed."""
    return [
        Case(dataset, tuple(Config.of(preset, dataset, **own) for preset in PRESETS), given)
        for dataset, ways, shots in TASKS
        for steps in STEPS
        for own in ({"ways": ways, "shots": shots, "steps": steps} | given,)
    ]


def run(found: list[Case], folder: Path, interrupt: Interrupt) -> list[str]:
    """Measures what table.json does not have of this machine yet; the page in lines."""
    rows = []
    with machine(found[0].configs[0]) as device:
        where = {"machine": verdict.name(device), "torch": torch.__version__}
        where |= {"threads": torch.get_num_threads()}
        known = _known(folder / DATA)
        for number, case in enumerate(found, 1):
            key = _key(case, where)
            row = next((row for row in known if row.items() >= key.items()), None)
            if row is None:
                steps = case.configs[0].steps
                plural = "s" * (steps > 1)
                say(f"row {number} of {len(found)}: {case.label}, {steps} inner step{plural}")
                row = key | {"date": f"{date.today()}"} | measured(case, device, interrupt)
            rows.append(row)
            others = [row for row in known if row not in rows]  # of other machines and settings
            write(folder / DATA, json.dumps({"table": "timing", "rows": rows + others}, indent=1))
    text = page(rows)
    write(folder / PAGE, text)
    return [*text.splitlines(), "", f"saved in {folder / PAGE} and {DATA}"]


def _key(case: Case, where: dict[str, Any]) -> dict[str, Any]:
    cfg = case.configs[0]
    task = {name: getattr(cfg, name) for name in ("dataset", "ways", "shots", "steps", "tasks")}
    return where | task | {"given": _lasting(case.given)}


def _lasting(given: Mapping[str, Any]) -> dict[str, Any]:
    """What an iteration may depend on: random images lie nowhere, and threads are counted."""
    paths = {name for name, f in FIELDS.items() if f.metadata["allowed"] == PATH}
    return {n: value for n, value in given.items() if n not in paths | {"threads"}}


def _known(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier command; what is none is measured again."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = read_json(path)["rows"]
        return [row for row in found if isinstance(row, dict) and row.keys() >= {*PRESETS}]
    return []


def measured(case: Case, device: torch.device, interrupt: Interrupt) -> dict[str, Any]:
    """Of each preset the mean seconds over its schedule, and of its parts the median."""
    with contextlib.ExitStack() as stack:
        parts = [
            (preset, part, turn)
            for preset, cfg in zip(PRESETS, case.configs, strict=True)
            for part, turn in turns(settled(cfg, device, {}), device, stack)
        ]
        seconds = [[] for _ in parts]
        for number in range(ROUNDS + 1):
            for (_, _, turn), took in zip(parts, seconds, strict=True):
                took += [turn()][: number > 0]
                interrupt.check()
    found = {}
    for preset, cfg in zip(PRESETS, case.configs, strict=True):
        own = [
            part._replace(seconds=median(took))
            for (of, part, _), took in zip(parts, seconds, strict=True)
            if of == preset
        ]
        mean = sum(len(part.epochs) * part.seconds for part in own) / cfg.epochs
        found[preset] = {"seconds": mean, "epochs": cfg.epochs, "parts": [*map(_datum, own)]}
    return found


def turns(
    cfg: Config, device: torch.device, stack: contextlib.ExitStack
) -> Iterator[tuple[Part, Callable[[], float]]]:
    """Of each part of a schedule a function that takes an iteration there, and its seconds."""
    parts, state = parts_of(cfg), meta.init_state(cfg, device)
    tasks = EpisodeSampler.of(cfg, random_images(cfg), "train", cfg.seed, evaluation=False)
    steps = stack.enter_context(loop(cfg, tasks, range(len(parts) * (ROUNDS + 1)), device))

    def turn(part: Part) -> float:
        steps.step(state._replace(iteration=part.epochs.start * cfg.iterations))
        (done,) = steps.finished(wait=True)
        return done.seconds

    for part in parts:
        yield part, lambda part=part: turn(part)


def _datum(part: Part) -> dict[str, Any]:
    first, last = part.epochs.start + 1, part.epochs.stop
    return part._asdict() | {"epochs": [first, last]}


_HEAD = ["task", "inner steps", "MAML, s", "MAML++, s", "ratio", "MAML++ by epochs, s"]


def page(rows: list[dict[str, Any]]) -> str:
    where = rows[0]
    body = []
    for row in rows:
        own, theirs = (row[preset] for preset in reversed(PRESETS))
        parts = "; ".join(map(_part, own["parts"]))
        numbers = [f"{of['seconds']:.4f}" for of in (theirs, own)]
        ratio = own["seconds"] / theirs["seconds"]
        task = f"{row['dataset']} {row['ways']}-way {row['shots']}-shot, {row['tasks']} tasks"
        body.append([task, str(row["steps"]), *numbers, f"{ratio:.2f}", parts])
    given = ", ".join(f"{name} = {value}" for name, value in where["given"].items())
    notes = [
        f"{where['machine']}, {where['threads']} thread{'s' * (where['threads'] > 1)}, torch "
        f"{where['torch']}; medians of {ROUNDS} iterations by turns, on random images, measured "
        f"{listed(sorted({row.get('date', 'before dates were kept') for row in rows}))}. Without "
        f"{DATA} all are measured anew.",
        "MAML is in second order throughout, with the last step's loss. An iteration of MAML++ is "
        "the mean over its schedule, which counts derivative-order annealing: epochs of first "
        "order are cheaper, those of the multi-step loss dearer.",
        "The paper's Table 3 has such seconds; they are not known here, and none are quoted.",
    ]
    if given:
        notes.insert(0, f"Not as the presets have it, in every row: {given}.")
    title = "# Seconds a training iteration, MAML beside MAML++"
    return "\n\n".join([title, grid(_HEAD, body, left=(0, 5)), *notes]) + "\n"


def _part(part: dict[str, Any]) -> str:
    first, last = part["epochs"]
    order = {1: "first", 2: "second"}[part["order"]]
    losses = ", every step" if part["losses"] > 1 else ""
    return f"{first}–{last} {part['seconds']:.4f} ({order} order{losses})"
