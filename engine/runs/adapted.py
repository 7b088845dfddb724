"""A network adapted to classes of one's own, in one file: what it was, what it became, and how a
picture is prepared for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from engine import meta, models
from engine.config import Config
from engine.errors import UserError, explained
from engine.files import replace_file
from engine.methods import METHODS
from engine.methods.loops import loop
from engine.models.interface import Model, Moments, Params
from engine.runs import checkpoint
from engine.runs.packed import FIELDS, unpack

FORMAT = 1  # of what ``save`` writes; raised whenever a field is added
_LABELS = str, int, float, bool


class Member(NamedTuple):
    """What training found: one, or several whose answers are averaged."""

    params: Params
    running: Moments  # [K or 1, S]


class Adapted(NamedTuple):
    """A member after its inner steps, with as many outputs as there are classes."""

    theta: Tensor  # [P']
    row: Tensor  # [G] gains and biases of the last step
    statistics: Moments  # [S] of the adapted network on the support set, or the running ones


Group = TypeVar("Group", Member, Adapted)


def moved(group: Group, device: torch.device | str) -> Group:
    """Every tensor of it on a device."""
    parts = (v.to(device) if isinstance(v, Tensor) else moved(v, device) for v in group)
    return type(group)(*parts)


@dataclass
class Classifier:
    """Tensors, numbers, texts, lists and dicts alone, as a Checkpoint."""

    config: dict[str, Any]  # of the run, with the settings of the adaptation
    data_name: str  # that it was trained on
    precisions: dict[str, str]
    preparation: dict[str, Any]
    classes: list  # in the order of the outputs
    members: list[dict]  # packed Member
    adapted: list[dict]  # packed Adapted, of each member


def _is_classes(value: Any) -> bool:
    """Sorted, each once, of one type."""
    if not isinstance(value, list) or len(value) < 2 or type(value[0]) not in _LABELS:
        return False
    alike = all(type(v) is type(value[0]) for v in value)
    finite = alike and (type(value[0]) is not float or all(map(math.isfinite, value)))
    small = finite and (type(value[0]) is not int or all(-(2**63) <= v < 2**63 for v in value))
    return small and all(a < b for a, b in zip(value, value[1:], strict=False))


def _is_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": FIELDS["config"],
    "data_name": FIELDS["data_name"],
    "precisions": (lambda v: v is not None and FIELDS["precisions"][0](v), FIELDS["precisions"][1]),
    "preparation": (
        lambda v: v is not None and FIELDS["preparation"][0](v),
        FIELDS["preparation"][1],
    ),
    "classes": (_is_classes, "labels of one type, sorted"),
    "members": (_is_dicts, "a list of dicts"),
    "adapted": (_is_dicts, "a list of dicts"),
}


def save(path: Path, classifier: Classifier) -> None:
    """Writes atomically. Raises UserError, with the old file intact, when it cannot, or when
    something else lies there."""
    if not RULES["classes"][0](classifier.classes):
        kinds = ", ".join(sorted({type(label).__name__ for label in classifier.classes}))
        raise UserError(f"labels of type {kinds} cannot be saved: give texts or whole numbers")
    with explained(f"cannot write {path}", "make room there, or name another file"):
        if path.exists() and not is_classifier(path):
            raise UserError(f"{path} is there and no adapted network: name another file")
        replace_file(path, checkpoint.as_bytes({"classifier": FORMAT} | vars(classifier)))


def is_classifier(path: Path) -> bool:
    """Whether a file holds what ``save`` wrote, if perhaps damaged."""
    try:
        content = checkpoint.read(path)
    except UserError:
        return False
    return isinstance(content, dict) and "classifier" in content


def understood(path: Path, content: Any) -> Classifier:
    """What a file that ``save`` wrote holds. Raises UserError when anything in it is not right."""
    saved = checkpoint.checked(path, content, Classifier, "classifier", FORMAT, RULES)
    saved = checkpoint.without_paths(path, saved)
    cfg = Config.from_dict(saved.config)
    ways = len(saved.classes) if METHODS[cfg.method].any_ways else cfg.ways
    if not (len(saved.classes) <= ways and len(saved.adapted) == len(saved.members)):
        raise UserError(
            f"{path} is damaged: it has {len(saved.classes)} classes of {ways}, and "
            f"{len(saved.adapted)} adapted networks of {len(saved.members)}; give another"
        )
    return saved


def network(cfg: Config, classes: int) -> Model:
    """The run's network with the first so many of its outputs; one of its method's as it is."""
    found = models.network(cfg)
    return found if METHODS[cfg.method].remembers else replace(found, ways=classes)


def outputs(cfg: Config, theta: Tensor) -> int:  # [P']
    """Of the network of so many parameters, rounded down: classes, of matching support images."""
    if METHODS[cfg.method].remembers:
        return cfg.ways
    *body, weight, bias = models.network(cfg).sizes
    return (theta.numel() - sum(body)) // (weight // bias + 1)


def unpacked(cfg: Config, saved: Classifier) -> tuple[list[Member], list[Adapted]]:
    """Both on the CPU. Raises UserError as ``packed.unpack``."""
    like, classes = meta.layout(cfg), len(saved.classes)
    member = Member(like.params, like.running)
    if METHODS[cfg.method].by_image and isinstance(saved.adapted[0].get("theta"), Tensor):
        classes = max(classes, outputs(cfg, saved.adapted[0]["theta"]))
    length = sum(network(cfg, classes).sizes)
    if METHODS[cfg.method].remembers:
        length += _remembered(cfg, saved.adapted[0].get("theta"))
    theta = like.params.theta.new_empty(length)
    row = like.params.norm[0, : 2 * like.running.mean.shape[1]]
    adapted = Adapted(theta, row, Moments(*(m[0] for m in like.running)))
    return (
        [unpack(member, entry, "cpu", "members") for entry in saved.members],
        [unpack(adapted, entry, "cpu", "adapted") for entry in saved.adapted],
    )


def _remembered(cfg: Config, theta: Any) -> int:
    """How many numbers after θ are of a support set, as far as so many can be."""
    model = models.network(cfg)
    once, each = loop(cfg, model).remembered_sizes(model)
    found = theta.numel() - sum(model.sizes) - once if isinstance(theta, Tensor) else 0
    return once + each * max(1, found // each)
