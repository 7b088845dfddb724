"""What details.json of a run holds: the final test in parts, and its first tasks with pictures.

It is what ``breakdown`` tells of the test, and beside:

``other``: the best model under the other protocol, transductive or inductive, on the same tasks:
its ``protocol``, ``accuracy`` and ``interval``; None where that makes no difference (running
statistics normalise), or where its logits are not finite, which is said.

``tasks``: of the first test tasks, what was shown and answered, in the order of ``task_classes``:
``support``, the first pictures of each class, and ``targets``, the first of each class with their
``picture`` and, of ``best`` and ``ensemble``, which of the task's classes it was taken for.
Pictures are data URIs. A run with --no-report keeps none, and no tasks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from engine import scoring
from engine.breakdown import breakdown
from engine.config import Config
from engine.data import Dataset
from engine.episodes import EpisodeSampler
from engine.errors import Diverged, say
from engine.meta import State
from engine.scoring import TASK_SEED, Predictions

TASKS, SUPPORT, TARGETS = 5, 5, 3  # at most: tasks, and pictures of each of their classes
PICTURES = 300  # at most in all tasks, unless one has more


def details(
    cfg: Config,
    members: dict[int, State],  # by epoch, best on validation first
    dataset: Dataset,
    part: str,
    found: Predictions,
    result: dict[str, Any],
    between: Callable[[], None],
) -> dict[str, Any]:
    """Of predictions by the members, and what ``scoring.summary`` made of them."""
    best = next(iter(members.values()))
    return breakdown(cfg, dataset, part, found, result) | {
        "other": _other(cfg, best, dataset, part, between),
        "tasks": [] if cfg.no_report else _tasks(cfg, dataset, part, found),
    }


def _other(
    cfg: Config, best: State, dataset: Dataset, part: str, between: Callable[[], None]
) -> dict[str, Any] | None:
    if cfg.other_protocol is None:
        return None
    cfg = replace(cfg, protocol=cfg.other_protocol)
    try:
        (score, *_), _ = scoring.evaluate(
            cfg, [best], dataset, part, cfg.eval_tasks, between=between
        )
    except Diverged as error:  # of what nobody asked for: the test itself stands
        say(f"no {cfg.protocol} test: {error}")
        return None
    return {"protocol": cfg.protocol, **scoring.shown(score)}


def _tasks(cfg: Config, dataset: Dataset, part: str, found: Predictions) -> list[dict[str, Any]]:
    targets = cfg.eval_targets or cfg.targets
    support, shown = min(cfg.shots, SUPPORT), min(targets, TARGETS)
    most = max(1, PICTURES // (cfg.ways * (support + shown)))
    count = min(TASKS, most, len(found.labels))
    sampler = EpisodeSampler.of(cfg, dataset, part, seed=TASK_SEED)
    rows, turns = sampler.draw(0, count)
    answers = {
        model: found.predicted[at, :count].view(count, cfg.ways, targets).tolist()
        for model, at in (("best", 0), ("ensemble", -1))
    }

    def picture(task: int, way: int, place: int) -> str:
        pixels = sampler.bank[rows[task, way, place]].numpy()
        return _uri(np.rot90(pixels, turns[task, way]) * round(255 * dataset.scale))

    def target(task: int, way: int, place: int) -> dict[str, Any]:
        taken = {model: of[task][way][place] for model, of in answers.items()}
        return {"picture": picture(task, way, cfg.shots + place)} | taken

    return [
        {
            "support": [[picture(t, w, n) for n in range(support)] for w in range(cfg.ways)],
            "targets": [[target(t, w, n) for n in range(shown)] for w in range(cfg.ways)],
        }
        for t in range(count)
    ]


def _uri(pixels: np.ndarray) -> str:  # uint8 [H, W, 1 or 3]
    grey = pixels.shape[-1] == 1
    kind, options = ("png", {"optimize": True}) if grey else ("jpeg", {"quality": 85})
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if grey else pixels))
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
