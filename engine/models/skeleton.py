"""A module that threads call at once, each with tensors of its own in it."""

from __future__ import annotations

import copy
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.contents import CONTAINERS, MOST, NUMBERS, held

_local = threading.local()
_EMPTY = types.CellType()
Key = tuple[int, str]  # which part of a module, which of its attributes
_STRUCTURE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_OF_ALL = {*vars(nn.Module())}  # attributes that every module has
_FUNCTIONS = types.FunctionType, types.BuiltinFunctionType, types.MethodType, weakref.ref
# What threads share; of other objects each has copies.
_SHARED = (*NUMBERS, *_FUNCTIONS, type, types.ModuleType, Tensor, np.ndarray, nn.Module)


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
        memo: dict[int, Any] = {}
        for own, theirs in zip(made.modules(), self.module.modules(), strict=True):
            own.training = theirs.training
            for name, value in vars(theirs).items():
                if not (name in _OF_ALL or isinstance(value, _SHARED)):
                    vars(own)[name] = _fresh(value, memo)  # for what a pass puts there for a while
        return made


def _fresh(value: Any, memo: dict[int, Any]) -> Any:
    """A thread's own of containers, of objects that have attributes, and of what is in them."""
    if isinstance(value, _SHARED):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, tuple):
        parts = [_fresh(part, memo) for part in value]
        if all(map(is_, parts, value)):
            return value
        return value._make(parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, CONTAINERS):
        pairs = [] if isinstance(value, set | frozenset) else _pairs(value)
        whole = len(value) <= MOST
    else:
        own = getattr(value, "__dict__", {})
        # what has nothing may stand for itself, what copies its own way have more than attributes
        pairs, whole = own.items(), bool(own) and _copies_as_object(type(value))
    made = copy.copy(value) if whole else value
    memo[id(value)] = made
    if whole:
        into = made if isinstance(value, CONTAINERS) else vars(made)
        for key, part in pairs:
            into[key] = _fresh(part, memo)
    return made


def _copies_as_object(kind: type) -> bool:
    names = "__copy__", "__reduce__", "__reduce_ex__", "__getstate__"
    return all(getattr(kind, name, None) is getattr(object, name, None) for name in names)


def _pairs(container: Any) -> list[tuple[Any, Any]]:
    return [*(container.items() if isinstance(container, dict) else enumerate(container))]


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
        found.pop((i, "training"), None)
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
    """As far as it can be seen; `Module` asks the copy itself, too."""
    hooks = (
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if name.endswith("_hooks")
    )
    modules = (value for value in held(*_others(module)) if isinstance(value, nn.Module))
    return not (any(hooks) or any(modules))


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy, of what passes have left in attributes without its graph. Raises UserError where
    it would reach parts of the module itself.
    """
    left = [t for t in held(module) if isinstance(t, Tensor) and not t.is_leaf]
    made = copy.deepcopy(module, {id(t): t.detach().clone() for t in left})
    own = {id(part) for part in (*module.modules(), *module.parameters())}
    if any(id(value) in own for value in held(made)):
        raise UserError(
            "a function among the module's attributes or hooks closes over a part of it, and a "
            "copy would use the original's: call the adapted value itself, or reach the part by "
            "its name"
        )
    return made
