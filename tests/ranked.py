"""What `test_ranks` starts by torchrun: python -m tests.ranked WHAT FOLDER [ARGUMENT ...]"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import engine
from engine import Episode, evaluate, train
from engine.data import bank
from engine.errors import UserError
from engine.examples import ddp
from engine.runtime import ranks
from tests import device_ranks
from tests.tiny import flags

TASKS = 8


def episode(i: int) -> Episode:
    generator = torch.Generator().manual_seed(i)
    x = [torch.randn(TASKS, n, 2, 6, 6, generator=generator) for n in (6, 9)]
    y = [torch.arange(n).remainder(3).expand(TASKS, -1) for n in (6, 9)]
    return Episode(x[0], y[0], x[1], y[1])


class Dropped(nn.Module):
    """Draws random numbers, also in evaluation, without a layer that says so."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(72, 24), nn.Linear(24, 3)

    def forward(self, x):
        return self.out(F.dropout(self.body(x.flatten(1)).tanh(), 0.3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 24), nn.Tanh(), nn.Linear(24, 3))


# A network, how its tasks are computed, and what the run is told of that.
OWN = {
    "one-by-one": (convolutions, {"vectorize": False}, {}),
    "vmap": (perceptron, {"vectorize": 2}, {}),
    "dropout": (Dropped, {"memory": "low"}, {"threads": 1}),
}


def fitted(
    folder: Path, name: str, stop: int = 0, settings: dict | None = None, **changes: object
) -> None:
    """Trains one of OWN in first, then second order, and from all steps' losses to the last one's;
    the last rank gets a Ctrl-C when it makes the tasks of iteration `stop`, if that is not 0.
    """
    make, options, own = OWN[name]
    last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1

    def tasks(i: int) -> Episode:
        if stop and i == stop and last:
            os.kill(os.getpid(), signal.SIGINT)
        return episode(i)

    torch.manual_seed(0)
    learner = engine.Learner(make(), steps=2, **options | changes)
    usual = {"epochs": 3, "iterations": 3, "eval_tasks": 16, "ensemble": 2, "msl_epochs": 2}
    usual |= {"first_order_epochs": 1, **(own if settings is None else settings)}
    with contextlib.suppress(KeyboardInterrupt):
        engine.fit(learner, tasks, val=episode, run=folder, **usual)


def stage(folder: Path, stop: str) -> None:
    for name in OWN:
        fitted(folder / name, name, int(stop))


def trained(folder: Path, images: str) -> None:
    """By the command line: passes in all ways, and another network."""
    for name, more in TRAINED.items():
        assert train.main(flags(Path(images), folder / name, *more)) == 0


FEW = "--tasks", 8, "--epochs", 2, "--iterations", 2, "--first-order-epochs", 1
TRAINED = {
    "fused": FEW,
    "autograd": (*FEW, "--unroll", "autograd"),
    "plain": (*FEW, "--backend", "plain"),
    "reptile": (*FEW[:-2], "--method", "reptile", "--train-shots", 2, "--inner-batch", 4),
    "context": (*FEW[:-2], "--method", "matching", "--steps", 1, "--context", 2),
    "lstm": (*FEW[:-2], "--method", "lstm"),
    "imaml": (*FEW, "--method", "imaml", "--cg-steps", 2),
    "resnet12": (
        *("--network", "resnet12", "--widths", "4,4,4,4", "--filters", 48, "--stages", 4),
        *FEW,
    ),
}


def built(folder: Path, *argv: str) -> None:
    """A training that leaves a file for each process that wrote the cache."""
    write, here = bank.write_bank, f"{os.environ['GROUP_RANK']}-{os.environ['LOCAL_RANK']}"

    def writing(*args, **options) -> None:
        (folder / f"built-{here}").touch()
        write(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "write_bank", writing)
        assert train.main([*argv]) == 0


def averaged(folder: Path) -> None:
    """The gradients that `DistributedDataParallel` gives a learner, of some tasks a rank, are those
    of all; then the example.
    """
    whole = episode(7)
    whole = Episode(
        whole.support_x.double(), whole.support_y, whole.target_x.double(), whole.target_y
    )

    def learner() -> engine.Learner:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3))
        return engine.Learner(network.double(), steps=2)

    with ranks.joined() as team:
        alone, mine = learner(), learner()
        alone(whole).loss.backward()
        first, own = team.share(whole.tasks)
        shared = DistributedDataParallel(mine)
        shared(whole.slice(first, first + own)).loss.backward()
        del shared
        gc.collect()  # as in the example
    for averaged, of_all in zip(mine.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(averaged.grad, of_all.grad, rtol=1e-12, atol=1e-14)
    theta = torch.cat([p.detach().flatten() for p in ddp.main(3).parameters()])
    torch.save(theta, folder / f"ddp-{team.rank}.pt")


def others(folder: Path, checkpoint: str, images: str) -> None:
    """Whatever is no training, and what is refused."""
    averaged(folder)
    written = folder / "evaluation.json"
    assert evaluate.main([checkpoint, "--data", images, "--json", str(written)]) == 0
    refused = []
    with ranks.joined() as team:
        assert team.spread(range(5), lambda i: i * i) == [0, 1, 4, 9, 16]
        assert team.by_first(lambda: f"of rank {team.rank}") == "of rank 0"
        assert team.by_first(lambda: 7, told=False) == (7 if team.first else None)
        for ask in (
            lambda: team.share(3),
            lambda: team.agree({"torch": f"2.{team.rank}"}),
            lambda: fitted(folder / "vmap", "vmap", vectorize="auto"),
            lambda: fitted(folder / "vmap", "vmap", vectorize=3),
            lambda: fitted(folder / "dropout", "dropout", settings={}),
        ):
            try:
                ask()
            except UserError as error:
                refused.append(str(error))
        if team.first:
            (folder / "refused.json").write_text(json.dumps(refused))


def all_of_it(folder: Path, checkpoint: str, images: str) -> None:
    """One start of the processes for all that needs no fault; networks of one's own are stopped."""
    trained(folder / "trained", images)
    others(folder, checkpoint, images)
    stage(folder / "own", "3")
    device_ranks.main([str(folder / "device"), images])


if __name__ == "__main__":
    assert int(os.environ["WORLD_SIZE"]) > 1
    what = {f.__name__: f for f in (stage, built, all_of_it)}[sys.argv[1]]
    what(Path(sys.argv[2]), *sys.argv[3:])
