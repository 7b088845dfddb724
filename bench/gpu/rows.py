"""The outer iterations that are measured, what they are to reach, and their networks."""

from dataclasses import replace
from typing import NamedTuple

import torch

from bench.cases import Row, reduced
from engine.config import Config


class Goal(NamedTuple):
    """On an H200, second order: most milliseconds, and least speed-up by tf32."""

    tf32: float
    bf16: float
    loop: float
    jax: float


GOALS = {
    Row.of("mini 5w1s", tasks=4): Goal(5.0, 3.0, 25, 3),
    Row.of("mini 5w1s", loss="last", tasks=4): Goal(1.8, 1.2, 40, 3),
    Row.of("omniglot 20w1s", tasks=8): Goal(1.8, 1.2, 60, 3),
    Row.of("omniglot 5w1s", loss="last", tasks=16): Goal(0.9, 0.8, 100, 2),
}
ROWS = (*GOALS, *(replace(row, order="first") for row in GOALS))
FOREVER = 10**9  # iterations of the epoch in which a row stays


def config(row: Row, precision: str, quick: bool, device: torch.device) -> Config:
    """Of a row, on its first epoch for as long as it is timed; reduced in a dry run."""
    cfg = replace(row.config(), precision=precision, iterations=FOREVER)
    if device.type == "cuda":
        return replace(cfg, tasks=min(cfg.tasks, 2), targets=min(cfg.targets, 2)) if quick else cfg
    return replace(reduced(cfg), image_size=16, targets=1, steps=min(cfg.steps, 2))


def precisions(device: torch.device, *wanted: str) -> list[str]:
    """Those wanted of a GPU; a dry run has the one that every CPU takes."""
    return list(wanted) if device.type == "cuda" else ["fp32"]
