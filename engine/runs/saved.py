"""The checkpoints of a run as others read them, also while it is trained."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from engine import weights
from engine.config import SCHEDULE, Config
from engine.data.preparation import Preparation
from engine.errors import UserError, explained, listed, nearest
from engine.meta import State
from engine.runs import checkpoint
from engine.runs.checkpoint import Checkpoint, epoch_file
from engine.runs.packed import unpack

_TRIES = 10  # of reading a run that a training changes meanwhile


def load_best(path: Path) -> list[Checkpoint]:
    """The checkpoints that a run folder holds, best on validation first, or the one of a file or of
    a network that comes with the package, by its name.

    A training beside may remove an epoch that is no longer among the best: then the best of now are
    read. Raises UserError when nothing whole is there.
    """
    with explained(f"cannot read {path}", "give a run folder or a .pt file"):
        path = weights.named(path)
        if not path.exists():
            raise UserError(
                f"no checkpoint at {path}: {nearest(path.name, weights.names())}give a run folder, "
                f"a .pt file, or a network of the package ({listed(weights.names())})"
            )
        if not path.is_dir():
            return [checkpoint.load(path)]
        for _ in range(_TRIES):
            before = _mark(path)
            try:
                return _members(path)
            except UserError:
                if _mark(path) == before:
                    raise
    raise UserError(
        f"{path} is trained so fast that its best epochs change while they are read: give "
        f"{path / checkpoint.LATEST}, or wait for the training"
    )


def load_trained(path: Path) -> list[Checkpoint]:
    """As `load_best`, of what engine.train made: raises UserError of what engine.fit did, whose
    network its configuration does not say."""
    saved = load_best(path)
    if own := saved[0].own_network:
        raise UserError(
            f"{path} has a network ({own}) of a script's own, that engine.fit trained: give the "
            "learner and this run folder to engine.fit there, which loads the best epoch, then "
            "call learner.adapt(x, y) or learner.evaluate(tasks)"
        )
    return saved


def _mark(folder: Path) -> tuple[int, ...] | None:
    """What tells one latest.pt from the next; None when there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(folder / checkpoint.LATEST)
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _members(folder: Path) -> list[Checkpoint]:
    path = folder / checkpoint.LATEST
    if not path.exists():
        raise UserError(
            f"{folder} is no run folder, it has no {path.name}: give one, or a .pt file"
        )
    latest = checkpoint.load(path)
    if not latest.best:
        raise UserError(f"{folder} has no validated epoch yet; train on, or give {path}")
    trained, found = Config.from_dict(latest.config), []
    for epoch, _ in latest.best:
        member = checkpoint.load(epoch_file(folder, epoch))
        other = trained.differences(member.config, besides=SCHEDULE)
        if other or (member.epoch, member.data_identity) != (epoch, latest.data_identity):
            raise UserError(
                f"{epoch_file(folder, epoch)} is not epoch {epoch} of the run of {path.name}: put "
                f"its own back, or give {path}"
            )
        found.append(member)
    return found


def own_data(path: Path, trained: Config) -> dict[str, str]:
    """Data of a run on this machine, as far as its folder names it.

    A checkpoint, which may have come from elsewhere, does not: it is in the config.json of ``path``
    or beside it, if that is of the same configuration. That may have come from elsewhere, too: it
    says what to read, and not, as by its cache, where to write.
    """
    folder = path if path.is_dir() else path.parent
    # it is not there, is no JSON, or of no run or of a newer version's
    with contextlib.suppress(OSError, ValueError, UserError):
        found = checkpoint.read_json(folder / checkpoint.CONFIG)
        if isinstance(found, dict):
            there = Config.from_dict(found)
            if there.data is not None and not trained.differences(found, besides=SCHEDULE):
                return {"data": there.data}
    return {}


def preparation(saved: Checkpoint) -> Preparation:
    """How the network of a checkpoint saw its pictures."""
    cfg = Config.from_dict(saved.config)
    if saved.preparation is None:
        return Preparation.of(cfg.dataset, cfg.image_size, cfg.channels)
    return Preparation.from_dict(saved.preparation, cfg.image_size, cfg.channels)


def restore(like: State, saved: list[Checkpoint], device: torch.device) -> dict[int, State]:
    """The states of checkpoints by epoch, in their order, laid out as `like`."""
    return {entry.epoch: unpack(like, entry.state, device) for entry in saved}
