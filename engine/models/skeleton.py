"""A module that threads call at once, each with tensors of its own in it."""

from __future__ import annotations

import copy
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError

_local = threading.local()
_EMPTY = types.CellType()
Key = tuple[int, str]  # which part of a module, which of its attributes
_STRUCTURE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_CONTAINERS, _MOST = (list, dict, set), 1000  # what passes fill is no vocabulary


class Skeleton:
    """A call puts tensors into a module for a while, so each thread has a copy, made
    anew where the module has changed.

    A copy would be another one where an attribute that is no submodule holds a module, or a hook
    sees what passes: then it is the module itself (not `copied`), and threads wait for each other.
    """

    def __init__(self, module: nn.Module):
        self.module, self.version = module, 0
        self.set_by_passes: set[Key] = set()  # attributes, which then tell of no other module
        self._seen = attributes(module)
        self.copied = _is_plain(module)
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple:
        return self.module, self.copied, self.set_by_passes

    def __setstate__(self, state: tuple) -> None:
        self.__init__(state[0])
        self.copied, self.set_by_passes = state[1:]

    def follow(self) -> bool:
        """Whether something has changed since the last call."""
        now = attributes(self.module)
        if not changed(self._seen, now) - self.set_by_passes:
            return False
        self._seen, self.version = now, self.version + 1
        self.copied = _is_plain(self.module)
        return True

    def take_buffers(
        self, before: dict[str, Tensor], after: dict[str, Tensor], keeps: Callable[[str], bool]
    ) -> None:
        """What a pass has put in the place of a buffer is the module's from then on, as its own
        forward would have it, and no change of the module; one that the pass wrote to is so anyway.
        Not of those that it `keeps`.
        """
        if all(after.get(name) is value for name, value in before.items()):
            return
        every = [id(b) for part in self.module.modules() for b in part._buffers.values()]
        for i, (at, part) in enumerate(self.module.named_modules()):
            for leaf, buffer in part._buffers.items():
                name = f"{at}.{leaf}" if at else leaf
                value = after.get(name)
                if keeps(name) or value is before.get(name):
                    continue
                if value is not None and torch._C._functorch.is_batchedtensor(value):
                    raise UserError(
                        f"the module replaces its buffer {name}, of which tasks at once would have "
                        "one each: give vectorize 'auto' or False"
                    )
                if every.count(id(buffer)) > 1:  # of several parts, which it then stays
                    with torch.no_grad():
                        buffer.copy_(value.detach())
                    continue
                part._buffers[leaf] = value if value is None else value.detach()
                self._seen[i, leaf] = part._buffers[leaf]

    @contextmanager
    def lent(self) -> Iterator[nn.Module]:
        """A copy in the modes of the module, or the module, for the caller alone."""
        made = self._copy() if self.copied else None
        with self._lock if made is None else nullcontext():
            yield self.module if made is None else made

    def _copy(self) -> nn.Module | None:
        """This thread's; None of a module that cannot be copied."""
        copies = _local.__dict__.setdefault("copies", weakref.WeakKeyDictionary())
        version, made = copies.get(self, (None, None))
        if version != self.version:
            try:
                made = copy.deepcopy(self.module, _shared(self.module))
            except Exception:  # whatever its attributes raise
                self.copied = False
                return None
            copies[self] = self.version, made
        for own, theirs in zip(made.modules(), self.module.modules(), strict=True):
            own.training = theirs.training
            for name, value in vars(theirs).items():
                held = type(value) in _CONTAINERS and len(value) <= _MOST
                if held and name not in _STRUCTURE:
                    vars(own)[name] = value.copy()  # for what a pass puts there for a while
        return made


def contents(module: nn.Module) -> tuple:
    """Numbers and texts among the attributes of a module and its parts, also in containers, where
    tensors lie, and which other objects they are.
    """
    return tuple(
        _content(value)
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in ("_parameters", "_buffers")
    )


def _content(value: Any, depth: int = 4) -> Any:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple) and depth:
        return tuple(_content(part, depth - 1) for part in value)
    if isinstance(value, Tensor):
        try:
            if not value.dim() and value.device.type == "cpu":  # an argument of a launch
                return repr(value.item())
            return value.data_ptr(), value.shape, value.dtype
        except RuntimeError:  # a sparse one, or one that vmap has left
            return id(value)
    return repr(value) if isinstance(value, bool | int | float | str | None) else id(value)


@contextmanager
def undone(module: nn.Module, *losses: nn.Module) -> Iterator[None]:
    """Of the passes inside nothing is left in numbers among the attributes of module and losses,
    and in the losses' buffers; what a pass did not change stays untouched.
    """
    every = [vars(part) for each in (module, *losses) for part in each.modules()]
    numbers = [{n: v for n, v in own.items() if type(v) in (int, float)} for own in every]
    parts = [part._buffers for loss in losses for part in loss.modules()]
    buffers = [
        (own, name, buffer, buffer._version, buffer.clone())
        for own in parts
        for name, buffer in own.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for own, before in zip(every, numbers, strict=True):
            own.update(before)
        for own, name, buffer, version, value in buffers:
            own[name] = buffer
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


def attributes(module: nn.Module) -> dict[Key, Any]:
    """Of it and its parts, but for their modes; parameters and buffers too."""
    found: dict[Key, Any] = {}
    for i, part in enumerate(module.modules()):
        for of in (vars(part), part._modules, part._parameters, part._buffers):
            found.update(((i, name), value) for name, value in of.items())
        del found[i, "training"]
    return found


def changed(before: dict[Key, Any], after: dict[Key, Any]) -> set[Key]:
    """Attributes that are another object, or not on both sides."""
    if before.keys() == after.keys() and all(map(is_, before.values(), after.values())):
        return set()
    return {k for k in before | after if before.get(k, _EMPTY) is not after.get(k, _EMPTY)}


def _shared(module: nn.Module) -> dict[int, Any]:
    """What deepcopy is to leave as it is, by identity: a change in place is then seen."""
    return {id(value): value for value in _others(module)}


def _others(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        yield from (value for name, value in vars(part).items() if name not in _STRUCTURE)


def _is_plain(module: nn.Module) -> bool:
    hooks = (
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if name.endswith("_hooks")
    )
    return not any(hooks) and not any(map(_holds_module, _others(module)))


def _holds_module(value: Any, depth: int = 4) -> bool:
    """As far as it can be seen; `Module` asks the copy itself, too."""
    if isinstance(value, nn.Module) or not depth:
        return isinstance(value, nn.Module)
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple | set):
        parts = value
    elif isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, weakref.ref):
        parts = [value()]
    elif isinstance(value, Tensor | type | types.ModuleType):
        return False
    else:
        cells = (cell for cell in getattr(value, "__closure__", None) or () if cell != _EMPTY)
        parts = [getattr(value, "__self__", None), *(cell.cell_contents for cell in cells)]
        parts += getattr(value, "__dict__", {}).values()
    return any(_holds_module(part, depth - 1) for part in parts)
