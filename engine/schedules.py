"""The schedules of MAML++ (Antoniou et al. 2018, §4), a function of the epoch each."""

from __future__ import annotations

import math


def msl_weights(epoch: int, steps: int, epochs: int) -> list[float]:
    """Of the target loss after each inner step (multi-step loss): equal at first, the last step's
    growing as the others fall to 0.03/steps, and from `epochs` on the last step alone. 0: never.
    """
    if epoch >= epochs:
        return [0.0] * (steps - 1) + [1.0]
    floor = 0.03 / steps
    early = max(1 / steps - epoch / (steps * epochs), floor)
    last = min(1 / steps + epoch * (steps - 1) / (steps * epochs), 1 - (steps - 1) * floor)
    return [early] * (steps - 1) + [last]


def second_order(epoch: int, first_order_epochs: int) -> bool:
    """Derivative-order annealing: first order for the first epochs."""
    return epoch >= first_order_epochs


def linear(epoch: int, epochs: int, high: float, low: float) -> float:
    """From `high` to `low`, which comes after the last epoch."""
    return high + (low - high) * epoch / epochs


def halving(epoch: int, every: int, high: float, low: float) -> float:
    """Half of it after every so many epochs, and `low` at the least."""
    return max(low, high * 0.5 ** (epoch // every))


def cosine(epoch: int, epochs: int, high: float, low: float) -> float:
    """Cosine annealing from `high` to `low` over all epochs; equal: constant."""
    return low + (high - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2
