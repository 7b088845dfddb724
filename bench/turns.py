"""Ours against the others, each in a process of its own.

Ours stays for the whole row and takes turns with one of the others after another, round by round,
so that what else the machine does meets both, and no two of the others have to fit into its memory.
A peer that is not installed, dies or does not answer in time is left out, with the reason.
"""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

import torch

from bench import gate
from bench.cases import PEERS, Row, rounds_in
from bench.implementations import missing
from bench.modules import ModuleRow
from bench.worker import Worker

SLOW = 20.0  # seconds; a peer that takes longer gets one round


class Budget(NamedTuple):
    seconds: float  # of the rounds against one of the others
    fewest: int  # rounds
    most: int
    patience: float = 120.0  # seconds that an answer of a peer may take, compilation included


class Measured:
    """What `record` keeps of a row, in dictionaries by implementation."""

    def __init__(self):
        self.rounds: dict[str, list[float]] = {"ours": []}  # seconds of each
        self.memory: dict[str, int] = {}  # bytes
        self.absent: dict[str, str] = {}  # why

    def result(self) -> dict[str, Any]:
        seconds = {name: median(each) for name, each in self.rounds.items()}
        return {"seconds": seconds} | vars(self)


def take_turns(
    row: Row | ModuleRow,
    others: Iterable[str],
    command: str,  # of bench.worker
    budget: Budget,
    benchmark,  # pytest-benchmark's fixture; it sees the rounds against the loop
) -> Measured:
    measured, threads = Measured(), torch.get_num_threads()
    with Worker(row, "ours", threads) as ours:
        own = ours.run(command)

        def our_turn() -> None:
            measured.rounds["ours"].append(ours.run(command).seconds)

        for name in others:
            if reason := missing(name):
                measured.absent[name] = reason
                continue
            gate.check_row(row, name)
            peer, rounds, before = name in PEERS, [], len(measured.rounds["ours"])
            try:
                with Worker(row, name, threads, budget.patience if peer else None) as other:
                    first = other.run(command)
                    gate.check_single(own.loss, name, first.loss)
                    count = rounds_in(own.seconds + first.seconds, *budget[:3])
                    _play(
                        our_turn,
                        lambda: rounds.append(other.run(command).seconds),  # noqa: B023
                        1 if peer and first.seconds > SLOW else count,
                        benchmark if name == "loop" else None,
                    )
                    measured.memory[name] = other.peak()
            except (TimeoutError, RuntimeError) as error:
                if not peer:
                    raise
                measured.absent[name] = str(error)
                del measured.rounds["ours"][before:]  # against nobody
            else:
                measured.rounds[name] = rounds
        measured.memory["ours"] = ours.peak()
    return measured


def _play(ours: Callable, theirs: Callable, rounds: int, benchmark) -> None:
    """Each begins every other round; against the loop, of which pytest-benchmark calls one to set
    the other up, theirs begins all.
    """
    if benchmark is not None:
        benchmark.pedantic(ours, setup=theirs, rounds=rounds)
        return
    for i in range(rounds):
        for turn in (theirs, ours) if i % 2 == 0 else (ours, theirs):
            turn()


def by_turns(row: dict[str, Any], name: str) -> list[tuple[float, float]]:
    """Seconds of another one of a result's row, and of ours in the same round."""
    rounds, start = row["rounds"], 0
    for other, theirs in rounds.items():
        if other == name:
            return list(zip(theirs, rounds["ours"][start:], strict=False))
        start += len(theirs) * (other != "ours")
    return []
