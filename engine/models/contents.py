"""What a module, a loss or another object holds beside its tensors, as a key."""

from __future__ import annotations

import types
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONTAINERS, MOST = (dict, list, set, frozenset, tuple, deque), 1000  # a vocabulary is not filled
NUMBERS = bool, int, float, complex, str, bytes, type(None), np.generic
_DEPTH, _ENOUGH = 5, 20_000  # of a look at what attributes hold
_EMPTY = types.CellType()


class _Same:
    """An object as part of a key: equal to itself alone, and held, so that no other one is taken
    for it.
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def contents(*roots: Any, written: bool = False, device: torch.device | None = None) -> tuple:
    """What a pass may read or change: numbers and texts in the attributes of modules and their
    parts and of other objects, in containers and in what functions close over; where tensors lie,
    or what they hold if that is not on `device`; and which other objects. `written`: instead which
    tensors, and how often they were written to.
    """
    found: list = []
    seen: set[int] = set()

    def look(value: Any, enough: int, depth: int = _DEPTH) -> None:
        if isinstance(value, NUMBERS):
            found.append(repr(value))
        elif isinstance(value, Tensor):
            found.append((_Same(value), _times(value)) if written else placed(value, device))
        elif isinstance(value, np.ndarray) and value.size <= MOST:
            found.append((value.shape, value.tobytes()))
        else:
            found.append(_Same(value))
            if depth and id(value) not in seen and len(found) < enough:
                seen.add(id(value))
                for part in _parts(value):
                    look(part, enough, depth - 1)

    for root in roots:
        for part in root.modules() if isinstance(root, nn.Module) else [root]:
            look(part, len(found) + _ENOUGH)
    return tuple(found)


def held(*roots: Any) -> Iterator[Any]:
    """The objects and tensors among the contents."""
    for part in contents(*roots, written=True):
        same = part[0] if isinstance(part, tuple) else part
        if isinstance(same, _Same):
            yield same.value


def placed(tensor: Tensor, device: torch.device | None) -> Any:
    """A tensor as a captured launch has it: a number of the host's, its argument, by value, also
    where it lies in a tensor that is not on `device`; else by its place.
    """
    host = tensor.device.type == "cpu"
    try:
        if host and not tensor.dim():
            return repr(tensor.item())
        if host and device is not None and device.type != "cpu":
            values = tensor.tolist() if tensor.numel() <= MOST else tensor._version
            return tensor.data_ptr(), tensor.shape, repr(values)
        return tensor.data_ptr(), tensor.shape, tensor.dtype
    except RuntimeError:  # a sparse one, or one that vmap has left
        return id(tensor)


def _times(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _parts(value: Any) -> list:
    if isinstance(value, Tensor | type | types.ModuleType):
        return []
    if isinstance(value, CONTAINERS):
        if len(value) > MOST:
            return [len(value)]
        return [*value, *value.values()] if isinstance(value, dict) else [*value]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, value.keywords]
    parts = []
    if isinstance(value, types.FunctionType):
        cells = (cell for cell in value.__closure__ or () if cell != _EMPTY)
        parts = [value.__defaults__, *(cell.cell_contents for cell in cells)]
        if not (value.__module__ or "").startswith("torch."):
            reached = (value.__globals__.get(name) for name in value.__code__.co_names)
            parts += [part for part in reached if not isinstance(part, type | types.ModuleType)]
    own = getattr(value, "__dict__", {})
    of_module = {"_parameters", "_buffers", "_modules"} if isinstance(value, nn.Module) else ()
    return parts + [part for pair in own.items() if pair[0] not in of_module for part in pair]
