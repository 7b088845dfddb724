"""What a pass of a module does beside computing its output, found by doing two."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from engine.episodes import mapped
from engine.models.randomness import is_random, random_state
from engine.models.suitable import require_unwritten

_CHECKPOINTS = (
    "the module checkpoints its activations, and would do a pass again with other parameters; "
    "call it without, Learner(memory='low') saves as much"
)


class Findings(NamedTuple):
    random: bool = False  # it draws numbers of torch's own generators, which the engine repeats
    foreign: bool = False  # or of others, or else two passes would not differ
    writes: bool = False  # to buffers, but those of batch norm, or to frozen parameters
    masks: bool = False  # an embedding's padding_idx: under vmap torch does so for one task alone


def layers(module: nn.Module) -> Findings:
    """What can be seen without a pass."""
    return Findings(any(is_random(part) for part in module.modules() if part.training))


def findings(
    module: nn.Module,
    call: Callable[[dict[str, Tensor]], Any],  # a pass with these tensors by name, and its loss
) -> Findings:
    """Of two passes; generators and buffers are then as before. Raises RuntimeError where
    activations are checkpointed, and UserError where parameters to learn are written to.
    """
    with _undisturbed():
        before = _states()
        first, drawn, writes, masks = _pass(module, call)
        second, *_ = _pass(module, call)
        alike = len(first) == len(second) and all(map(same, first, second))
        foreign = not alike or _states() != before
    return Findings(drawn or layers(module).random, foreign, writes, masks)


def strangers(module: nn.Module, call: Callable[[dict[str, Tensor]], Any]) -> list[Tensor]:
    """Tensors to learn that a pass and its loss reach by a way of their own, as a copy those of
    what it is a copy of: with all of the module's taken out of its graph, they are what is left
    there, but for plain ones that a pass makes for itself.
    """
    found = _leaves(module, call)
    if all(isinstance(leaf, nn.Parameter) for leaf in found):
        return found
    again = _leaves(module, call)
    return [a for a in found if isinstance(a, nn.Parameter) or any(a is b for b in again)]


def _leaves(module: nn.Module, call: Callable[[dict[str, Tensor]], Any]) -> list[Tensor]:
    """Of a pass's graph, without those that stand for the module's parameters."""
    results: list[Tensor] = []
    with _undisturbed(), _apart(module):
        own = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
        mapped(results.append, call(own | {n: b.clone() for n, b in module.named_buffers()}))
    waiting = [t.grad_fn for t in results if t.grad_fn is not None]
    found = [t for t in results if t.is_leaf and t.requires_grad]
    seen: set = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.append(leaf)
        waiting += [before for before, _ in node.next_functions]
    return [leaf for leaf in found if not any(leaf is p for p in own.values())]


def _pass(module: nn.Module, call: Callable) -> tuple[list[Tensor], bool, bool, bool]:
    """What it gave; whether it drew of torch's generators, wrote, and masked."""
    like, results, seen = next(module.parameters()), [], _Embeddings()
    with _apart(module), seen, _without_hooks():
        began = random_state(like)
        own = {
            n: p.detach().clone().requires_grad_(p.requires_grad)
            for n, p in module.named_parameters()
        }
        places = {n: p.data_ptr() for n, p in own.items()}
        before = dict(_buffers(module))
        own |= {n: b.clone() for n, b in module.named_buffers()}
        tensors = dict(own)
        mapped(lambda t: results.append(t.detach()), call(tensors))
        drawn = not all(map(torch.equal, began, random_state(like)))

    def stays(name: str, value: Tensor) -> bool:
        placed = places.get(name, own[name].data_ptr()) == tensors[name].data_ptr()
        return placed and tensors[name] is own[name] and same(own[name], value.detach())

    written = {n for n, p in module.named_parameters() if not stays(n, p)}
    require_unwritten([n for n in written if own[n].requires_grad])
    first = {n: b for n, b in before.items() if n in own}  # of one that parts share
    writes = bool(written) or not all(stays(n, b) for n, b in first.items())
    return results, drawn, writes, seen.masked


@contextmanager
def _apart(module: nn.Module) -> Iterator[None]:
    """By autograd, whatever the caller does, and with torch's generators for itself."""
    like = next(module.parameters())
    with (
        torch.random.fork_rng([like.device] * like.is_cuda),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, part in module.named_modules():
        if not isinstance(part, _BatchNorm):
            for leaf, buffer in part.named_buffers(recurse=False):
                yield f"{name}.{leaf}" if name else leaf, buffer


def _states() -> tuple:
    """Of Python's generator and numpy's."""
    name, keys, *place = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *place)


@contextmanager
def _undisturbed() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _without_hooks() -> Iterator[None]:
    """Where the caller has none of his own, that torch would refuse to turn off."""
    off = disable_saved_tensors_hooks(_CHECKPOINTS)
    try:
        off.__enter__()
    except RuntimeError:
        yield
        return
    try:
        yield
    finally:
        off.__exit__(None, None, None)


class _Embeddings(TorchFunctionMode):
    masked = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.embedding:
            index = (kwargs or {}).get("padding_idx", args[2] if len(args) > 2 else None)
            self.masked |= index is not None
        return func(*args, **(kwargs or {}))


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit on a CPU; a GPU may add in any order."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_cuda and a.is_floating_point():
        return torch.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)
    return torch.equal(a, b) or bool(((a == b) | (a != a) & (b != b)).all())
