"""The one place that chooses a backend.

`KERNELS_BACKEND=name` in the environment, or `with kernels.use("name"):`, asks for one explicitly.
An explicit request never falls back: it raises, says why, and what to do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.threads import threads

OPS = ("passes", "conv", "norm_act", "stem", "head", "update", "lstm", "gather")
BACKENDS = ("native", "triton", "cuda", "plain")
# Those that dispatch chooses from on a type of device, the preferred one first.
CHOICES = {"cpu": ("native", "plain"), "cuda": ("triton", "cuda", "plain")}
# How the products of whole passes over float32 images are taken: as they are; of operands rounded
# to TF32 (10 bits of mantissa) or bfloat16 (7); of operands in two parts of either, of which those
# of TF32 are as good as float32 and those of bfloat16 hold 16 bits. Sums are always float32.
PRECISIONS = ("fp32", "tf32", "tf32x3", "bf16x3", "bf16")
# Why a backend has no such op, where that is a choice.
LEFT_OUT = {
    ("native", "head"): "native has no head: as three small matrix products it gains nothing",
    ("native", "stem"): "native has no stem apart from its passes, which contain it",
    ("triton", "head"): "triton has no head apart from its passes, which contain it",
    ("triton", "stem"): "triton has no stem apart from its passes, which contain it",
    ("triton", "lstm"): "triton has no lstm: a GPU takes the rule as torch's own products",
    ("cuda", "lstm"): "cuda has no lstm: a GPU takes the rule as torch's own products",
    ("native", "gather"): "native has no gather: a CPU takes its tasks from the host",
    ("cuda", "gather"): "cuda has no gather: triton and plain have it",
    ("cuda", "passes"): "cuda has no passes: it has the normalisation and the updates alone",
    ("cuda", "conv"): "cuda has no conv: it has the normalisation and the updates alone",
    ("cuda", "head"): "cuda has no head: as three small matrix products it gains nothing",
    ("cuda", "stem"): "cuda has no stem: it has the normalisation and the updates alone",
    ("plain", "passes"): "plain has no passes: it composes them of single ops, in fp32",
}


class Findings(NamedTuple):
    """What a check of this machine found (`kernels.check.verdict`)."""

    failures: dict[tuple[str, str, str], str]  # why not, by backend, op and precision
    fastest: dict[str, str]  # precision of a backend's passes, by measurement


UNCHECKED = Findings({}, {})

_findings: ContextVar[Findings | None] = ContextVar("kernels_findings", default=None)
_VARIABLES = getattr(os.environ, "_data", os.environ)
_VARIABLE = os.environ.encodekey("KERNELS_BACKEND")

_requested: ContextVar[str | None] = ContextVar("kernels_backend", default=None)


class BackendError(RuntimeError):
    """An explicitly requested backend that does not exist or cannot run this op here."""


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op inside the block on backend `name`; `"auto"` gives the choice back to
    dispatch. What recomputes a forward pass later, as `torch.utils.checkpoint` does, does so on the
    backend of then: take the derivative inside of the `with`.
    """
    _named(name)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


@contextmanager
def following(findings: Findings) -> Iterator[None]:
    """Inside the block what failed a check is not chosen, and an explicit request for it raises."""
    token = _findings.set(findings)
    try:
        yield
    finally:
        _findings.reset(token)


def findings() -> Findings:
    """Those that are followed."""
    return _findings.get() or UNCHECKED


def backend(op: str, like: Tensor, *case):
    """The namespace of pure functions (`fwd`, `bwd`, `tan_fwd`, `tan_bwd`) that runs `op` on
    `like`. `case` is what the op's `refusal` takes, if a backend has one: with it the choice is
    among those that run this very geometry.
    """
    name, reason = choose(op, like.device, like.dtype, *case)
    if name is None:
        raise BackendError(reason)
    return getattr(space(name), op)


def passes(like: Tensor, precision: str = "fp32"):
    """The namespace that runs whole passes of a backbone on images like `like` in one call each, or
    `None`: they are then to be composed of single ops, which is no way to another precision than
    fp32.
    """
    name, reason = choose("passes", like.device, like.dtype, precision)
    if name is None and (precision != "fp32" or not _composable()):
        raise BackendError(reason)
    return space(name).passes if name else None


def rule(like: Tensor):
    """The namespace that runs the update rule of the meta-learner LSTM (`fwd`, `bwd`); that of
    `plain` for a backend which leaves the rule to torch.
    """
    return _or_plain("lstm", like)


def gather(like: Tensor):
    """The namespace that makes the images of episodes (`fwd`) on the device of `like`; that of
    `plain` for a backend which leaves it to torch.
    """
    return _or_plain("gather", like)


def _or_plain(op: str, like: Tensor):
    requested = choice()
    if requested != "auto" and (requested, op) in LEFT_OUT:
        return getattr(space("plain"), op)
    return backend(op, like)


def refusal(precision: str, device: torch.device | str = "cpu") -> str | None:
    """Why float32 passes of a precision cannot run on a device, in one line; `None` if they can."""
    name, reason = choose("passes", torch.device(device), torch.float32, precision)
    return None if name else reason


def fastest_precision(like: Tensor) -> str:
    """For passes on images like `like`: the fastest of `PRECISIONS` that takes operands whole
    or in two parts, on a GPU TF32, as torch's own convolutions there. What is not measured is not
    the fastest.
    """
    if like.dtype != torch.float32:
        return "fp32"
    for name in CHOICES.get(like.device.type, ()) if choice() == "auto" else (choice(),):
        best = findings().fastest.get(name)
        if best and _refusal(name, "passes", like.device, like.dtype, (best,)) is None:
            return best
    backend = passes(like)
    best = backend.fastest_precision() if backend else "fp32"
    return "fp32" if refusal(best, like.device) else best


def choose(op: str, device: torch.device, dtype: torch.dtype, *case) -> tuple[str | None, str]:
    """The backend's name and why it was chosen, or `None` and why none can run."""
    if not dtype.is_floating_point:
        return (
            None,
            f"{op}: dtype {dtype} is not a floating-point type; convert the input with x.float()",
        )
    requested = choice()
    if requested != "auto":
        refused = _refusal(requested, op, device, dtype, case)
        if refused is None:
            return requested, "requested"
        return None, f"{refused}; ask for 'auto' to let dispatch choose"
    refusals = []
    for name in CHOICES.get(device.type, ("plain",)):
        refused = _refusal(name, op, device, dtype, case)
        if refused is None:
            return name, "; ".join(refusals) or _praise(name, op)
        refusals.append(refused)
    return None, "; ".join(refusals)


@cache
def space(name: str) -> ModuleType:
    """A backend's namespace: `OPS`, of which each is a namespace of pure functions, and
    `refuses(device, dtype)`. Loaded when first asked for.
    """
    return import_module(f"kernels.{name}")


def _praise(name: str, op: str) -> str:
    scope = getattr(getattr(space(name), op), "SCOPE", None)
    return f"the fastest, for {scope}; other geometries: plain" if scope else "the fastest"


def _refusal(
    name: str, op: str, device: torch.device, dtype: torch.dtype, case: tuple
) -> str | None:
    """Why a backend does not run an op here, in one line; `None` if it does."""
    if op not in space(name).OPS:
        return LEFT_OUT.get((name, op), f"{name} has no {op}")
    refused = space(name).refuses(device, dtype)
    of_case = getattr(getattr(space(name), op), "refusal", None) if not refused else None
    refused = of_case(*case) if of_case and case else refused
    precision = case[0] if op == "passes" and case else "fp32"
    return refused or findings().failures.get((name, op, precision))


def _composable() -> bool:
    """Whether single ops may run instead of whole passes."""
    requested = choice()
    return requested == "auto" or "passes" not in space(requested).OPS


def choice() -> str:
    """The backend that is asked for, or "auto"."""
    requested = _requested.get() or _environment()
    _named(requested)
    return requested


def _environment() -> str:
    """What the environment asks for, looked up as it is: `os.environ` encodes each time, for
    longer than a small kernel takes.
    """
    found = _VARIABLES.get(_VARIABLE)
    return os.fsdecode(found) if found else "auto"


def _named(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise BackendError(
            f"backend {name!r} is not known; use one of {known} in KERNELS_BACKEND or kernels.use()"
        )


def task_block(like: Tensor, keeps: bool = False) -> int | None:
    """Tasks worth giving to one call on images like `like`, `None` for all of them.

    On a CPU `plain` works through the tasks one after the other, and a single task's activations
    stay in the cache between its layers; a backend of whole passes shares them out over the threads
    itself, but what it keeps of them for second derivatives grows with their number. A GPU wants
    them all at once.
    """
    if like.device.type != "cpu":
        return None
    if not passes(like):
        return 1
    return threads() if keeps else None
