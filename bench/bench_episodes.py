"""Tasks per second that the sampler makes, alone and through the background prefetch."""

from itertools import count
from statistics import median

import pytest
import torch

from bench.cases import CASES, seconds
from engine.config import Config
from engine.data import ClassBank, Dataset
from engine.episodes import EpisodeSampler, prefetch

CLASSES, IMAGES = 64, 100  # noise: more than the processor's nearer caches hold
PREFETCHED = 50


def noise(cfg: Config) -> Dataset:
    size = (CLASSES * IMAGES, cfg.image_size, cfg.image_size, cfg.channels)
    images = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    starts = torch.arange(CLASSES + 1) * IMAGES
    bank = ClassBank(images, starts, tuple(f"class{i}" for i in range(CLASSES)))
    mean, std = ((value,) * cfg.channels for value in (0.5, 0.25))
    return Dataset("noise", {"train": bank}, 1 / 255, mean, std, identity="noise")


@pytest.mark.parametrize("case", CASES)
def bench_episodes(case: str, benchmark, record):
    cfg = Config.of("htym-head", **CASES[case])
    sampler = EpisodeSampler(
        noise(cfg),
        "train",
        ways=cfg.ways,
        shots=cfg.shots,
        targets=cfg.targets,
        seed=cfg.seed,
        rotations=cfg.rotations,
    )
    iteration = count()
    benchmark.pedantic(
        lambda: sampler.episode(next(iteration), cfg.tasks), rounds=50, warmup_rounds=5
    )

    def draw() -> None:
        for _ in prefetch(lambda t: sampler.episode(t, cfg.tasks), range(PREFETCHED)):
            pass

    record(
        "episodes",
        {
            "case": case,
            "tasks": cfg.tasks,
            "images": cfg.tasks * cfg.ways * (cfg.shots + cfg.targets),
            "seconds": {
                "direct": median(benchmark.stats.stats.data),
                "prefetched": seconds(draw) / PREFETCHED,
            },
        },
    )
