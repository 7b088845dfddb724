"""A module's call with tensors in the place of its own."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def called(net: nn.Module, tensors: dict[str, Tensor], args: tuple, kwargs: dict) -> Any:
    """`functional_call` by the first name of each tensor, which then has what the call put there.

    Torch would put a tensor into a part of several names once for each, and give back, as the last
    one, what it found at the second time: its own. So each part gets it once, by its first name.
    """
    put, names = dict(tensors), {}
    for at, part in net.named_modules():
        for leaf, own in chain(part._parameters.items(), part._buffers.items()):
            name = f"{at}.{leaf}" if at else leaf
            if own is not None and name not in put:  # a tensor of another part
                put[name] = tensors[names[id(own)]]
            names.setdefault(id(own), name)
    try:
        return functional_call(net, put, args, kwargs, tie_weights=False)
    finally:
        tensors.update((name, put[name]) for name in tensors)
