"""What the runs of a cell were tested to: over seeds, over tasks, and by which protocol."""

from __future__ import annotations

import contextlib
import json
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from engine import sweep
from engine.config import Config
from engine.errors import UserError, listed
from engine.files import LOG, normalised, trained_on
from engine.sweep import Member
from engine.tables.cells import Cell

TESTS = ("best", "ensemble")
# Of curves and of a finished run's log.
_CURVES = ("epoch", "accuracy", "train_loss", "train_accuracy", "seconds_per_iteration")


class Summary(NamedTuple):
    """Of a test, in shares of 1."""

    mean: float  # over seeds
    deviation: float | None  # over seeds, of the sample (n - 1); None of a single one
    interval: float  # mean of the seeds' half-widths of the 95 % interval over tasks


class Run(NamedTuple):
    """What a run folder has."""

    seed: int
    state: str  # finished, or how far it is
    result: dict[str, Any] | None  # result.json, once it is finished with these very settings
    validations: list[dict[str, Any]]  # rows of the log, those of _CURVES


def of(cell: Cell) -> list[Run]:
    """A run a seed."""
    return [_run(member) for member in cell.members]


def _run(member: Member) -> Run:
    result, state = sweep.finished(member), "finished"
    if result is None:
        state = " ".join(filter(None, sweep.state(member)))
    started = state != "not begun" and not state.startswith("other ")
    return Run(member.cfg.seed, state, result, _validations(member) if started else [])


def _validations(member: Member) -> list[dict[str, Any]]:
    """A log has a last row that is cut off where a run was killed."""
    rows = []
    with contextlib.suppress(OSError):
        text = (member.folder / LOG).read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                row = json.loads(line)
                if row["kind"] == "validation":
                    rows.append({name: row[name] for name in _CURVES})
    return rows


def code(run: Run) -> str | None:
    """Which made a finished run, by its content; None of those before this was kept."""
    return (run.result or {}).get("made_by", {}).get("code")


def summary(runs: list[Run], test: str) -> Summary | None:
    """Of one of TESTS over the finished runs; None when there is none."""
    scores = [run.result[test] for run in runs if run.result]
    if not scores:
        return None
    accuracies = [score["accuracy"] for score in scores]
    deviation = stdev(accuracies) if len(accuracies) > 1 else None
    return Summary(fmean(accuracies), deviation, fmean(score["interval"] for score in scores))


def gain(runs: list[Run], base: list[Run], test: str) -> tuple[float, float | None] | None:
    """Mean over the seeds that both have finished of the difference in one of TESTS, and its
    deviation; None without such a seed. Of a seed both have the same tasks."""
    of = {run.seed: run.result[test]["accuracy"] for run in base if run.result}
    found = [
        run.result[test]["accuracy"] - of[run.seed] for run in runs if run.result and run.seed in of
    ]
    if not found:
        return None
    return fmean(found), stdev(found) if len(found) > 1 else None


def seconds(runs: list[Run]) -> float | None:
    """Median over the epochs of an iteration's; None when there is none."""
    found = [row["seconds_per_iteration"] for run in runs for row in run.validations]
    return median(found) if found else None


def protocol(cfg: Config, result: dict[str, Any]) -> str:
    """What a figure depends on beside the method."""
    split = result["data"]
    if split == "omniglot":
        split = {"paper": "1150/50/423 shuffled", "background": "its own two sets"}[cfg.split]
    elif split == "mini":
        split = "64/16/20"
    turned = {"none": "", "classes": ", turned as classes", "augment": ", turned in training"}
    members = len(result["ensemble"]["epochs"])
    epochs = f"{cfg.epochs} epochs", trained_on(result)
    return (
        f"{split}{turned[cfg.rotations]}; {result['targets']} "
        f"target{'s' * (result['targets'] > 1)} a class; {normalised(result)}; "
        f"{result['tasks']:,} tasks; best of {' '.join(filter(None, epochs))}; ensemble "
        f"of {members}"
    )


def told(cell: Cell, runs: list[Run]) -> str | None:
    """The protocol of the finished runs. Raises UserError when the seeds had different data, or
    some were trained on.
    """
    found = [
        (run.result.get("identity", "not known"), protocol(member.cfg, run.result))
        for member, run in zip(cell.members, runs, strict=True)
        if run.result
    ]
    for index, words in enumerate(("on different data", "by different protocols")):
        if len(names := dict.fromkeys(each[index] for each in found)) > 1:
            raise UserError(
                f"the seeds of {cell.label} were trained {words} ({listed(names)}): remove the run "
                "folders of one"
            )
    return found[0][1] if found else None
