"""A test in parts, for other programs: each task, each class, which class was taken for which."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import torch
from torch import Tensor

from engine.config import Config
from engine.data import Dataset
from engine.episodes import EpisodeSampler
from engine.errors import printable
from engine.scoring import BATCH, TASK_SEED, Predictions

MOST = 200  # classes of which a matrix is told: of more, it would be large and nearly empty
_MODELS = "best", "ensemble"


def breakdown(
    cfg: Config, dataset: Dataset, part: str, found: Predictions, result: dict[str, Any]
) -> dict[str, Any]:
    """``result``, of ``scoring.summary``, with its ``config`` and more of each model.

    ``classes``: names of those of the part, with their quarter turns where these are classes of
    their own; ``task_classes``: the indices of those of each task. Of ``best`` and ``ensemble``:
    ``by_task``, the accuracy in each; ``by_class``, images predicted and the accuracy, None without
    one; ``confusion``, how often (row) each class was taken for (column) each, None where there are
    more than ``MOST`` classes.
    """
    names, drawn = _classes(cfg, dataset, part, len(found.labels))
    true, count = drawn.gather(1, found.labels), len(names)  # [tasks, N]
    details = {"config": cfg.to_dict(), "classes": names, "task_classes": drawn.tolist()}
    for model, predicted in zip(_MODELS, (found.predicted[0], found.predicted[-1]), strict=True):
        taken = drawn.gather(1, predicted)
        images = torch.bincount(true.flatten(), minlength=count).tolist()
        right = torch.bincount(true[true == taken], minlength=count).tolist()
        details[model] = result[model] | {
            "by_task": (predicted == found.labels).double().mean(-1).tolist(),
            "by_class": [
                {"class": name, "images": n, "accuracy": hits / n if n else None}
                for name, n, hits in zip(names, images, right, strict=True)
            ],
            "confusion": _confusion(true, taken, count) if count <= MOST else None,
        }
    return result | details


def _classes(cfg: Config, dataset: Dataset, part: str, tasks: int) -> tuple[list[str], Tensor]:
    """Names, and of the fixed tasks the index of the class that each label stands for, int64
    [tasks, ways].
    """
    bank, source = (
        dataset.banks[part],
        EpisodeSampler.of(cfg, dataset, part, seed=TASK_SEED),
    )
    turned = cfg.rotations == "classes"
    drawn = []
    for first in range(0, tasks, BATCH):
        rows, turns = source.draw(0, min(BATCH, tasks - first), first_task=first)
        classes = torch.searchsorted(bank.starts, torch.from_numpy(rows[..., 0].copy()), right=True)
        classes -= 1
        drawn.append(classes * 4 + torch.from_numpy(turns) if turned else classes)
    names = [*bank.names]
    if turned:
        names = [f"{name} turned {90 * quarter}" for name in names for quarter in range(4)]
    return names, torch.cat(drawn)


def _confusion(true: Tensor, taken: Tensor, count: int) -> list[list[int]]:
    pairs = torch.bincount((true * count + taken).flatten(), minlength=count**2)
    return pairs.view(count, count).tolist()


def as_json(details: dict[str, Any]) -> str:
    """A line a field, for there may be a thousand tasks."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in details.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def as_csv(details: dict[str, Any]) -> str:
    """The same in rows, of which ``what`` says the kind: setting, mean, task, class, and confusion,
    of the pairs of classes that occurred.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["model", "what", "name", "taken for", "value", "interval", "images"])
    about = {name: details[name] for name in ("checkpoint", "trained_on")}
    about |= {"tested_on": details["data"], "part": details["split"]}  # settings have those names
    for name, value in (about | details["config"]).items():
        shown = printable(value) if isinstance(value, str) else value
        rows.writerow(["", "setting", name, "", shown, "", ""])
    names = [*map(printable, details["classes"])]
    images = details["ways"] * details["targets"]
    for model in _MODELS:
        of = details[model]
        total = images * details["tasks"]
        rows.writerow([model, "mean", "", "", of["accuracy"], of["interval"], total])
        for task, accuracy in enumerate(of["by_task"]):
            rows.writerow([model, "task", task, "", accuracy, "", images])
        for name, entry in zip(names, of["by_class"], strict=True):
            rows.writerow([model, "class", name, "", entry["accuracy"], "", entry["images"]])
        for c, counts in enumerate(of["confusion"] or []):
            for taken, count in zip(names, counts, strict=True):
                if count:
                    rows.writerow([model, "confusion", names[c], taken, count, "", ""])
    return text.getvalue()
