"""Tensors as the compiled modules take them: an address, and the elements from one task to the
next. They trust both, so that every operand has been through `kernels.plain.layout` before.
"""

from collections.abc import Callable, Collection
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import checks
from kernels.plain.layout import vectors

DTYPES = (torch.float32, torch.float64)
WHERE = {"cpu": "a CPU", "cuda": "a GPU"}


def matrix(rows: Tensor | None) -> tuple[int, int]:
    """Of [T, ...], whose entries of one task lie as the function wants them."""
    return (0, 0) if rows is None else (address(rows), rows.stride(0))


def address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    place = tensor.data_ptr()
    if not place and tensor.numel():  # 0 is what is not there
        raise ValueError(f"{type(tensor).__name__} {list(tensor.shape)} has no memory to read")
    return place


def check_alike(op: str, **tensors: Tensor) -> None:
    """ValueError unless all are dense and have one dtype and device."""
    first = next(iter(tensors.values()))
    alike = True
    for name, t in tensors.items():
        if t.layout != torch.strided:
            checks.dense(op, name, t)
        alike = alike and t.dtype == first.dtype and t.device == first.device
    if alike:
        return
    each = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
    raise ValueError(f"{op}: all inputs must have one dtype and device, got {each}; convert them")


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
    optional: Collection[str] = (),  # operands that may be None
    **operands: tuple[Tensor | None, tuple[int, ...]],
) -> None:
    """ValueError unless every operand is there and has its shape, and the dtype and device of
    `like`, which the backend has to know.
    """
    if like.device.type != device or like.dtype not in DTYPES:
        raise ValueError(
            f"{backend} {op} takes float32 and float64 on {WHERE[device]}, got {like.dtype} on "
            f"{like.device}; convert the input or use the plain backend"
        )
    checks.expect(f"{backend} {op}", like, optional, **operands)


def update_rows(backend: str, like: Tensor, sizes: tuple[int, ...] | None) -> tuple[int, int]:
    """Tasks and parameters of the flat buffers."""
    if sizes is None:
        return len(like), like.shape[1]
    if min(sizes, default=0) < 0:
        raise ValueError(f"{backend} update: sizes must not be negative, got {list(sizes)}")
    return len(like), sum(sizes)


def flat(
    rows: tuple[int, int],
    sizes: tuple[int, ...] | None,
    per_segment: dict[str, Tensor | None],
    **matrices: Tensor | None,
) -> dict[str, tuple[Tensor | None, tuple[int, ...]]]:
    """What `expect` is to find in the operands of the update."""
    width = rows[1] if sizes is None else len(sizes)
    vectors = {name: (v, (width,)) for name, v in per_segment.items()}
    return vectors | {name: (m, rows) for name, m in matrices.items()}


def left_out(grad: Tensor | None, rates_dot: Tensor | None) -> tuple[str, ...]:
    """Operands of θ − rates·grad − rates_dot·grad_dot that may be None, as θ may and what belongs
    to a term that misses one of these.
    """
    of_grad = ("grad", "rates") if grad is None else ()
    return "theta", *of_grad, *(("grad_dot", "rates_dot") if rates_dot is None else ())


def expect_winners(
    op: str, winners: Tensor | None, z: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """ValueError unless the pooling winners are what the forward pass saved."""
    if winners is None or (
        winners.dtype == dtype and winners.shape == shape and winners.device == z.device
    ):
        return
    raise ValueError(
        f"{op}: winners must be {dtype} {list(shape)} on {z.device}, as fwd saved them, got "
        f"{winners.dtype} {list(winners.shape)} on {winners.device}"
    )


class Saved(NamedTuple):
    """Of the normalisation's forward pass."""

    z: Tensor  # [T, N, C, H, H] the input
    bias: Tensor  # [T, C]
    mean: Tensor  # [T, C] of the batch
    var: Tensor  # [T, C] of the batch, biased
    centre: Tensor  # [T, C] what was subtracted
    rstd: Tensor  # [T, C]
    x_hat: Tensor | None  # [T, N, C, h, h] normalised at the winners; None: as z says
    winners: Tensor | None  # [T, N, ...] as the module writes them, None without pooling
    shape: object  # the module's sizes
    count: int  # elements behind each statistic; 0: the statistics were given and are constants

    @property
    def small(self) -> tuple[int, ...]:
        """Of what is behind the pooling."""
        t, n, c, side, _ = self.z.shape
        side = side if self.winners is None else side // 2
        return t, n, c, side, side

    def laid_out(
        self,
        op: str,
        images: Callable[[Tensor], Tensor],
        winners: tuple[torch.dtype, tuple[int, ...], Callable[[Tensor], Tensor]],
    ) -> "Saved":
        """As the module reads it: `images` lays out what is one value a pixel and channel, and
        `winners` says what those are. Autograd kept it, whose hooks may give back another layout,
        or something else.
        """
        t, n, c, *_ = self.z.shape
        rows = {name: (getattr(self, name), (t, c)) for name in ("bias", "centre", "rstd")}
        optional = ("x_hat",) if self.winners is None else ()
        checks.expect(op, self.z, optional, x_hat=(self.x_hat, self.small), **rows)
        dtype, shape, lay_out = winners
        expect_winners(op, self.winners, self.z, dtype, shape)
        bias, centre, rstd = map(vectors, (self.bias, self.centre, self.rstd))
        return self._replace(
            z=images(self.z),
            bias=bias,
            centre=centre,
            rstd=rstd,
            x_hat=images(self.x_hat),
            winners=None if self.winners is None else lay_out(self.winners),
        )


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
