"""What a run tells: one console line, one JSONL row and TensorBoard with the same fields; the
table of a test.

Rows of log.jsonl have a ``kind``, and the name of the ``data``, ``epoch`` (1 for the first) and
``iteration``, the last one that they know of.

``train``, every ``--log-every`` iterations and at the end of an epoch: the means ``loss``,
``accuracy`` (of the target images after the last step) and ``seconds_per_iteration`` over the
``iterations`` since the last such row; ``seconds_left``, ``learning_rate`` and ``order`` of the
derivatives. One that is ``early`` comes when the first iterations since the start or the
continuation have taken ten seconds; the next row holds its iterations too.

``validation``, once an epoch: ``accuracy``, the half-width ``interval`` of its 95 % interval over
so many ``tasks``; ``step_accuracy``, a list: after each inner step, on the first ``step_tasks`` of
the tasks; ``rates``: of each adapted tensor, by its name, a list of its inner learning rate in each
step, learned or fixed; the means of the epoch, ``train_loss``, ``train_accuracy`` and
``seconds_per_iteration``; ``best_epoch`` so far; ``peak_memory`` of the process since it began, in
bytes: on a GPU, of what torch holds there; null where the system does not say. Logs of older
versions have neither ``early`` nor ``iterations``, nor what is by step, nor ``rates``, nor
``peak_memory``.

Where a loss is what counts, ``validation_loss`` and ``step_loss`` stand for ``accuracy`` and
``step_accuracy``, and no row has an accuracy of the training.

TensorBoard has the numbers that are no counts and no lists.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from engine.errors import printable, say
from engine.files import normalised, trained_on
from engine.runs import checkpoint
from kernels.pools import told

if TYPE_CHECKING:  # which imports this module
    from engine.scoring import Score, StepAccuracy

FIRST_ROW = 10.0  # seconds after which the first row comes, however many iterations that were


@dataclass
class Meter:
    """Sums over some iterations; their means are what is reported."""

    count: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, accuracy: float, seconds: float) -> None:
        self.count += 1
        self.loss += loss
        self.accuracy += accuracy
        self.seconds += seconds

    def means(self) -> tuple[float, float, float]:
        """Loss, accuracy, seconds per iteration; NaN where nothing was added."""
        count = self.count or math.nan
        return self.loss / count, self.accuracy / count, self.seconds / count


class Unheard:
    """In place of `Report` where another rank reports."""

    def __init__(self, *about: object):
        pass

    def __enter__(self) -> Unheard:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def nothing_yet(self, seconds: float) -> bool:
        return False

    def progress(self, *row: object) -> None:
        pass

    def train(self, *row: object, early: bool = False) -> None:
        pass

    def validation(self, *row: object) -> None:
        pass


class Report:
    """Console, log.jsonl and TensorBoard of a run that has finished ``iteration`` iterations and
    validated ``epoch`` of its ``epochs``."""

    def __init__(
        self,
        folder: Path,
        data: str,
        iteration: int,
        epoch: int,
        epochs: int,
        total: int,
        metric: str = "accuracy",
        earlier: Sequence[int] = (),  # lengths that the run had before
    ):
        self._earlier = {"earlier_epochs": [*earlier]} if earlier else {}
        self._data, self._epochs, self._total, self._done = data, epochs, total, iteration
        cut_log(folder / checkpoint.LOG, iteration, epoch)
        self._folder, self._by_loss = folder, metric == "loss"
        self._first = time.monotonic() + FIRST_ROW  # when the first row must have come
        with checkpoint.writing(folder):
            self._log = open(folder / checkpoint.LOG, "a", encoding="utf-8")
        self._bar = tqdm(
            total=self._total,
            initial=iteration,
            desc=printable(data),
            disable=None,  # unless stderr is a terminal
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        with contextlib.suppress(OSError):  # a full disk has been reported by the row it met
            self._log.close()
            if board := vars(self).get("_board"):
                board.close()

    @cached_property
    def _board(self) -> Any:
        """Made for the first row: it takes as long to import as an iteration."""
        return _tensorboard(self._folder / checkpoint.BOARD, self._done)

    def progress(self, iteration: int, interval: Meter) -> None:
        """Moves the bar; on a console that is no terminal there is none."""
        loss, accuracy, seconds = interval.means()
        left = _clock((self._total - iteration) * seconds)
        right = "" if self._by_loss else f"accuracy {accuracy:.2%}, "
        postfix = f"loss {loss:.4f}, {right}{seconds:.3f} s/iteration, {left} left"
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(iteration - self._bar.n)

    def nothing_yet(self, seconds: float) -> bool:
        """Whether an early row is due: there is none since the start, and another iteration of so
        many seconds would come too late.
        """
        return time.monotonic() + seconds > self._first

    def train(
        self, iteration: int, epoch: int, lr: float, second: bool, interval: Meter, early: bool
    ) -> None:
        """One row for the iterations of an interval, or ``early`` for those that it has so far."""
        self._first = math.inf
        loss, accuracy, seconds = interval.means()
        self._row(
            iteration,
            {
                "kind": "train",
                "data": self._data,
                "epoch": epoch,
                "iteration": iteration,
                "iterations": interval.count,
                "early": early,
                "loss": loss,
                **self._of_accuracy(accuracy=accuracy),
                "seconds_per_iteration": seconds,
                "seconds_left": (self._total - iteration) * seconds,
                "learning_rate": lr,
                "order": 2 if second else 1,
            },
        )

    def validation(
        self,
        iteration: int,
        epoch: int,
        score: Score,
        by_step: StepAccuracy,
        rates: dict[str, list[float]],  # of each adapted tensor, after each step
        whole_epoch: Meter,
        best_epoch: int,
        memory: int | None = None,
    ) -> None:
        """One row for an epoch: the validation and the means of its training."""
        loss, accuracy, seconds = whole_epoch.means()
        value, by_steps = (
            ("validation_loss", "step_loss") if self._by_loss else ("accuracy", "step_accuracy")
        )
        sign = -1 if self._by_loss else 1  # of a score more is better
        self._row(
            iteration,
            {
                "kind": "validation",
                "data": self._data,
                "epoch": epoch,
                "iteration": iteration,
                value: sign * score.accuracy,
                "interval": score.interval,
                "tasks": score.tasks,
                by_steps: [sign * of_step for of_step in by_step.accuracy],
                "step_tasks": by_step.tasks,
                "rates": rates,
                "train_loss": loss,
                **self._of_accuracy(train_accuracy=accuracy),
                "seconds_per_iteration": seconds,
                "best_epoch": best_epoch,
                "peak_memory": memory,
                **self._earlier,
            },
        )

    def _of_accuracy(self, **values: float) -> dict[str, float]:
        """Nothing where a loss is what counts: the answers may be no classes."""
        return {} if self._by_loss else values

    def say(self, line: str) -> None:
        """Above the bar."""
        self._bar.clear()
        say(line)

    def _row(self, iteration: int, row: dict[str, Any]) -> None:
        if row["kind"] != "train" or self._bar.disable:
            self.say(self._line(row))
        with checkpoint.writing(self._folder):
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()
            if self._board is not None:
                for name, value in row.items():
                    if isinstance(value, float):
                        self._board.add_scalar(f"{row['kind']}/{name}", value, iteration)

    def _line(self, row: dict[str, Any]) -> str:
        head = f"{row['data']}  epoch {row['epoch']}/{self._epochs}"
        if row["kind"] == "train":
            accuracy = f"accuracy {row['accuracy']:.2%}  " if "accuracy" in row else ""
            return (
                f"{head}  iteration {row['iteration']}/{self._total}  loss {row['loss']:.4f}  "
                f"{accuracy}{row['seconds_per_iteration']:.3f} s/iteration  "
                f"lr {row['learning_rate']:.2e}  order {row['order']}  "
                f"{_clock(row['seconds_left'])} left"
            )
        if "validation_loss" in row:
            return (
                f"{head}  validation loss {row['validation_loss']:.4f} ± {row['interval']:.4f} "
                f"({row['tasks']} tasks)  training loss {row['train_loss']:.4f}  best so far: "
                f"epoch {row['best_epoch']}"
            )
        return (
            f"{head}  validation {row['accuracy']:.2%} ± {row['interval']:.2%} "
            f"({row['tasks']} tasks)  training loss {row['train_loss']:.4f}  "
            f"accuracy {row['train_accuracy']:.2%}  best so far: epoch {row['best_epoch']}"
        )


def cut_log(path: Path, iteration: int, epoch: int) -> None:
    """Drops the rows beyond the checkpoint, which the continued run writes again, and a last row
    that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            validated = row["epoch"] <= epoch or row["kind"] != "validation"
            if row["iteration"] <= iteration and validated:
                kept.append(line + "\n")
    checkpoint.write_atomic(path, "".join(kept).encode())


def test_table(result: dict[str, Any]) -> list[str]:
    """The final test in lines; ``result`` is what a problem's test returns."""
    best, ensemble = result["best"], result["ensemble"]
    epochs = ", ".join(map(str, ensemble["epochs"]))
    task = f"{result['ways']}-way {result['shots']}-shot, " if "ways" in result else ""
    told = _loss if result.get("metric") == "loss" else percent
    return [
        *filter(None, [trained_on(result)]),
        f"{result['data']}, {task}{result['tasks']} "
        f"{result['split']} tasks, {result['steps']} inner steps, {normalised(result)}; "
        "± is the 95 % interval over tasks",
        f"  best model      {told(best)}   (epoch {best['epoch']})",
        f"  ensemble of {len(ensemble['epochs']):<3} {told(ensemble)}   "
        f"(mean logits of epochs {epochs})",
    ]


def _loss(score: dict[str, Any]) -> str:
    return f"loss {score['loss']:.4f} ± {score['interval']:.4f}"


def percent(score: dict[str, Any]) -> str:
    """An accuracy with the half-width of its interval."""
    return f"{100 * score['accuracy']:6.2f} % ± {100 * score['interval']:.2f}"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _tensorboard(folder: Path, iteration: int) -> Any:
    """A writer, or None when TensorBoard is not installed or can have no thread."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its optional TensorFlow is talkative
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    try:
        return SummaryWriter(str(folder), purge_step=iteration + 1)
    except RuntimeError as error:
        told(error)
        return None
