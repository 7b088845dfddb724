"""A module's copies, one a thread, into which `functional_call` puts tensors for a while."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterator
from operator import is_
from typing import Any

from torch import nn

_local = threading.local()
_TENSORS = {"_parameters", "_buffers"}  # given with each call
_COPIED = _TENSORS | {"_modules", "_non_persistent_buffers_set"}


class Skeleton:
    """The copies have what the module has: attributes that hold no module are shared with it, and
    where one is another than it was, or a module, the copies are made anew (`follow`).
    """

    def __init__(self, module: nn.Module):
        self.module, self.version = module, 0
        self._seen = [*_attributes(module)]

    def follow(self) -> bool:
        """Whether something has changed since the last call."""
        now = [*_attributes(self.module)]
        if len(now) == len(self._seen) and all(map(is_, now, self._seen)):
            return False
        self._seen, self.version = now, self.version + 1
        return True

    def own(self) -> nn.Module:
        """This thread's copy, in the mode of the module."""
        copies = _local.__dict__.setdefault("copies", weakref.WeakKeyDictionary())
        version, made = copies.get(self, (None, None))
        if version != self.version:
            version, made = self.version, copy.deepcopy(self.module, _shared(self.module))
            copies[self] = version, made
        for own, theirs in zip(made.modules(), self.module.modules(), strict=True):
            own.training = theirs.training
        return made


def contents(module: nn.Module) -> tuple:
    """Numbers and texts among the attributes of a module and its parts, also in containers, and
    which other objects they are.
    """
    return tuple(
        _content(value)
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in _TENSORS
    )


def _content(value: Any) -> Any:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return tuple(map(_content, value))
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def _attributes(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        yield from (value for name, value in vars(part).items() if name != "training")
        yield from (*part._modules.values(), *part._parameters, *part._buffers)


def _shared(module: nn.Module) -> dict[int, Any]:
    """What deepcopy is to leave as it is, by identity."""
    return {
        id(value): value
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in _COPIED and not _holds_module(value)
    }


def _holds_module(value: Any) -> bool:
    if isinstance(value, nn.Module) or isinstance(getattr(value, "__self__", None), nn.Module):
        return True
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return isinstance(value, list | tuple | set) and any(map(_holds_module, value))
