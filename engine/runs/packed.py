"""What a checkpoint is made of: a state as tensors, numbers, lists and dicts, and what each field
must be. A file may come from anywhere, so nothing is taken for what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import kernels
from engine.allowed import shown
from engine.errors import UserError, listed

_LARGEST = 1e6  # of a number that normalises images
_OTHER = "it is damaged: give another"


def pack(value: Any) -> Any:
    """Nested named tuples, tuples, tensors and numbers as dicts, lists and CPU tensors."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # clone: a view would drag its whole storage along
    if hasattr(value, "_asdict"):
        return {name: pack(entry) for name, entry in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [pack(entry) for entry in value]
    return value


def unpack(like: Any, packed: Any, device: torch.device | str, name: str = "state") -> Any:
    """``packed`` on the device in the structure of ``like``, by the names of its fields; one that
    an older version had not has its class's default.

    Raises UserError when a name, a shape or a dtype differs, or a number is not finite.
    """
    if isinstance(like, Tensor):
        return _tensor(like, packed, name).to(device)
    if hasattr(like, "_fields"):
        known, needed = set(like._fields), set(like._fields) - like._field_defaults.keys()
        if not isinstance(packed, dict) or not needed <= packed.keys() <= known:
            has = listed(map(str, packed)) if isinstance(packed, dict) else shown(packed)
            raise UserError(
                f"{name} of the checkpoint has {has}, this version takes {listed(like._fields)}; "
                "use the version that made it"
            )
        parts = {f: unpack(getattr(like, f), packed[f], device, f"{name}.{f}") for f in packed}
        return type(like)(**parts)
    if type(packed) is not type(like) or not _is_count(packed):
        raise UserError(f"{name} of the checkpoint is {shown(packed)}, not a count; {_OTHER}")
    return packed


def _tensor(like: Tensor, packed: Any, name: str) -> Tensor:
    plain = isinstance(packed, Tensor) and packed.layout == torch.strided
    found = f"{packed.dtype} {list(packed.shape)}" if plain else shown(packed)
    wanted = f"{like.dtype} {list(like.shape)}"
    if not plain or found != wanted or packed.device.type != "cpu":
        raise UserError(
            f"{name} of the checkpoint is {found}, the network of this configuration needs "
            f"{wanted}; give the checkpoint's own configuration"
        )
    if not packed.isfinite().all():
        count = int((~packed.isfinite()).sum())
        raise UserError(
            f"{name} of the checkpoint has {count} values that are NaN or infinite: the training "
            f"that wrote it had diverged, or {_OTHER}"
        )
    return packed.detach().contiguous()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return _is_count(value) or (type(value) is float and math.isfinite(value))


def _is_best(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(e, list) and len(e) == 2 for e in value)
    return pairs and all(_is_count(epoch) and _is_number(score) for epoch, score in value)


def _is_meter(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_rng(value: Any) -> bool:
    try:
        torch.Generator().set_state(value)
    except (TypeError, RuntimeError):
        return False
    return True


def _is_map(value: Any, *types: type) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and type(entry) in types for key, entry in value.items()
    )


def _is_preparation(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"binary", "scale", "mean", "std"}:
        return False
    mean, std = value["mean"], value["std"]
    if not (isinstance(mean, list) and isinstance(std, list) and std):
        return False
    numbers = [value["scale"], *mean, *std]
    bounded = all(type(v) is float and abs(v) < _LARGEST for v in numbers)
    return bounded and type(value["binary"]) is bool and min(std) > 1 / _LARGEST


def _is_fingerprints(value: Any) -> bool:
    return _is_map(value, list) and all(
        isinstance(entry, list) and len(entry) == 3 and all(type(v) is float for v in entry)
        for entries in value.values()
        for entry in entries
    )


def _is_seen(value: Any) -> bool:
    if not _is_map(value, list) or value.keys() != {"train", "val", "before"}:
        return False
    return all(type(n) is int and 0 <= n < 1 << 48 for numbers in value.values() for n in numbers)


# What each field must be; config by Config, state by ``unpack``.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (lambda v: isinstance(v, dict), "a dict of settings"),
    "data_name": (lambda v: type(v) is str, "a text"),
    "data_identity": (lambda v: type(v) is str, "a text"),
    "state": (lambda v: isinstance(v, dict), "a dict of tensors"),
    "epoch": (_is_count, "a count"),
    "best": (_is_best, "a list of [epoch, accuracy]"),
    "meters": (lambda v: isinstance(v, dict) and all(map(_is_meter, v.values())), "sums"),
    "rng": (_is_rng, "a state of torch's generator"),
    "precisions": (
        lambda v: v is None or (_is_map(v, str) and {*v.values()} <= {*kernels.PRECISIONS}),
        f"one of {', '.join(kernels.PRECISIONS)} by type of device",
    ),
    "fallen": (lambda v: isinstance(v, list) and all(map(_is_count, v)), "a list of epochs"),
    "origin": (lambda v: v is None or _is_map(v, str, int), "texts and counts"),
    "preparation": (
        lambda v: v is None or _is_preparation(v),
        "binary or not, and scale, mean and std as numbers",
    ),
    "fingerprints": (_is_fingerprints, "numbers by name"),
    "lengths": (lambda v: isinstance(v, list) and all(map(_is_count, v)), "a list of epochs"),
    "seen": (lambda v: v is None or _is_seen(v), "numbers of classes"),
    "own_network": (lambda v: v is None or type(v) is str, "the name of a class"),
}
