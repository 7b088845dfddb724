"""Running statistics of batch norm: moving averages over the batches of inner loops (BNRS)."""

from functools import cache

import torch
from torch import Tensor

from engine.models.interface import Moments


def update(
    running: Moments,
    rows: tuple[int, ...],
    moments: Moments,
    momentum: float,
    skips: bool = False,  # whether some may be of no batch
) -> Moments:
    """Exponential moving averages over an iteration's batches in the reference implementation's
    order: task by task, within a task step by step, support then target. A single shared row sees
    them all.
    """
    rows = tuple(min(row, len(running.mean) - 1) for row in rows)
    if skips:
        return _of_those_called(running, rows, moments, momentum)
    count, tasks, like = len(running.mean), len(moments.mean), running.mean
    decay, weights = _averaging(rows, count, tasks, momentum, like.dtype, like.device)
    pairs = [(a, batches.flatten(0, 1)) for a, batches in zip(running, moments, strict=True)]
    if isinstance(decay, float):
        return Moments(*(torch.addmm(a, weights, batches, beta=decay) for a, batches in pairs))
    return Moments(*(torch.addmm(decay * a, weights, batches) for a, batches in pairs))


def _of_those_called(
    running: Moments, rows: tuple[int, ...], moments: Moments, momentum: float
) -> Moments:
    """The same where a batch counts for the channels alone whose norm was called."""
    every = rows * len(moments.mean)
    called = (~(moments.var < 0)).flatten(0, 1).to(running.mean.dtype)
    found = [average.clone() for average in running]
    for row in {*rows}:
        places = _places(every, row, called.device)
        own = called[places]
        later = own.flip(0).cumsum(0).flip(0) - own
        weights, kept = momentum * (1 - momentum) ** later * own, (1 - momentum) ** own.sum(0)
        for average, batches in zip(found, moments, strict=True):
            batches = batches.flatten(0, 1)[places]
            average[row] = kept * average[row] + (weights * batches).sum(0)
    return Moments(*found)


@cache
def _places(rows: tuple[int, ...], row: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        found = [i for i, other in enumerate(rows) if other == row]
        return torch.tensor(found, device="cpu").to(device)


def called(moments: Moments, otherwise: Moments) -> Moments:
    """Those of batch norms that a pass has called, of others these."""
    left_out = moments.var < 0
    pairs = zip(moments, otherwise, strict=True)
    return Moments(*(torch.where(left_out, other, own) for own, other in pairs))


@cache
def _averaging(
    rows: tuple[int, ...],
    count: int,
    tasks: int,
    momentum: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[float | Tensor, Tensor]:
    """What a moving average keeps of itself, a number or [count, 1], and takes of each batch
    [count, tasks · columns], tasks first.
    """
    seen = [0] * count
    kind = dict(dtype=torch.float64, device="cpu")
    weights = torch.zeros(count, tasks * len(rows), **kind)
    for i, row in reversed([*enumerate(rows * tasks)]):
        weights[row, i] = momentum * (1 - momentum) ** seen[row]
        seen[row] += 1
    kept, weights = [(1 - momentum) ** n for n in seen], weights.to(device, dtype)
    if len({*kept}) == 1:
        return kept[0], weights
    return torch.tensor(kept, **kind).unsqueeze(1).to(device, dtype), weights
