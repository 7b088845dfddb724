"""Networks of one's own through the learner: replayed as graphs, launched anew, and by plain
autograd, which everybody writes first.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from bench import gate, modules
from bench.gpu import clock
from bench.gpu.iterations import QUICK_ROUNDS, QUICK_TURN, ROUNDS, TURN, release, timed
from bench.gpu.progress import Items, Request
from bench.modules import ModuleRow

_OFF = gate.ROUNDED  # of the loss: the products of one may be in TF32, of another not


def items(request: Request) -> Items:
    for row in modules.ROWS:
        if row.case != modules.RESNET12 and row.memory == "fast":
            small = replace(row, small=request.quick)
            yield str(row), lambda r=small: _play(r, request)


def _play(row: ModuleRow, request: Request) -> dict:
    """Seconds an iteration in each round, by player. Raises ValueError when they do not agree."""
    release(request.device)
    options = {"dtype": torch.float32, "device": request.device}
    made = {
        "ours": modules.Ours(row, **options),
        "ours, launched anew": modules.Ours(row, capture=False, **options),
        "loop": modules.Plain(row, **options),
    }
    for _ in range(3):  # the second captures, the third is a replay
        losses = {name: player.iteration() for name, player in made.items()}
        wanted = losses["loop"]
        if odd := {n: x for n, x in losses.items() if not abs(x - wanted) <= _OFF * abs(wanted)}:
            raise ValueError(f"the losses are {odd}, that of the loop is {wanted}")
    turn, rounds = (QUICK_TURN, QUICK_ROUNDS) if request.quick else (TURN, ROUNDS)
    players = {name: timed(_several(player), request.device) for name, player in made.items()}
    taken = clock.take_turns(players, turn, rounds)
    usual = {name: median(each) for name, each in taken.items()}
    return {
        "case": str(row),
        "rounds": taken,
        "graphs": made["ours"].learner.replays.graphs,
        "said": ", ".join(f"{name} {1e3 * s:,.3f} ms" for name, s in usual.items()),
    }


def _several(player: modules.Ours) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            player.iteration()

    return run
