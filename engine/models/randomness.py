"""Random numbers that a module draws of torch's own generators, which are the process's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def random_state(like: Tensor) -> list[Tensor]:
    """Of the generators: the CPU's, and that of a GPU where the tensor is."""
    device = [torch.cuda.get_rng_state(like.device)] if like.is_cuda else []
    return [torch.get_rng_state(), *device]


def set_random_state(state: list[Tensor], like: Tensor) -> None:
    torch.set_rng_state(state[0])
    if like.is_cuda:
        torch.cuda.set_rng_state(state[1], like.device)


@contextmanager
def drawing(like: Tensor, *key: int) -> Iterator[None]:
    """Inside, the generators give the numbers that the key (none of it negative) names; after it
    they are as before.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng([like.device] * like.is_cuda):
        torch.default_generator.manual_seed(seed)
        if like.is_cuda:
            with torch.cuda.device(like.device):
                torch.cuda.manual_seed(seed)
        yield


def is_random(layer: nn.Module) -> bool:
    """Dropout, or a layer with some inside, as attention and recurrent ones."""
    found = getattr(layer, "p", 0) if "drop" in type(layer).__name__.lower() else 0
    return any(isinstance(p, float) and p > 0 for p in (found, getattr(layer, "dropout", 0)))
