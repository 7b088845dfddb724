"""The meta-gradient of a network of one's own as a CUDA graph, where its shapes stay the same.

Autograd launches hundreds of small kernels an inner step, and a GPU waits for Python between them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.episodes import Episode, mapped
from engine.errors import say
from engine.models.interface import Model, Moments, Params
from engine.models.module import Module
from engine.runtime import graph
from engine.unroll import MetaGradient
from kernels import dispatch, tf32

MOST = 8  # graphs of a network: each has memory of its own
_IDLE = 4 * MOST  # calls of others, after which a graph makes room for another one
_CALLS = 64  # kinds of calls that are remembered
OFF = 1e-2  # of a gradient's norm, by which a graph's may differ from what it was captured of

Differentiate = Callable[..., MetaGradient]  # as unroll.adjoint


class Replays:
    """The graphs of a model, one for each kind of call: the second call of a kind captures it, and
    holds the graph to what the call has computed without.

    A graph repeats what the captured call did on the device. Tensors are copied to where it finds
    them, so they may change, and so may a buffer in place that lies there; another attribute of
    module or loss, or of what these hold or close over, makes it another kind. Attributes of
    classes, and what other functions reach, are not seen: where these change, `capture` is to be
    off. A network that draws random numbers, writes to buffers or sets attributes, and tasks that
    differ in their numbers of samples, are called as they are.
    """

    def __init__(self) -> None:
        # by kind: None when seen once, False when it is not to be captured
        self._kinds: dict[tuple, _Replay | bool | None] = {}
        self._calls = 0
        self._lock = threading.Lock()  # a graph's memory is there once

    def __deepcopy__(self, memo: dict) -> Replays:
        return Replays()

    def __reduce__(self) -> tuple:
        return Replays, ()

    @property
    def graphs(self) -> int:
        """How many there are."""
        return sum(map(bool, self._kinds.values()))

    def call(self, differentiate: Differentiate, model: Model, *operands: Any) -> MetaGradient:
        """As `differentiate`, whose operands are those of `engine.unroll.adjoint`."""
        given = Operands(*operands)
        if not _capturable(model, given):
            return differentiate(model, *given)
        with self._lock:
            return self._called(_kind(model, given), differentiate, model, given)

    def _called(
        self, kind: tuple, differentiate: Differentiate, model: Model, given: Operands
    ) -> MetaGradient:
        self._calls += 1
        if known := self._kinds.get(kind):
            known.last = self._calls
            return known(given)
        found = differentiate(model, *given)
        if kind not in self._kinds:
            if len(self._kinds) >= _CALLS:
                self._kinds = {k: v for k, v in self._kinds.items() if v}
            self._kinds[kind] = None
        elif self._kinds[kind] is None:
            self._kinds[kind] = self._captured(differentiate, model, given, found)
        return found

    def _captured(
        self, differentiate: Differentiate, model: Model, given: Operands, found: MetaGradient
    ) -> _Replay | bool:
        if self.graphs >= MOST:
            self._drop_idle(given.params.theta)
        if self.graphs >= MOST:
            say(f"no more than {MOST} CUDA graphs of a network: other shapes are launched anew")
            return False
        made = _Replay(differentiate, model, given)
        if not made.is_graph:  # why was said
            return False
        if apart := _apart(made(given), found):
            say(f"no CUDA graph, kernels are launched one by one: {apart}")
            return False
        made.last = self._calls
        return made

    def _drop_idle(self, like: Tensor) -> None:
        """Such as those of attributes that the module no longer has."""
        if like.is_cuda:  # what is dropped may be under way
            torch.cuda.synchronize(like.device)
        self._kinds = {
            kind: made
            for kind, made in self._kinds.items()
            if not made or made.last > self._calls - _IDLE
        }


class Operands(NamedTuple):
    params: Params
    episode: Episode
    weights: Sequence[float]
    second_order: bool
    running: Moments | None = None

    @property
    def tensors(self) -> tuple:
        """What changes from call to call."""
        return self.params, vars(self.episode), self.running


class _Replay:
    """A call as a graph, with the memory that it reads."""

    last: int  # call that it was used in

    def __init__(self, differentiate: Differentiate, model: Model, given: Operands):
        theta = given.params.theta
        with torch.inference_mode(False):  # a later call may be outside of it
            self._inputs = params, fields, running = mapped(torch.clone, given.tensors)
            self._weights = theta.new_tensor(given.weights)
        pairs = zip(self._weights, given.weights, strict=True)
        weights = [ours if theirs else 0.0 for ours, theirs in pairs]
        own = Operands(params, Episode(**fields), weights, given.second_order, running)

        def body() -> None:
            self._found = differentiate(model, *own)

        self._replay = graph.capture(body, theta.device)
        self.is_graph = self._replay is not body

    def __call__(self, given: Operands) -> MetaGradient:
        mapped(Tensor.copy_, self._inputs, given.tensors)
        self._weights.copy_(torch.tensor(given.weights, dtype=self._weights.dtype))
        self._replay()
        return mapped(torch.clone, self._found)


def _capturable(model: Model, given: Operands) -> bool:
    ragged = any(isinstance(values, list) for values in vars(given.episode).values())
    numbers = not any(isinstance(weight, Tensor) for weight in given.weights)
    plain = model.computes if isinstance(model, Module) else not model.random
    return on_device(given.params.theta) and numbers and plain and not ragged


def on_device(like: Tensor) -> bool:
    return like.is_cuda and not torch.cuda.is_current_stream_capturing()


def _kind(model: Model, given: Operands) -> tuple:
    """All that a graph of the call is bound to."""
    device = given.params.theta.device.type
    numerics = (
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        tf32.state(),
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        dispatch.choice(),
    )
    shapes: list[tuple] = []
    mapped(lambda t: shapes.append((t.shape, t.dtype, t.device)), given.tensors)
    names = tuple(tuple(v) if isinstance(v, dict) else () for v in vars(given.episode).values())
    pattern = tuple(weight != 0 for weight in given.weights)
    own = model.identity() if isinstance(model, Module) else ()
    return numerics, tuple(shapes), names, pattern, given.second_order, own


def _apart(again: MetaGradient, found: MetaGradient) -> str | None:
    """How a graph's result is another one, if it is."""
    names = "loss", *Params._fields
    both = zip(names, (again.loss, *again.gradient), (found.loss, *found.gradient), strict=True)
    for name, ours, theirs in both:
        off = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)
        if theirs.isfinite().all() and not (torch.equal(ours, theirs) or off <= OFF):
            return f"a graph's {name} is off by {off.item():.2g}"
    return None
