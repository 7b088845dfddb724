"""What tasks, a network and a loss are known by: they are somebody's own code, of which only values
compare.

A fingerprint is three numbers a tensor: how many values, their norm, and their product with a fixed
wave. Another machine may compute tasks otherwise in their last bits, and a network in rounded
products, so these are compared by their first digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.episodes import Episode, mapped
from engine.meta import State
from engine.models.interface import Moments, Params
from engine.models.module import Module

Fingerprint = list[list[float]]
_NEAR = 1e-3  # of the norm
NETWORK = "network"  # whose fingerprint is compared by `_NEAR_NETWORK`
_NEAR_NETWORK = 3e-2


def of_tasks(make: Callable[[int], Episode]) -> Fingerprint | None:
    """Of episode 0; None where it is not the same when it is made again."""
    first, again = (_of(vars(make(0))) for _ in range(2))
    return first if alike(first, again) else None


def of_loss(criterion: Callable[[Any, Any], Tensor], output: Any, y: Any) -> Fingerprint | None:
    """Of one task's: its value on a wave in [0, 1] of the shape of an output. None where it cannot
    be computed of such, or is random."""
    wave = mapped(lambda v: ((1 + wave_like(v)) / 2).to(v.device, v.dtype), output)
    return of_call(lambda: criterion(wave, y))


def of_call(call: Callable[[], Any]) -> Fingerprint | None:
    """Of what it gives; None where that is another each time, or it fails."""
    try:
        first, again = (_of(call()) for _ in range(2))
    except Exception:  # somebody's code, of values that it may refuse; training tells its own
        return None
    return first if alike(first, again) else None


def alike(first: Fingerprint, second: Fingerprint, of: str = "") -> bool:
    """Of the same, or nearly; `of` which part."""
    near = _NEAR_NETWORK if of == NETWORK else _NEAR
    if len(first) != len(second):
        return False
    return all(
        a[0] == b[0] and max(abs(a[1] - b[1]), abs(a[2] - b[2])) <= near * max(a[1], b[1])
        for a, b in zip(first, second, strict=True)
    )


def _of(values: Any) -> Fingerprint:
    found = []

    def add(tensor: Tensor) -> Tensor:
        plain = tensor.detach().cpu().double()
        product = (plain * wave_like(plain)).sum()
        found.append([float(plain.numel()), plain.norm().item(), product.item()])
        return tensor

    mapped(add, values)
    return found


def wave_like(like: Tensor) -> Tensor:
    """Float64, in [-1, 1], of a shape."""
    return torch.arange(1, like.numel() + 1, dtype=torch.float64).cos().view(like.shape)


def waves(model: Module, state: State) -> State:
    """Parameters that are the same wherever they are made, of a size that keeps that of what goes
    through them; no inner step changes them.
    """

    def wave(shape: torch.Size) -> Tensor:
        fan_in = max(1, math.prod(shape[1:]))
        return wave_like(torch.empty(shape)).flatten() * (2 / fan_in) ** 0.5

    theta, norm, rates = state.params
    of_theta, row = (
        torch.cat([torch.empty(0), *map(wave, shapes.values())]).to(theta)
        for shapes in (model.shapes, model.outer)
    )
    mean, var = state.running
    return state._replace(
        params=Params(of_theta, row.expand_as(norm), torch.zeros_like(rates)),
        running=Moments(torch.zeros_like(mean), torch.ones_like(var)),
    )
