"""Whether the engine and the authors' own code learn the same, from the same weights and episodes.

    HTYM_DIR=CHECKOUT python -m bench.alike FOLDER ITERATIONS [--float64] [flags of engine.train]

trains both side by side and writes a row an iteration to FOLDER/log.jsonl: loss, accuracy and
seconds of both, ours first, and how far apart their gradients and parameters are: of each group the
worst tensor's ‖ours - theirs‖ / ‖theirs‖. In float64 that is rounding. In float32 it grows from one
iteration to the next, for a pooling winner that rounding changes changes every step after it; so
for the first iterations, and every --log-every, the gradients of both at their parameters are also
held against float64 there ("errors"). Both validate after every epoch and at the end, on the same
--eval-tasks tasks. The same command continues a stopped comparison.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.baselines.htym import Groups, Htym, missing
from bench.cases import cast, moved
from bench.implementations import by_name, starting_point
from engine import meta
from engine.config import Config
from engine.data import Dataset
from engine.episodes import Episode, EpisodeSampler
from engine.errors import UserError, say
from engine.meta import Metrics, Schedule, State
from engine.models.interface import Moments, Params
from engine.runs.problem import load_dataset
from engine.runtime.machine import machine, settled
from engine.scoring import TASK_SEED, validate

USAGE = "usage: python -m bench.alike FOLDER ITERATIONS [--float64] [flags of engine.train]"
FIRST = 20  # iterations that are all held against float64


class Pair:
    """Ours and theirs, at the same iteration."""

    def __init__(self, cfg: Config, dtype: torch.dtype = torch.float32):
        self.cfg, self.dtype = cfg, dtype
        self.state = cast(meta.init_state(cfg), dtype)
        self.theirs = Htym(cfg, *starting_point(cfg, self.state))

    def step(self, episode: Episode, exact: bool) -> dict[str, Any]:
        """The row of one iteration; `exact`: with the errors against float64."""
        episode, state = moved(episode, self.dtype), self.state
        before = self._at_theirs() if exact else None
        began = time.monotonic()
        schedule = Schedule.of(state.iteration, self.cfg)
        rows = meta.task_rows(state, episode, self.cfg, schedule)
        found = meta.summed(rows, self.cfg)
        self.state = meta.advance(state, found, self.cfg, schedule)
        ours = Metrics.of(meta.measure(found, rows.right, self.cfg).tolist())
        between = time.monotonic()
        theirs = self.theirs.train(*sets(episode), epoch=state.iteration // self.cfg.iterations)
        ended = time.monotonic()
        gradients = self.theirs.gradients()
        row = {
            "kind": "train",
            "iteration": self.state.iteration,
            "loss": [ours.loss, theirs["loss"]],
            "accuracy": [ours.accuracy, theirs["accuracy"]],
            "seconds": [between - began, ended - between],
            "gradients": apart(self._named(found.gradient), gradients),
            "parameters": apart(
                by_name(self.cfg, self.state.params)._asdict(), self.theirs.places()
            ),
        }
        if before:
            right = self._gradient(cast(before, torch.float64), moved(episode, torch.float64))
            here = self._gradient(before, episode)
            row["errors"] = [apart(here, right), apart(gradients, right)]
        return row

    def _gradient(self, state: State, episode: Episode) -> Groups:
        return self._named(meta.meta_gradient(state, episode, self.cfg).gradient)

    def _named(self, gradient: Params) -> Groups:
        """Clamped, as Adam takes it; only of what is learned."""
        bound = self.cfg.clamp or torch.inf
        theta, norm = (g.clamp(-bound, bound) for g in gradient[:2])
        groups = by_name(self.cfg, Params(theta, norm, gradient.rates))._asdict()
        return {k: g for k, g in groups.items() if k != "rates" or self.cfg.rates == "learned"}

    def _at_theirs(self) -> State:
        params, places = Params(*(p.clone() for p in self.state.params)), self.theirs.places()
        for kind, tensors in by_name(self.cfg, params)._asdict().items():
            for name, place in tensors.items():
                place.copy_(places[kind][name])
        return self.state._replace(params=params)

    def validate(self, dataset: Dataset) -> dict[str, Any]:
        """The row of a validation: accuracy of both, each by its own code."""
        score, _ = validate(self.cfg, self.state, dataset)
        tasks = EpisodeSampler.of(self.cfg, dataset, "val", TASK_SEED)
        each = (tasks.episode(0, 1, first_task=i) for i in range(self.cfg.eval_tasks))
        theirs = sum(self.theirs.test(*sets(task))["accuracy"] for task in each)
        return {
            "kind": "validation",
            "iteration": self.state.iteration,
            "accuracy": [score.accuracy, theirs / self.cfg.eval_tasks],
            "interval": score.interval,
        }

    def save(self, path: Path) -> None:
        groups, model = [tuple(group) for group in self.state[:-1]], self.theirs.model
        kept = groups, self.state.iteration, model.state_dict(), model.optimizer.state_dict()
        torch.save(kept, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        (*groups, running), iteration, parameters, optimiser = torch.load(path)
        self.state = State(*(Params(*g) for g in groups), Moments(*running), iteration)
        self.theirs.model.load_state_dict(parameters)
        self.theirs.model.optimizer.load_state_dict(optimiser)


def sets(episode: Episode) -> tuple[Tensor, ...]:
    return episode.support_x, episode.support_y, episode.target_x, episode.target_y


def apart(ours: Groups, theirs: Groups) -> dict[str, float]:
    """Of each group the worst tensor's."""
    return {
        kind: max(_apart(tensor, theirs[kind][name]) for name, tensor in tensors.items())
        for kind, tensors in ours.items()
    }


def _apart(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖; a norm that all steps share has a row of its own in ours alone."""
    a, b = a.flatten().double(), b.flatten().double()
    distance, size = (a - b).norm().item(), b.norm().item()
    return distance / size if size else distance


def compare(cfg: Config, folder: Path, count: int, dtype: torch.dtype) -> None:
    """Trains both, from where the folder says that they stand, up to an iteration."""
    folder.mkdir(parents=True, exist_ok=True)
    latest, log = folder / "latest.pt", folder / "log.jsonl"
    with machine(cfg) as device:
        cfg = settled(cfg, device, {})
        dataset = load_dataset(cfg, "train", "val")
        tasks, pair = EpisodeSampler.of(cfg, dataset, "train", cfg.seed), Pair(cfg, dtype)
        if latest.exists():
            pair.load(latest)
        rows = [row for row in read(log) if row["iteration"] <= pair.state.iteration]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        say(f"{dataset.name}, after iteration {pair.state.iteration}", *cfg.lines())
        with open(log, "a", encoding="utf-8", buffering=1) as file:

            def tell(row: dict[str, Any], shown: bool) -> None:
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                if shown:
                    say(line(rows, cfg.log_every))

            while (done := pair.state.iteration) < count:
                due = (done + 1) % cfg.log_every == 0
                exact = due or done < FIRST
                tell(pair.step(tasks.episode(done, cfg.tasks), exact), shown=exact)
                ends = (done + 1) % cfg.iterations == 0 or done + 1 == count
                if ends and dtype == torch.float32:  # as the engine's command line computes
                    tell(pair.validate(dataset), shown=True)
                if due or ends:
                    pair.save(latest)


def read(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(text) for text in log.read_text(encoding="utf-8").splitlines()]


def line(rows: list[dict[str, Any]], count: int) -> str:
    """Of the last row: a training's with means over the last `count` of them."""
    row = rows[-1]
    if row["kind"] == "validation":
        ours, theirs = (f"{100 * accuracy:.2f}" for accuracy in row["accuracy"])
        return f"{row['iteration']}: validation {ours} {theirs} ± {100 * row['interval']:.2f} %"
    last = [row for row in rows if row["kind"] == "train"][-count:]
    text = f"{row['iteration']}: mean"
    for name in ("loss", "accuracy", "seconds"):
        means = (sum(values) / len(last) for values in zip(*(r[name] for r in last), strict=True))
        text += f" {name} {' '.join(f'{mean:.4f}' for mean in means)},"
    distances = [(name, row[name]) for name in ("gradients", "parameters")]
    distances += zip(("our errors", "their errors"), row.get("errors", ()), strict=False)
    return text + ",".join(
        f" {name} {' '.join(f'{v:.0e}' for v in found.values())}" for name, found in distances
    )


def main(argv: list[str]) -> int:
    dtype = torch.float64 if "--float64" in argv else torch.float32
    argv = [argument for argument in argv if argument != "--float64"]
    if len(argv) < 2 or not argv[1].isdecimal():
        print(USAGE, file=sys.stderr)
        return 2
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    try:
        compare(Config.resolve(argv[2:]), Path(argv[0]), int(argv[1]), dtype)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
