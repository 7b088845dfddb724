"""What a run folder tells without its checkpoints: configuration, log, test."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.errors import UserError, explained
from engine.files import CONFIG, DETAILS, LOG, RESULT, read_json, refuse_special, trained_on
from engine.runs import locks

_CURE = "give another run, or put a whole copy in its place"
_MOST = 2**53  # of whole numbers, which page and log have in common
_LARGEST = 1e100  # of other numbers, of which sums and squares are taken
_EPOCHS = 10**6  # of more no slider is made
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True)
class Recorded:
    """A run as its folder tells it."""

    folder: Path
    name: str  # of the folder, with as many above it as tell it from others of the page
    cfg: Config
    data: str  # name of the data
    train: list[dict[str, Any]]  # rows of the log, without the early ones
    epochs: dict[int, dict[str, Any]]  # rows of the validations, by epoch
    result: dict[str, Any] | None  # of the test, when it is done
    details: dict[str, Any] | None  # of the test in parts
    running: bool  # whether it is being trained

    @property
    def by_loss(self) -> bool:
        """Whether a loss is what counts, of which less is better."""
        return any("validation_loss" in row for row in self.epochs.values())

    @property
    def own(self) -> bool:
        """Whether network and tasks are a script's own, which engine.fit was given: data in a
        folder have that in their name."""
        return self.cfg.dataset == "folder" and not self.data.startswith("folder:")

    @property
    def identity(self) -> str | None:
        """Of the content of the data, of `own` of the network, too; None before the test."""
        return (self.result or {}).get("identity")

    @property
    def schedule(self) -> str:
        """Of a run that was trained on; before it is tested again as its log has it."""
        last = self.epochs[max(self.epochs)] if self.epochs else {}
        return trained_on(self.result or last) or "from the beginning"

    @property
    def origin(self) -> str | None:
        """Of the initial weights that were given, by their content; None before the test."""
        return ((self.result or {}).get("origin") or {}).get("weights")

    @property
    def best(self) -> int | None:
        """The epoch best on validation so far, of those that the log has."""
        if not self.epochs:
            return None
        best, sign = self.epochs[max(self.epochs)]["best_epoch"], -1 if self.by_loss else 1
        if best in self.epochs:
            return best
        return max(self.epochs, key=lambda epoch: (sign * self.value(epoch), -epoch))

    def value(self, epoch: int) -> float:
        """Of the validation after an epoch: accuracy or loss."""
        row = self.epochs[epoch]
        return row["validation_loss" if self.by_loss else "accuracy"]

    def by_step(self, epoch: int) -> list[float] | None:
        """The same after each inner step, on some of the tasks; None: not recorded."""
        return self.epochs[epoch].get("step_loss" if self.by_loss else "step_accuracy")

    @property
    def hours(self) -> float:
        """Of all iterations that were logged."""
        seconds = [row["iterations"] * row["seconds_per_iteration"] for row in self.train]
        return sum(seconds) / 3600


def read(folders: Sequence[Path]) -> list[Recorded]:
    """Raises UserError when a folder is no run, has no row yet, or is given twice."""
    if not folders:
        raise UserError("there is no run to report: name run folders")
    resolved = [folder.expanduser().resolve() for folder in folders]
    for at, folder in enumerate(resolved):
        if folder in resolved[:at]:
            raise UserError(f"{folders[at]} is given twice: name each run once")
    runs = [_run(*each) for each in zip(folders, resolved, last_parts(resolved), strict=True)]
    for given, run in zip(folders, runs, strict=True):
        if run.epochs and run.by_loss != runs[0].by_loss:
            raise UserError(
                f"{folders[0]} and {given} are told apart by different metrics, accuracy and loss: "
                "report them one by one"
            )
    return runs


def last_parts(folders: list[Path]) -> list[str]:
    """Of the paths as many of each as no other ends with."""

    def last(folder: Path, count: int) -> str:
        return "/".join(folder.parts[-count:])

    names = []
    for folder in folders:
        count = 1
        while count < len(folder.parts) and any(
            last(other, count) == last(folder, count) for other in folders if other != folder
        ):
            count += 1
        names.append(last(folder, count))
    return names


def _run(given: Path, folder: Path, name: str) -> Recorded:
    with explained(f"cannot read {given}", "give a run folder"):
        if not folder.exists():
            raise UserError(f"no run at {given}: give a run folder")
        if not folder.is_dir():
            raise UserError(f"{given} is no run folder: give one, as engine.train makes it")
        if lost := [n for n in (CONFIG, LOG) if not (folder / n).exists()]:
            raise UserError(
                f"{given} has no {lost[0]}: it is no run folder, or nothing was trained in it yet; "
                "give another"
            )
        running = locks.held(folder / ".lock")
        train, epochs = _log(folder / LOG)
    config = _json(folder / CONFIG, lambda content: isinstance(content, dict))
    try:
        cfg = Config.from_dict(config)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    result, details = _json(folder / RESULT, _is_result), _json(folder / DETAILS, _is_details)
    data = (train or [*epochs.values()])[-1]["data"]
    run = Recorded(folder, name, cfg, data, train, epochs, result, details, running)
    if result and epochs and run.by_loss != (result.get("metric") == "loss"):
        raise UserError(f"{folder / RESULT} has another metric than {folder / LOG}; {_CURE}")
    return run


def _json(path: Path, right: Callable[[Any], bool]) -> Any:
    """None where there is no such file. Raises UserError when what it holds is not right."""
    if not path.exists():
        return None
    with explained(f"cannot read {path}", _CURE):
        try:
            content = read_json(path)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); {_CURE}") from error
    if not _holds(right, content):
        raise UserError(f"{path} is damaged, it is none of a run; {_CURE}")
    return content


def _log(path: Path) -> tuple[list[dict], dict[int, dict]]:
    """Rows of iterations and of validations. A last line that is cut off is left out: it may be
    about to be written."""
    refuse_special(path)
    *whole, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    train, epochs = [], {}
    for number, line in enumerate([*whole, last] if _row(last) else whole, 1):
        if (row := _row(line)) is None:
            raise UserError(f"{path} is damaged: line {number} is no row of a log; {_CURE}")
        if row["kind"] == "validation":
            epochs[row["epoch"]] = row
        elif not row.get("early"):
            train.append(row)
    if not train and not epochs:
        raise UserError(f"{path} has no whole row yet: give a run that has trained")
    if len({"validation_loss" in row for row in epochs.values()}) > 1:
        raise UserError(f"{path} is damaged: it has rows of two metrics; {_CURE}")
    before = 0
    for row in train:  # logs of older versions do not say how many iterations a row is of
        row.setdefault("iterations", row["iteration"] - before)
        before = row["iteration"]
    return train, dict(sorted(epochs.items()))


def _row(line: str) -> dict[str, Any] | None:
    """None where a line holds no row that this version knows."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if _holds(_is_row, row) else None


def _holds(right: Callable[[Any], bool], content: Any) -> bool:
    """Whether content is right; what is of another shape altogether is not."""
    try:
        return right(content)
    except (LookupError, TypeError, AttributeError):
        return False


def _is_row(row: dict[str, Any]) -> bool:
    counts = row["epoch"], row["iteration"], row.get("iterations", 1)
    if not (isinstance(row["data"], str) and all(type(n) is int and 0 < n < _MOST for n in counts)):
        return False
    if row["kind"] == "train":
        return _numbers([row["loss"], row["seconds_per_iteration"]])
    value = row["accuracy"] if "accuracy" in row else row["validation_loss"]
    numbers = [value, row["interval"], row["train_loss"], row["seconds_per_iteration"]]
    by_step = [row.get(name, []) for name in ("step_accuracy", "step_loss")]
    return (
        row["kind"] == "validation"
        and row["epoch"] <= _EPOCHS
        and type(row["best_epoch"]) is int
        and type(row["tasks"]) is int
        and type(row.get("step_tasks", 0)) is int
        and type(row.get("peak_memory")) in (int, type(None))
        and all(type(epochs) is int for epochs in row.get("earlier_epochs", []))
        and _numbers(numbers)
        and all(map(_numbers, by_step))
        and all(map(_numbers, row.get("rates", {}).values()))
    )


def _numbers(values: list) -> bool:
    """Such as any format holds; what is not finite is one of them."""
    if not isinstance(values, list):
        return False
    whole = (v for v in values if type(v) is not float)
    return all(type(v) is int and abs(v) < _MOST for v in whole) and not any(
        _LARGEST < abs(v) < math.inf for v in values
    )


def _is_result(result: dict[str, Any]) -> bool:
    best, ensemble = result["best"], result["ensemble"]
    value = "loss" if result.get("metric") == "loss" else "accuracy"
    numbers = [of[name] for of in (best, ensemble) for name in (value, "interval")]
    counts = [result["tasks"], result["steps"], best["epoch"], *ensemble["epochs"]]
    counts += result.get("earlier_epochs", [])
    names = [result[name] for name in ("data", "split", "norm_statistics")]
    names.append(result["protocol"] or "")
    names.append(result.get("identity", ""))
    names.append((result.get("origin") or {}).get("weights", ""))
    return (
        _numbers(numbers)
        and all(type(count) is int for count in counts)
        and all(isinstance(name, str) for name in names)
    )


def _is_details(details: dict[str, Any]) -> bool:
    classes, other, best = details["classes"], details["other"], details["best"]
    drawn, tasks, targets = details["task_classes"], details["tasks"], details["targets"]
    count, confusion = len(classes), best["confusion"]
    ways = len(drawn[0])
    return (
        all(isinstance(name, str) for name in classes)
        and type(targets) is int
        and all(len(row) == ways for row in drawn)
        and all(type(c) is int and 0 <= c < count for row in drawn for c in row)
        and _numbers(best["by_task"])
        and len(best["by_task"]) == len(drawn)
        and len(best["by_class"]) == count
        and all(type(of["images"]) is int for of in best["by_class"])
        and _numbers([of["accuracy"] for of in best["by_class"] if of["images"]])
        and (other is None or isinstance(other["protocol"], str))
        and (other is None or _numbers([other["accuracy"], other["interval"]]))
        and (confusion is None or [len(row) for row in confusion] == [count] * count)
        and all(type(n) is int for row in confusion or [] for n in row)
        and len(tasks) <= len(drawn)
        and all(_is_task(task, ways) for task in tasks)
    )


def _is_task(task: dict[str, Any], ways: int) -> bool:
    support, targets = task["support"], task["targets"]
    pictures = [uri for of_class in support for uri in of_class]
    shown = [target for of_class in targets for target in of_class]
    return (
        len(support) == len(targets) == ways
        and all(_PICTURE.fullmatch(uri) for uri in pictures + [t["picture"] for t in shown])
        and all(
            type(t[model]) is int and 0 <= t[model] < ways
            for t in shown
            for model in ("best", "ensemble")
        )
    )
