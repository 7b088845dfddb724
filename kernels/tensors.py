"""Tensors as the compiled modules take them: an address, and the elements from one task to the
next. They trust both.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import checks

DTYPES = (torch.float32, torch.float64)
WHERE = {"cpu": "a CPU", "cuda": "a GPU"}


def matrix(rows: Tensor | None) -> tuple[int, int]:
    """Of [T, ...], whose entries of one task lie as the function wants them."""
    return (0, 0) if rows is None else (rows.data_ptr(), rows.stride(0))


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def refuses(backend: str, device: str, at: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend for one type of device does not run there, in one line; `None` if it does."""
    if at.type != device:
        return f"{backend} runs on {WHERE[device]}, not on {at.type}"
    if dtype not in DTYPES:
        return f"{backend} takes float32 and float64, not {str(dtype)[6:]}"
    return None


def expect(
    backend: str,
    device: str,
    op: str,
    like,
    **operands: tuple[Tensor | None, tuple[int, ...]],
) -> None:
    """ValueError unless every operand given has its shape, and the dtype and device of `like`,
    which the backend has to know.
    """
    if like.device.type != device or like.dtype not in DTYPES:
        raise ValueError(
            f"{backend} {op} takes float32 and float64 on {WHERE[device]}, got {like.dtype} on "
            f"{like.device}; convert the input or use the plain backend"
        )
    checks.expect(f"{backend} {op}", like, **operands)


def update_rows(backend: str, like: Tensor, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Tasks and parameters of the flat buffers."""
    if min(sizes, default=0) < 0:
        raise ValueError(f"{backend} update: sizes must not be negative, got {list(sizes)}")
    return len(like), sum(sizes)


def flat(
    rows: tuple[int, int],
    sizes: tuple[int, ...],
    per_segment: dict[str, Tensor | None],
    **matrices: Tensor | None,
) -> dict[str, tuple[Tensor | None, tuple[int, ...]]]:
    """What `expect` is to find in the operands of the update."""
    vectors = {name: (v, (len(sizes),)) for name, v in per_segment.items()}
    return vectors | {name: (m, rows) for name, m in matrices.items()}


class Saved(NamedTuple):
    """Of the normalisation's forward pass."""

    z: Tensor  # [T, N, C, H, H] the input
    bias: Tensor  # [T, C]
    mean: Tensor  # [T, C] of the batch
    var: Tensor  # [T, C] of the batch, biased
    centre: Tensor  # [T, C] what was subtracted
    rstd: Tensor  # [T, C]
    x_hat: Tensor  # [T, N, C, h, h] normalised input at the pooling winners
    winners: Tensor | None  # [T, N, ...] as the module writes them, None without pooling
    shape: object  # the module's sizes
    count: int  # elements behind each statistic; 0: the statistics were given and are constants


class Tangent(NamedTuple):
    """Of the normalisation's tangent, forward."""

    z_dot: Tensor | None  # [T, N, C, H, H]
    mean_dot: Tensor | None  # [T, C]
    q: Tensor | None  # [T, C] mean of x̂·ż
    x_hat_dot: Tensor | None  # [T, N, C, h, h]


class Pieces(NamedTuple):
    """The segments of the flat buffers in pieces, so that programs have equal shares."""

    table: Tensor  # int32 [pieces, 3]: segment, from, to
    first: Tensor  # int32 [L + 1]: pieces before each segment's own


@cache
def pieces(sizes: tuple[int, ...], most: int, device: torch.device) -> Pieces:
    """Of `most` values each. Made by the first call, which must not be under capture: the tables
    come from the host.
    """
    table, first, start = [], [0], 0
    for segment, size in enumerate(sizes):
        end = start + size
        table += [(segment, at, min(at + most, end)) for at in range(start, end, most)]
        first.append(len(table))
        start = end
    return Pieces(
        torch.tensor(table, dtype=torch.int32, device=device).view(-1, 3),
        torch.tensor(first, dtype=torch.int32, device=device),
    )
