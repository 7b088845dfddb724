"""A device's iterations by ranks:

    torchrun --standalone --nproc-per-node 1 -m -- tests.device_ranks [FOLDER IMAGES]

Each rank has a GPU where there is one, and any number of ranks will do, one too. Elsewhere the CPU
stands in, and a training by the command line, into FOLDER, is stopped and continued as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from engine import train
from engine.episodes import EpisodeSampler
from engine.meta import init_state
from engine.runs.checkpoint import load
from engine.runs.interrupt import Stopped
from engine.runtime import graph, loop, ranks
from engine.runtime.loop import AHEAD, DeviceLoop
from tests.captured import captures_stood_in, config, noise, sampler
from tests.tiny import flags, same

ITERATIONS = 9
CAPTURES = 1, 4, 7  # first order with every target pass, then with the last step's; second order
SIGNAL = 3  # the iteration with which the last rank tells of a signal
STOPPED = 7  # by it, of a training
MORE = "--tasks", 4, "--iterations", 9, "--epochs", 2, "--first-order-epochs", 1, "--prefetch", 0


class Signalled:
    """Stands in for an `Interrupt`, and stops nothing by itself."""

    received = 0

    def check(self) -> None: ...


def last_rank() -> bool:
    return ranks.current().rank == ranks.current().size - 1


def iterations(device: torch.device, interrupt: Signalled, **explicit):
    """The state after them, their metrics, and after which ones a signal stops the rank."""
    cfg = config(tasks=4, **explicit)
    state, found, stopped = init_state(cfg, device), [], []
    with DeviceLoop(cfg, sampler(cfg, noise()), range(ITERATIONS), device) as steps:
        for t in range(1, ITERATIONS + 1):
            if t == SIGNAL and last_rank():
                interrupt.received = signal.SIGINT
            state = steps.step(state)
            found += steps.finished()
            try:
                ranks.current().check(interrupt)
            except Stopped:
                stopped.append(t)
        found += steps.finished(wait=True)
    return state[:-1], [f.metrics for f in found], stopped


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, int]]]:
    """What ranks launch, and of which iteration they learn."""
    told, captured, capture, wait = [], [], graph.capture, loop._Slot.wait

    def capturing(body, device):
        if ranks.current().alone:
            return capture(body, device)
        replay, name = capture(body, device), "AB"[len(captured) % 2]
        captured.append(name)
        told.append(("captured", name))
        return lambda: (told.append(("replayed", name)), replay())

    def gathering(team, parcel):
        told.append(("gathered", parcel.every.shape[0]))
        gather(team, parcel)

    def waiting(slot, team):
        told.append(("learned", slot.iteration))
        wait(slot, team)

    gather = ranks.Ranks.gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "capture", capturing)
        patch.setattr(ranks.Ranks, "gather", gathering)
        patch.setattr(loop._Slot, "wait", waiting)
        yield told


def expected() -> list[tuple[str, int]]:
    told = []
    for t in range(1, ITERATIONS + 1):
        told += [("learned", t - AHEAD)] * (t > AHEAD)
        told += [("captured", "A"), ("captured", "B")] * (t in CAPTURES)
        told += [("replayed", "A"), ("gathered", 4), ("replayed", "B")]
    return told + [("learned", t) for t in range(ITERATIONS - AHEAD + 1, ITERATIONS + 1)]


def same_bits(device: torch.device) -> None:
    """As one process, with graphs and without; launched in order, and a signal known to all at one
    iteration.
    """
    alone, theirs, _ = iterations(device, Signalled())
    interrupt = Signalled()
    with pytest.MonkeyPatch.context() as patch, ranks.joined(interrupt) as team:
        with recorded() as told:
            captured, ours, stopped = iterations(device, interrupt)
        assert told == expected(), told
        assert stopped == [*range(SIGNAL + AHEAD, ITERATIONS + 1)], stopped
        patch.setattr(graph, "capture", None)
        launched, *_ = iterations(device, interrupt, no_graph=True)
        assert same(captured, alone) and same(launched, alone) and ours == theirs
        if team.first:
            print(f"{team.size} on {device}: graph A, gather, graph B: the bits of one", flush=True)


def left_and_joined_again() -> None:
    """By a failure, after which NCCL's part is given up."""
    with contextlib.suppress(KeyboardInterrupt), ranks.joined():
        raise KeyboardInterrupt


def training(folder: Path, images: Path) -> None:
    """Stopped by a signal to the last rank while others are ahead, then continued to its end."""
    draw, argv = EpisodeSampler.draw, flags(images, folder, *MORE)

    def signalled(sampler, iteration, *tasks, **options):
        if iteration == SIGNAL - 2 and last_rank() and not ranks.current().alone:
            os.kill(os.getpid(), signal.SIGINT)  # when the flag of that iteration is written
        return draw(sampler, iteration, *tasks, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "loop", lambda *given: DeviceLoop(*given[:4]))
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(EpisodeSampler, "draw", signalled)
            assert train.main(argv) == 128 + signal.SIGINT
        if os.environ["RANK"] == "0":
            assert load(folder / "latest.pt").state["iteration"] == STOPPED
        assert train.main(argv) == 0


def main(argv: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(ranks, "launched", lambda: True)  # one of torchrun, too
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            stack.enter_context(torch.cuda.device(device))
            same_bits(device)
            left_and_joined_again()
            same_bits(device)
            return
        stack.enter_context(captures_stood_in())
        with kernels.use("plain"):  # the stand-in sees what waits
            same_bits(torch.device("cpu"))
        left_and_joined_again()
        training(*map(Path, argv))


if __name__ == "__main__":
    main(sys.argv[1:])
