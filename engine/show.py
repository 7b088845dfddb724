"""What a training would be and cost on this machine, without any of it: ``engine.train --show``.

The costs are measured on random images of the right shape: some iterations of each part of the
schedule, and a few validation tasks. No data is read and nothing is written, but for what was found
of the machine if that was not known.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import NamedTuple

import torch

import kernels
from engine import meta, scoring
from engine.commandline import FIELDS
from engine.config import GROUPS, Config
from engine.data import Dataset
from engine.data.bank import ClassBank
from engine.episodes import EpisodeSampler
from engine.errors import say
from engine.meta import State
from engine.methods import METHODS, beside
from engine.methods.rates import HEAD
from engine.models import network
from engine.runtime.loop import Loop, loop
from engine.runtime.machine import machine, memory, settled
from engine.settings import Resolved

ITERATIONS, SECONDS = 3, 5.0  # timed of a part: so many at most, and none that begins after so long
TASKS = 8  # timed of a validation


class Part(NamedTuple):
    """Epochs, from 0, whose iterations are alike."""

    epochs: range
    losses: int  # target passes of a task
    order: int  # of the derivatives
    seconds: float  # an iteration


class Cost(NamedTuple):
    parts: list[Part]
    task: float  # seconds of an evaluation task
    memory: int | None  # bytes at the peak; None where the system does not say
    before: int | None  # of them, those before the first iteration

    def iteration(self, cfg: Config) -> float:
        """Mean seconds over the schedule."""
        return sum(len(part.epochs) * part.seconds for part in self.parts) / cfg.epochs

    def seconds(self, cfg: Config) -> float:
        """Of a whole run: its iterations, its validations and the test."""
        training = cfg.epochs * cfg.iterations * self.iteration(cfg)
        return training + cfg.evaluations(cfg.epochs) * cfg.eval_tasks * self.task


def show(asked: Resolved) -> None:
    """Says each setting and where it comes from, the parameters, and what a run would cost."""
    say(*settings(asked))
    with machine(asked.cfg) as device:
        cfg = settled(asked.cfg, device, {})
        say("", parameters(cfg))
        found = cost(cfg, device)
        say(*report(cfg, device, found), "nothing was trained, and no run folder made")


def settings(asked: Resolved) -> list[str]:
    """A line each, below its group."""
    words = {
        "file": str(asked.file),
        "followed": f"{asked.file}, following a flag",
        "preset": f"preset {asked.cfg.preset}",
        "method": f"method {asked.cfg.method}",
    }
    lines = []
    for group in GROUPS:
        lines.append(group)
        for name in (name for name, f in FIELDS.items() if f.metadata["group"] == group):
            source = asked.sources[name]
            value = getattr(asked.cfg, name)
            lines.append(f"  {name:<21} {value!s:<15} {words.get(source, source)}")
    return lines


def parameters(cfg: Config) -> str:
    theta, norm, rates = (tensor.numel() for tensor in meta.layout(cfg).params)
    model = network(cfg)
    norm -= beside.width(cfg, model)
    own = beside.learned(cfg, model)
    if METHODS[cfg.method].any_ways and not METHODS[cfg.method].remembers:
        theta -= sum(model.sizes[-HEAD:])
    learned, affine = 0, norm if cfg.norm_gains == "learned" else norm // 2
    if cfg.rates != "fixed":
        rows = cfg.steps if cfg.rates == "learned" else 1
        rates = learned = rows * int(meta.adapted(cfg, torch.empty(0, device="cpu")).sum())
    of_norm = "gains and biases" if cfg.norm_gains == "learned" else "biases"
    line = (
        f"{theta + affine + learned + own:,} parameters are learned: {theta:,} weights, {affine:,} "
        f"{of_norm}, {learned:,} inner rates" + ("" if learned else f" ({rates:,} are fixed)")
    )
    return line + (f", {own:,} of the method's own" if own else "")


def cost(cfg: Config, device: torch.device) -> Cost:
    """By the iteration that training takes, and the tasks that validate."""
    dataset, state = random_images(cfg), meta.init_state(cfg, device)
    before = memory(device, peak=False)
    tasks = EpisodeSampler.of(cfg, dataset, "train", cfg.seed, evaluation=False)
    parts = []
    with loop(cfg, tasks, range(len(parts_of(cfg)) * (ITERATIONS + 1)), device) as steps:
        for part in parts_of(cfg):
            at = state._replace(iteration=part.epochs.start * cfg.iterations)
            parts.append(part._replace(seconds=_iteration(steps, at)))
    task = _task(cfg, state, dataset)
    return Cost(parts, task, memory(device, peak=True), before)


def parts_of(cfg: Config) -> list[Part]:
    """In their order; not measured yet."""
    ends = {min(end, cfg.epochs) for end in (cfg.msl_epochs, cfg.first_order_epochs, cfg.epochs)}
    parts, first = [], 0
    for end in sorted(ends - {0}):
        losses = sum(weight != 0 for weight in meta.loss_weights(first, cfg))
        order = 2 if meta.second_order(first, cfg) else 1
        parts.append(Part(range(first, end), losses, order, math.nan))
        first = end
    return parts


def _iteration(steps: Loop, state: State) -> float:
    """Mean seconds; the first one, which may compile or capture, does not count."""
    state, took, began = steps.step(state), [], time.monotonic()
    steps.finished(wait=True)
    while len(took) < ITERATIONS and (not took or time.monotonic() - began < SECONDS):
        state = steps.step(state)
        took += [each.seconds for each in steps.finished(wait=True)]
    return sum(took) / len(took)


def _task(cfg: Config, state: State, dataset: Dataset) -> float:
    """Seconds; without a graph on a device, which would be captured for these few."""
    cfg = replace(cfg, no_graph=True)
    scoring.predictions(cfg, [state], dataset, "val", min(TASKS, kernels.threads()))
    began = time.monotonic()
    scoring.predictions(cfg, [state], dataset, "val", TASKS)
    return (time.monotonic() - began) / TASKS


def random_images(cfg: Config) -> Dataset:
    """As many images as one task has."""
    each = max(cfg.shots, cfg.train_shots) + max(cfg.targets, cfg.eval_targets)
    ways = max(cfg.ways, cfg.train_ways)
    generator = torch.Generator("cpu").manual_seed(cfg.seed)
    shape = ways * each, cfg.image_size, cfg.image_size, cfg.channels
    kind = dict(dtype=torch.uint8, device="cpu")
    images = torch.randint(256, shape, generator=generator, **kind)
    starts = torch.arange(ways + 1, device="cpu") * each
    bank = ClassBank(images, starts, tuple(map(str, range(ways))))
    centre = (0.5,) * cfg.channels, (0.25,) * cfg.channels
    return Dataset("random", {"train": bank, "val": bank}, 1 / 255, *centre, "")


def report(cfg: Config, device: torch.device, found: Cost) -> list[str]:
    """The costs in lines."""
    where, count = device.type, kernels.threads()
    if where == "cpu":
        where += f" by {count} thread{'s' * (count > 1)}"
    if cfg.precision != "auto":  # which single ops stay with
        where += f" in {cfg.precision}"
    lines = [f"an iteration of {cfg.tasks} tasks on {where}:"]
    for part in found.parts:
        first, last = part.epochs.start + 1, part.epochs.stop
        epochs = f"epochs {first} to {last}" if last > first else f"epoch {first}"
        losses = "every step" if part.losses == cfg.steps else "the last step"
        order = {1: "first", 2: "second"}[part.order]
        how = f"loss after {losses}" if METHODS[cfg.method].has_steps else "no inner loop"
        if not METHODS[cfg.method].closed_form:
            how += f", {order} order"
        lines.append(f"  {epochs}: {part.seconds:.3f} s ({how})")
    if found.memory is None or found.before is None:
        lines.append("memory: this system does not say")
    else:
        peak, before = (value / 2**20 for value in (found.memory, found.before))
        lines.append(
            f"memory: {peak:,.0f} MiB at the peak, {before:,.0f} MiB before the first iteration; "
            "the images of the data come on top"
        )
    lines.append(f"a validation of {cfg.eval_tasks:,} tasks: {cfg.eval_tasks * found.task:,.1f} s")
    lines.append(
        f"the whole run: {found.seconds(cfg) / 3600:,.2f} hours, of {cfg.epochs:,} epochs of "
        f"{cfg.iterations:,} iterations, their validations and the test"
    )
    return lines
