"""What `test_ranks` starts by torchrun: python -m tests.ranked FOLDER CHECKPOINT IMAGES"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import engine
from engine import Episode, evaluate
from engine.errors import UserError
from engine.examples import ddp
from engine.runtime import ranks


def episode(i: int) -> Episode:
    generator = torch.Generator().manual_seed(i)
    x = [torch.randn(4, n, 2, 6, 6, generator=generator) for n in (6, 9)]
    y = [torch.arange(n).remainder(3).expand(4, -1) for n in (6, 9)]
    return Episode(x[0], y[0], x[1], y[1])


def fitted(folder: Path) -> None:
    """A network of one's own; its tasks one after the other, on one core."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    learner = engine.Learner(network, steps=2, vectorize=False)
    options = {"epochs": 2, "iterations": 3, "eval_tasks": 8, "ensemble": 2, "msl_epochs": 1}
    engine.fit(learner, episode, val=episode, run=folder, first_order_epochs=1, **options)


def averaged(folder: Path) -> None:
    """The gradients that `DistributedDataParallel` gives a learner, of two tasks a rank, are those
    of all four; then the example.
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
        alone, shared = learner(), DistributedDataParallel(learner())
        alone(whole).loss.backward()
        first, own = team.share(whole.tasks)
        shared(whole.slice(first, first + own)).loss.backward()
    for mine, all_tasks in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, all_tasks.grad, rtol=1e-12, atol=1e-14)
    theta = torch.cat([p.detach().flatten() for p in ddp.main(3).parameters()])
    torch.save(theta, folder / f"ddp-{team.rank}.pt")


def main(folder: Path, checkpoint: str, images: str) -> None:
    averaged(folder)
    fitted(folder / "fit")
    written = folder / "evaluation.json"
    assert evaluate.main([checkpoint, "--data", images, "--json", str(written)]) == 0
    refused = []
    with ranks.joined() as team:
        assert team.spread(range(5), lambda i: i * i) == [0, 1, 4, 9, 16]
        assert team.by_first(lambda: f"of rank {team.rank}") == "of rank 0"
        for ask in (lambda: team.share(3), lambda: team.agree({"torch": f"2.{team.rank}"})):
            try:
                ask()
            except UserError as error:
                refused.append(str(error))
        if team.first:
            (folder / "refused.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    main(Path(sys.argv[1]), *sys.argv[2:])
