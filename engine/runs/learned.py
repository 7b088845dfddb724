"""What a run, a checkpoint or an adapted network has learned, as far as it serves to adapt anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine import meta, weights
from engine.config import Config
from engine.data.preparation import Preparation
from engine.errors import UserError
from engine.runs import adapted, checkpoint
from engine.runs.adapted import Adapted, Classifier, Member
from engine.runs.saved import load_trained, preparation, restore


class Learned(NamedTuple):
    cfg: Config
    data_name: str
    precisions: dict[str, str]  # that `auto` stands for, by type of device
    preparation: Preparation
    members: list[Member]
    classes: list | None = None  # of a source that is adapted to them
    adapted: list[Adapted] | None = None


def learned_from(source: Any, ensemble: bool) -> Learned:
    """Of a run folder the best epoch, or all the best; of what ``adapted.save`` wrote everything;
    of a network that comes with the package that one.

    Raises UserError when nothing whole is there.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(f"source is {source!r}: name a run folder or a .pt file")
    path = weights.named(Path(source))
    if path.is_file():
        content = checkpoint.read(path)
        if isinstance(content, dict) and "classifier" in content:
            return _of_classifier(adapted.understood(path, content))
    saved = load_trained(path)
    if not ensemble:
        saved = saved[:1]
    first = saved[0]
    cfg = Config.from_dict(first.config)
    states = restore(meta.layout(cfg), saved, torch.device("cpu")).values()
    members = [Member(state.params, state.running) for state in states]
    return Learned(cfg, first.data_name, first.precisions or {}, preparation(first), members)


def _of_classifier(saved: Classifier) -> Learned:
    cfg = Config.from_dict(saved.config)
    prepared = Preparation.from_dict(saved.preparation, cfg.image_size, cfg.channels)
    members, found = adapted.unpacked(cfg, saved)
    return Learned(cfg, saved.data_name, saved.precisions, prepared, members, saved.classes, found)
