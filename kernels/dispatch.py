"""The one place that chooses a backend.

`KERNELS_BACKEND=name` in the environment, or `with kernels.use("name"):`, asks for one explicitly.
An explicit request never falls back: it raises, says why, and what to do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from kernels import plain

OPS = ("conv", "norm_act", "stem", "head", "update")
BACKENDS = {"plain": plain}  # the preferred one first; the last runs anywhere

_requested: ContextVar[str | None] = ContextVar("kernels_backend", default=None)


class BackendError(RuntimeError):
    """An explicitly requested backend that does not exist or cannot run this op here."""


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op inside the block on backend `name`; `"auto"` gives the choice back to
    dispatch.
    """
    _named(name)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def backend(op: str, like: Tensor):
    """The namespace of pure functions (`fwd`, `bwd`, `tan_fwd`, `tan_bwd`) that runs `op` on
    `like`.
    """
    name, reason = choose(op, like.device, like.dtype)
    if name is None:
        raise BackendError(reason)
    return getattr(BACKENDS[name], op)


def choose(op: str, device: torch.device, dtype: torch.dtype) -> tuple[str | None, str]:
    """The backend's name and why it was chosen, or `None` and why none can run."""
    if not dtype.is_floating_point:
        return (
            None,
            f"{op}: dtype {dtype} is not a floating-point type; convert the input with x.float()",
        )
    requested = _requested.get() or os.environ.get("KERNELS_BACKEND") or "auto"
    _named(requested)
    if requested != "auto":
        return requested, "requested"
    return next(reversed(BACKENDS)), "runs anywhere"


def _named(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise BackendError(
            f"backend {name!r} is not known; use one of {known} in KERNELS_BACKEND or kernels.use()"
        )


def task_block(device: torch.device) -> int | None:
    """Tasks worth giving to one call on `device`, `None` for all of them.

    On a CPU `plain` works through the tasks one after the other, and a single task's activations
    stay in the cache between its layers; a GPU wants them all at once.
    """
    return 1 if device.type == "cpu" else None
