"""The outer loop's iterations one after the other, where they run.

`HostLoop` makes episodes on the host and answers when an iteration is done. `DeviceLoop` keeps the
class bank, the state and the iteration itself on the device, as a graph, and its metrics arrive
when they arrive. Both go through the same states.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import kernels
from engine import meta
from engine.config import Config
from engine.episodes import EpisodeSampler, Source
from engine.meta import Metrics, Rows, Schedule, State
from engine.models import network
from engine.models.interface import Model
from engine.models.module import Module
from engine.runtime import graph, ranks
from engine.runtime.parcel import Parcel
from engine.runtime.prefetch import prefetch
from engine.runtime.ranks import Alone
from engine.runtime.replay import Replays
from engine.runtime.resident import Feed
from kernels.branch import Branch

AHEAD = 4  # iterations that a device may be behind


class Finished(NamedTuple):
    iteration: int  # 1 for the first
    metrics: Metrics
    seconds: float  # since the one before


class Loop(Protocol):
    """A context manager: leaving it ends its threads."""

    def step(self, state: State) -> State:
        """Begins the iteration after `state`. The next call may write over what it gave."""

    def finished(self, wait: bool = False) -> list[Finished]:
        """Of the iterations that are done and were not told of, in order; `wait` for all begun."""


def loop(
    cfg: Config,
    tasks: Source,
    iterations: range,
    device: torch.device,
    model: Model | None = None,
) -> HostLoop | DeviceLoop:
    """The loop for a device over what is left of a run; `model` if it is not that of `cfg`.

    Tasks of a class bank are gathered on the device, others come from the host.
    """
    captured = model is None and not isinstance(network(cfg), Module)  # which autograd runs
    if device.type == "cuda" and isinstance(tasks, EpisodeSampler) and captured:
        return DeviceLoop(cfg, tasks, iterations, device)
    return HostLoop(cfg, tasks, iterations, device, model)


class HostLoop(contextlib.AbstractContextManager):
    def __init__(
        self,
        cfg: Config,
        tasks: Source,
        iterations: range,
        device: torch.device | None = None,
        model: Model | None = None,
    ):
        self._cfg, self._device, self._model, self._finished = cfg, device, model, []
        self._replays = None if model is None or cfg.no_graph else Replays()
        first, own = ranks.current().share(cfg.tasks)
        # a thread that makes tasks may draw of the same generator as the model
        ahead = 0 if model is not None and model.random else cfg.prefetch
        self._episodes = prefetch(lambda t: tasks.episode(t, own, first), iterations, ahead)

    def __exit__(self, *exc: object) -> None:
        self._episodes.close()

    def step(self, state: State) -> State:
        began = time.monotonic()
        episode = next(self._episodes)
        if self._device is not None and self._device.type != "cpu":
            episode = episode.to(self._device)
        state, metrics = meta.meta_step(state, episode, self._cfg, self._model, self._replays)
        iteration = state.iteration + bool(metrics.nonfinite)
        self._finished.append(Finished(iteration, metrics, time.monotonic() - began))
        return state

    def finished(self, wait: bool = False) -> list[Finished]:
        done, self._finished = self._finished, []
        return done


class DeviceLoop(contextlib.AbstractContextManager):
    """Nothing in a step waits for the device, unless it is `AHEAD` iterations behind.

    Of several ranks each launches graph A, its own tasks; the gather of all ranks' rows; graph B,
    their sum and the step. What came of an iteration, a signal too, is known to all of them when
    the one `AHEAD` iterations later begins, and to none before.
    """

    def __init__(self, cfg: Config, tasks: EpisodeSampler, iterations: range, device: torch.device):
        self._cfg, self._device, self._team = cfg, device, ranks.current()
        first, own = self._team.share(cfg.tasks)
        self._feed = Feed(tasks, tasks.bank.to(device), own)
        self._draws = prefetch(lambda t: tasks.draw(t, own, first), iterations, cfg.prefetch)
        # Loss weights of the steps, Adam's scales, this rank's signal: what changes between replays
        self._numbers = torch.zeros(cfg.steps + 3, dtype=torch.float64, device=device)
        # and, at the end, the signal of any rank
        self._measured = torch.zeros(3 + len(meta.CHECKED), dtype=torch.float32, device=device)
        self._state: State | None = None  # where the iterations find it and leave it
        self._replays: dict[tuple, Callable[[], None]] = {}
        self._free = [_Slot(self._feed, self._numbers, self._measured) for _ in range(AHEAD)]
        self._begun: deque[_Slot] = deque()
        self._finished: list[Finished] = []
        self._signals: deque[tuple[int, int]] = deque()  # of iterations that are done
        self._seen = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._draws.close()

    def step(self, state: State) -> State:
        if not self._begun:  # the time until now, a validation's perhaps, was no iteration's
            self._seen = time.monotonic()
        if self._state is None:
            self._state = _cloned(state)
        elif any(a is not b for a, b in zip(_tensors(state), _tensors(self._state), strict=True)):
            _copy(state, self._state)
        if not self._free:
            self._retire(1)
        slot, schedule = self._free.pop(), Schedule.of(state.iteration, self._cfg)
        wanted = tuple(weight != 0 for weight in schedule.loss_weights)
        slot.iteration = state.iteration + 1
        self._hear(slot.iteration - AHEAD)
        slot.write(schedule.loss_weights, [*schedule.adam, self._team.signal])
        self._feed.load(next(self._draws), slot.indices)
        self._numbers.copy_(slot.numbers, non_blocking=True)
        self._replay(wanted, schedule.second_order)()
        slot.measured.copy_(self._measured, non_blocking=True)
        slot.record()
        self._begun.append(slot)
        return self._state._replace(iteration=state.iteration + 1)

    def finished(self, wait: bool = False) -> list[Finished]:
        ready = len(self._begun) if wait else 0
        # ranks would learn at different iterations that one diverged, and go on without another
        while self._team.alone and ready < len(self._begun) and self._begun[ready].done():
            ready += 1
        self._retire(ready)
        done, self._finished = self._finished, []
        return done

    def _hear(self, iteration: int) -> None:
        """Of signals up to that of an iteration: one that this rank knows early is not all's."""
        while self._signals and self._signals[0][0] <= iteration:
            self._team.hear(self._signals.popleft()[1])

    def _replay(self, wanted: tuple[bool, ...], second_order: bool) -> Callable[[], None]:
        """The iteration with these target passes, captured when first asked for."""
        key = wanted, second_order
        if key not in self._replays:
            before = _cloned(self._state)
            self._replays[key] = self._captured(*self._halves(*key))
            _copy(before, self._state)
        return self._replays[key]

    def _captured(
        self, tasks: Callable[[], Rows], step: Callable[[Rows], None]
    ) -> Callable[[], None]:
        """One graph; of several ranks two, as the gather between them is in none."""

        def capture(body: Callable[[], None]) -> Callable[[], None]:
            return body if self._cfg.no_graph else graph.capture(body, self._device)

        if self._team.alone:
            return capture(lambda: step(tasks()))
        own, signals = tasks(), (self._numbers[-1], self._measured[-1])
        parcel = Parcel(own.tensors(), self._team.size)

        def gathered() -> None:
            signal, rows = parcel.unpacked()
            signals[1].copy_(signal)
            step(own.of(rows))

        first = capture(lambda: parcel.pack(tasks().tensors(), signals[0]))
        second = capture(gathered)

        def replay() -> None:
            first()
            self._team.gather(parcel)
            second()

        return replay

    def _halves(
        self, wanted: tuple[bool, ...], second_order: bool
    ) -> tuple[Callable[[], Rows], Callable[[Rows], None]]:
        """What is made of this rank's tasks, and the step by what was made of all."""
        cfg, state, numbers = self._cfg, self._state, self._numbers
        theta = state.params.theta

        weights, scales = _weights(numbers, cfg.steps), numbers[cfg.steps : cfg.steps + 2].unbind()

        def tasks() -> Rows:
            with kernels.only_kernels():
                chosen = [weights[k] if want else 0.0 for k, want in enumerate(wanted)]
                schedule = Schedule(chosen, second_order, scales)
                return meta.task_rows(state, self._feed.episode(), cfg, schedule)

        def step(rows: Rows) -> None:
            with kernels.only_kernels():
                total = meta.summed(rows, cfg)
                with Branch(theta.device).on() as told:
                    meta.measure(total, rows.right, cfg, self._measured[:-1])
                _copy(meta.advance(state, total, cfg, Schedule((), second_order, scales)), state)
                told.wait()

        return tasks, step

    def _retire(self, count: int) -> None:
        """Takes the metrics of the oldest that were begun, waiting for them."""
        slots = [self._begun.popleft() for _ in range(count)]
        for slot in slots:
            slot.wait(self._team)
        now = time.monotonic()
        for slot in slots:
            *measured, signal = slot.measured.tolist()
            metrics = Metrics.of(measured)
            self._signals.append((slot.iteration, int(signal)))
            self._finished.append(Finished(slot.iteration, metrics, (now - self._seen) / count))
            self._free.append(slot)
        self._seen = now if count else self._seen


class _Slot:
    """The host's side of an iteration that was begun: memory that the device copies from and to."""

    def __init__(self, feed: Feed, numbers: Tensor, measured: Tensor):
        pin = numbers.is_cuda
        self.iteration = 0
        self.indices = feed.staging()
        self.numbers, self.measured = (
            torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=pin)
            for t in (numbers, measured)
        )
        self._event = torch.cuda.Event() if pin else None

    def write(self, weights: Sequence[float], numbers: list[float]) -> None:
        of_steps = _weights(self.numbers, len(weights))
        of_steps.copy_(torch.tensor(weights, dtype=of_steps.dtype, device="cpu"))
        others = self.numbers[len(weights) :]
        others.copy_(torch.tensor(numbers, dtype=others.dtype, device="cpu"))

    def record(self) -> None:
        if self._event is not None:
            self._event.record()

    def done(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self, team: Alone) -> None:
        if self._event is not None:
            team.wait(self._event)


def _weights(numbers: Tensor, steps: int) -> Tensor:  # [K]
    """As the losses take them: no launch has to make float32 of them."""
    return numbers[:steps].view(torch.float32)[::2]


def _tensors(state: State) -> list[Tensor]:
    return [tensor for group in state[:-1] for tensor in group]


def _cloned(state: State) -> State:
    groups = (type(group)(*map(torch.clone, group)) for group in state[:-1])
    return State(*groups, state.iteration)


def _copy(source: State, to: State) -> None:
    torch._foreach_copy_(_tensors(to), _tensors(source))
