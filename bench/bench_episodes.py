"""Tasks per second that the sampler makes, alone and through the background prefetch."""

from itertools import count
from statistics import median

import pytest

from bench.cases import CASES, noise, seconds
from engine.config import Config
from engine.episodes import EpisodeSampler
from engine.runtime.prefetch import prefetch

CLASSES, IMAGES = 64, 100  # noise: more than the processor's nearer caches hold
PREFETCHED = 50


@pytest.mark.parametrize("case", CASES)
def bench_episodes(case: str, benchmark, record):
    cfg = Config.of("htym-head", **CASES[case])
    sampler = EpisodeSampler(
        noise(cfg, CLASSES, IMAGES),
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
