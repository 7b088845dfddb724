"""For scale, what no training reaches: nearest centroid on the pixels that the network sees."""

import torch
from torch import Tensor

from engine.config import Config
from engine.data import Dataset
from engine.episodes import Episode, EpisodeSampler
from engine.scoring import BATCH, TASK_SEED, Score, score


def accuracies(episode: Episode) -> Tensor:
    """[T]: how often the class whose support images' mean is nearest is the right one."""
    support, target = episode.support_x.flatten(2), episode.target_x.flatten(2)
    ways = int(episode.support_y.max()) + 1
    centroids = support.unflatten(1, (ways, -1)).mean(2)
    nearest = torch.cdist(target, centroids).argmin(-1)
    return (nearest == episode.target_y).double().mean(-1)


def test(cfg: Config, dataset: Dataset) -> Score:
    """On the tasks that `engine.evaluate` tests on."""
    tasks, total = (
        EpisodeSampler.of(cfg, dataset, "test", seed=TASK_SEED),
        cfg.eval_tasks,
    )
    batches = (
        tasks.episode(0, min(BATCH, total - first), first_task=first)
        for first in range(0, total, BATCH)
    )
    return score(torch.cat([accuracies(batch) for batch in batches]))
