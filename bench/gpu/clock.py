"""Seconds of work that a device does while the host goes on: always waited for at both ends."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from bench.graphs import captured

LAUNCHES = 20  # of a call in one graph: the gap between two graphs counts little then
BUDGET = 0.05  # seconds of measuring a call
FEWEST, MOST = 5, 200  # rounds
SLOW = 5.0  # seconds of an iteration


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call by the host's clock, from an idle device to an idle device."""
    wait(device)
    start = perf_counter()
    call()
    wait(device)
    return perf_counter() - start


def of_call(call: Callable[[], object], device: torch.device, capture: bool = True) -> float:
    """Median seconds of a call. On a GPU it is replayed in a graph of many, so that what the host
    does between launches is not in it; without `capture` the host's part is.

    It works on the same values every time, which a cache may hold, as it does in training.
    """
    capture = capture and device.type == "cuda"
    run, calls = (captured(call, LAUNCHES), LAUNCHES) if capture else (call, 1)
    run()
    once = elapsed(run, device)
    rounds = min(max(int(BUDGET / once), FEWEST), MOST)
    return median(elapsed(run, device) for _ in range(rounds)) / calls


def take_turns(
    players: dict[str, Callable[[int], float]],  # seconds that so many iterations take
    budget: float,  # seconds for each turn
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds an iteration in each round, of all players, one after the other, in one order and
    then in the other, so that what else the machine does meets all of them.

    A turn is as many iterations as fit in the budget; who takes more for one plays one, and if
    that is slow, all play one round only.
    """
    once = {}
    for name, play in players.items():
        play(1)
        once[name] = max(play(1), 1e-6)
    counts = {name: max(1, int(budget / seconds)) for name, seconds in once.items()}
    rounds = 1 if max(once.values()) > SLOW else rounds
    taken: dict[str, list[float]] = {name: [] for name in players}
    for r in range(rounds):
        for name in list(players)[:: -1 if r % 2 else 1]:
            taken[name].append(players[name](counts[name]) / counts[name])
    return taken
