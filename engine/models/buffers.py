"""Networks as flat buffers: their tensors, and what belongs to each of their statistics."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def views(theta: Tensor, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> list[Tensor]:
    """The tensors [T, *shape] as views of the flat buffers [T, P], where filters are NHWC: the
    convolutions take them as they lie.
    """
    found = []
    for part, shape in zip(theta.split(sizes, 1), shapes, strict=True):
        if len(shape) == 4:
            f, c, r, s = shape
            found.append(part.view(-1, f, r, s, c).permute(0, 1, 4, 2, 3))
        else:
            found.append(part.view(-1, *shape))
    return found


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The inverse of `views`: [T, *shape] each → [T, P]."""
    nhwc = (t.permute(0, 1, 3, 4, 2) if t.dim() == 5 else t for t in tensors)
    return torch.cat([t.flatten(1) for t in nhwc], 1)


@cache
def bessel(
    counts: tuple[int, ...], widths: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """n / (n − 1) for the n values behind each statistic of normalisations of so many channels."""
    with torch.inference_mode(False):  # autograd may be the next to use it
        n = torch.tensor(counts, dtype=torch.float64, device="cpu")
        factors = (n / (n - 1).clamp(min=1)).repeat_interleave(torch.tensor(widths, device="cpu"))
        return factors.to(device, dtype)


@cache
def biases(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:  # [G]
    """1 at the biases and 0 at the gains of a row of `Params.norm`."""
    with torch.inference_mode(False):
        pairs = torch.tensor([0.0, 1.0] * len(widths), dtype=dtype, device="cpu")
        lengths = torch.tensor(widths, device="cpu").repeat_interleave(2)
        return pairs.repeat_interleave(lengths).to(device)
