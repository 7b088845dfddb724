"""The state before the first iteration: random, or with the weights of another run (``--init``)."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine import meta
from engine.combinations import without_effect
from engine.config import Config
from engine.errors import UserError, say
from engine.meta import State
from engine.methods import METHODS, beside
from engine.methods.rates import HEAD
from engine.models import network
from engine.runs import checkpoint
from engine.runs.saved import load_trained, restore
from engine.runs.seen import Seen

# What the shapes and the meaning of all but the classifier follow from.
_NETWORK = (
    "network channels filters stages downsample widths negative_slope norm_eps steps adapt "
    "norm_weights norm_gains norm_stats"
).split()
_OWN = "method", "image_size"  # where the network is the method's
_HEAD = ("ways",)  # where a classifier is part of it, and not the last of its tensors


class Beginning(NamedTuple):
    state: State
    origin: dict[str, Any] | None  # what may be told of the weights of --init: no path
    seen: Seen | None = None  # classes that they have seen


def beginning(cfg: Config, folder: Path, device: torch.device) -> Beginning:
    """A function of ``cfg.seed``, and of what ``cfg.init`` names: of that the network, the gains
    and biases, the inner rates and the running statistics, but nothing of Adam or the schedules.

    A classifier of another shape, by ``ways`` or ``image_size``, stays as random as it was. Raises
    UserError when anything else differs in shape, or when the weights lie in the run's own folder,
    which it would remove.
    """
    state = meta.init_state(cfg, device)
    if cfg.init is None:
        return Beginning(state, None)
    path = Path(cfg.init).expanduser()
    if folder.resolve() in (path.resolve(), path.resolve().parent):
        raise UserError(
            f"--init is {cfg.init}, which lies in the run folder that --fresh empties: give "
            "another --run"
        )
    source = load_trained(path)[0]
    trained = Config.from_dict(source.config)
    own = ()
    if cfg.network == "own":
        own = (*_OWN, *_HEAD * (METHODS[cfg.method].head == "learned"))
    different = [
        f"{name}: {getattr(trained, name)} -> {getattr(cfg, name)}"
        for name in (*_NETWORK, *own)
        if name not in without_effect(cfg) and getattr(trained, name) != getattr(cfg, name)
    ]
    if (trained.rates == "per-parameter") != (cfg.rates == "per-parameter"):
        different.append(f"rates: {trained.rates} -> {cfg.rates}")
    before, own = (beside.learned(c, network(c)) for c in (trained, cfg))
    if before != own:
        different.append(f"numbers beside the network's: {before:,} -> {own:,}")
    if different:
        raise UserError(
            f"--init is {cfg.init}, of another network ({'; '.join(different)}): give its own "
            "values, or other weights"
        )
    (given,) = restore(meta.layout(trained), [source], device).values()
    body = sum(network(cfg).sizes[:-HEAD])
    (theta, norm, rates), head = given.params, "its classifier"
    # What a method averages and does not learn begins anew, as Adam's moments do.
    taken = 2 * sum(network(cfg).norm_widths) + own
    norm = torch.cat([norm[:, :taken], state.params.norm[:, taken:]], 1)
    if network(trained).sizes != network(cfg).sizes:
        theta = torch.cat([theta[:body], state.params.theta[body:]])
        if cfg.rates == "per-parameter":
            rates = torch.cat([rates[:, :body], state.params.rates[:, body:]], 1)
        shapes = (f"{c.ways}-way {c.image_size}x{c.image_size}" for c in (trained, cfg))
        head = f"a new classifier ({' -> '.join(shapes)})"
    line = (
        f"starting from epoch {source.epoch} of {cfg.init}, trained on {source.data_name}: its "
        f"convolutions, gains, inner rates and running statistics, {head}"
    )
    say(line)
    origin = {
        "data_name": source.data_name,
        "data_identity": source.data_identity,
        "epoch": source.epoch,
        "weights": _digest(given),
    }
    return Beginning(
        state._replace(
            params=given.params._replace(theta=theta, norm=norm, rates=rates),
            running=given.running,
        ),
        origin,
        source.seen,
    )


def named(folder: Path) -> str | None:
    """What the run in a folder began with, as its config.json has it; None where that names
    nothing or cannot be read."""
    with contextlib.suppress(OSError, ValueError, UserError):
        found = checkpoint.read_json(folder / checkpoint.CONFIG)
        return Config.from_dict(found).init if isinstance(found, dict) else None
    return None


def otherwise(init: str | None, folder: Path, origin: dict[str, Any] | None) -> str | None:
    """How the run in a folder began, in words, if not with what ``init`` names; None where it did,
    or ``init`` is None. The same place is not read again: it may be gone, or trained on."""
    if init is None:
        return None
    if origin is None:
        return "without it"
    first = named(folder)
    if first is not None and _place(first) == _place(init):
        return None
    with contextlib.suppress(UserError):  # what cannot be read is other than what was
        source = load_trained(_place(init))[0]
        like = meta.layout(Config.from_dict(source.config))
        (given,) = restore(like, [source], torch.device("cpu")).values()
        if _digest(given) == origin.get("weights"):
            return None
    return f"with the weights of {first or 'another'}"


def _place(init: str) -> Path:
    """A link's own, and not where it leads: that may change."""
    return Path(init).expanduser().absolute()


def _digest(state: State) -> str:
    tensors = (*state.params, *state.running)
    content = b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()[:32]
