"""Run folders with known contents, as a training leaves them, without one."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.config import Config

LAYERS = [f"conv{i}.{part}" for i in range(4) for part in ("weight", "bias")]
LAYERS += ["linear.weight", "linear.bias"]
DATA, ITERATIONS, STEPS = "folder:made", 10, 5


def rate(seed: int, epoch: int, layer: int, step: int) -> float:
    """Some below zero; another one for every place."""
    return 0.1 * math.sin(layer + 0.3 * step + 0.07 * epoch + seed)


def accuracy(seed: int, epoch: int) -> float:
    """Best in the middle, at another epoch for each seed."""
    return 0.9 - ((epoch - 5 * (seed + 1)) / 100) ** 2


def loss(seed: int, epoch: int) -> float:
    return 1.5 / (epoch + seed + 1)


def train_row(epoch: int, iteration: int, of: float, **more: Any) -> dict[str, Any]:
    row = {"kind": "train", "data": DATA, "epoch": epoch, "iteration": iteration}
    return row | {"iterations": 5, "loss": of, "seconds_per_iteration": 0.25} | more


def validation_row(seed: int, epoch: int, best: int, **more: Any) -> dict[str, Any]:
    rates = {
        name: [rate(seed, epoch, layer, step) for step in range(STEPS)]
        for layer, name in enumerate(LAYERS)
    }
    return {
        "kind": "validation",
        "data": DATA,
        "epoch": epoch,
        "iteration": epoch * ITERATIONS,
        "accuracy": accuracy(seed, epoch),
        "interval": 0.01,
        "tasks": 60,
        "step_accuracy": [0.2 + 0.1 * step + epoch / 1000 for step in range(STEPS)],
        "step_tasks": 2,
        "rates": rates,
        "train_loss": loss(seed, epoch),
        "seconds_per_iteration": 0.25 + epoch / 1000,
        "best_epoch": best,
        "peak_memory": 300 * 2**20,
    } | more


def rows(seed: int, epochs: int) -> list[dict[str, Any]]:
    found, best = [], 1
    for epoch in range(1, epochs + 1):
        if accuracy(seed, epoch) > accuracy(seed, best):
            best = epoch
        last = epoch * ITERATIONS
        found += [train_row(epoch, at, loss(seed, epoch)) for at in (last - 5, last)]
        found.append(validation_row(seed, epoch, best))
    return found


def result(seed: int, best: int) -> dict[str, Any]:
    return {
        "data": DATA,
        "identity": "0",
        "split": "test",
        "method": "maml++",
        "ways": 2,
        "shots": 1,
        "targets": 3,
        "tasks": 3,
        "steps": STEPS,
        "protocol": "transductive",
        "norm_statistics": "batch",
        "best": {"epoch": best, "accuracy": 0.5 + seed / 10, "interval": 0.02},
        "ensemble": {"epochs": [best], "accuracy": 0.6 + seed / 10, "interval": 0.01},
    }


def picture(shade: int) -> str:
    """A drawn one, as a data URI."""
    pixels = np.full((8, 8), shade, np.uint8)
    np.fill_diagonal(pixels, 255 - shade)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def details(classes: list[str]) -> dict[str, Any]:
    """Three classes in three tasks of two: 0 and 1, 0 and 2, 1 and 0; three targets of each."""
    confusion = [[7, 1, 1], [2, 4, 0], [3, 0, 0]]
    shown = {
        "support": [[picture(0)], [picture(40)]],
        "targets": [
            [{"picture": picture(80), "best": 0, "ensemble": 0}],
            [{"picture": picture(120), "best": 0, "ensemble": 1}],
        ],
    }
    of = {
        "by_task": [0.5, 2 / 3, 1.0],
        "by_class": [
            {"class": name, "images": n, "accuracy": hits / n}
            for name, n, hits in zip(classes, (9, 6, 3), (7, 4, 0), strict=True)
        ],
        "confusion": confusion,
    }
    return {
        "classes": classes,
        "task_classes": [[0, 1], [0, 2], [1, 0]],
        "targets": 3,
        "best": of,
        "ensemble": of,
        "other": {"protocol": "inductive", "accuracy": 0.4, "interval": 0.03},
        "tasks": [shown],
    }


def write_log(folder: Path, entries: list[dict[str, Any]], rest: str = "") -> None:
    text = "".join(json.dumps(row) + "\n" for row in entries)
    (folder / "log.jsonl").write_text(text + rest)


def make_run(
    folder: Path,
    seed: int = 0,
    epochs: int = 20,
    classes: tuple[str, str, str] = ("a", "b", "c"),
    **settings: Any,
) -> Path:
    """A finished one."""
    folder.mkdir(parents=True)
    own = {"ways": 2, "shots": 1, "epochs": epochs, "iterations": ITERATIONS, "seed": seed}
    cfg = Config.of(**{"dataset": "folder", "run": str(folder)} | own | settings)
    (folder / "config.json").write_text(json.dumps(cfg.to_dict()))
    entries = rows(seed, epochs)
    write_log(folder, entries)
    best = entries[-1]["best_epoch"]
    (folder / "result.json").write_text(json.dumps(result(seed, best)))
    (folder / "details.json").write_text(json.dumps(details([*classes])))
    return folder
