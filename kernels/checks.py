"""What the backends of compiled kernels check before these read memory; each names itself in the
errors.
"""

import math
import numbers
import operator
from collections.abc import Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.net import Net

CONV_SCOPE = "square images, 3×3 filters, padding 1, stride 1 or 2"
ODD_CONV_SCOPE = "square images, filters k×k of an odd k, padding (k − 1)/2, stride 1 or 2"
NORM_ACT_SCOPE = "square images"
COUNTED = 2**31 - 1  # of which C and Triton count values in an int
LARGEST_NUMBER = 1e30  # of eps and slope: float32, with room to compute


def expect(
    op: str,
    like,
    optional: Collection[str] = (),  # operands that may be None
    **operands: tuple[Tensor | None, tuple[int, ...]],
) -> None:
    """ValueError unless every operand is there and dense, and has its shape, and the dtype and
    device of `like`.
    """
    dtype, device = like.dtype, like.device
    for name, (tensor, shape) in operands.items():
        if tensor is None:
            if name in optional:
                continue
            raise ValueError(f"{op}: {name} must be {dtype} {list(shape)} on {device}, got None")
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be {dtype} {list(shape)} on {device}, got "
                f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
        if tensor.layout != torch.strided:
            dense(op, name, tensor)


def tensors(op: str, **operands: Any) -> None:
    """ValueError unless all are, and none is left out."""
    for name, value in operands.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def integer(value: Any) -> int | None:
    """The int that it is, of whichever library, or None; a bool is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, torch.SymInt)):  # of a trace, as it is
        return value
    try:
        return operator.index(value)
    except TypeError:
        return None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, numbers.Real))


def dense(op: str, name: str, tensor: Tensor) -> None:
    """ValueError unless it is an array of its values."""
    if tensor.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be dense, got {tensor.layout}; use to_dense()")


def conv_refusal(
    backend: str, x_shape, w_shape, stride: int, padding: int, scope: str = CONV_SCOPE
) -> str | None:
    """Why a convolution is not of `CONV_SCOPE`, or `ODD_CONV_SCOPE`, in one line; `None` if it
    is.
    """
    (*_, height, width), (*_, r, s) = x_shape, w_shape
    sized = r == 3 if scope == CONV_SCOPE else r % 2 == 1
    if height == width and r == s and sized and padding == r // 2 and stride in (1, 2):
        return None
    return (
        f"{backend} conv takes {scope}; got images {height}×{width}, filters {r}×{s}, padding "
        f"{padding}, stride {stride}"
    )


def conv_shape(
    backend: str, x: Tensor, w: Tensor, stride: int, padding: int, scope: str = CONV_SCOPE
) -> tuple[int, int, int, int, int]:  # of z: T, N, F, H', H'
    reason = conv_refusal(backend, x.shape, w.shape, stride, padding, scope)
    if reason:
        raise ValueError(f"{reason}; plain takes any")
    t, n, c, side, _ = x.shape
    f = w.shape[1]
    if w.shape[:3] != (t, f, c) or 0 in (t, n, c, side, f):
        raise ValueError(
            f"{backend} conv: x {list(x.shape)} and w {list(w.shape)} must be non-empty and agree "
            f"in tasks (axis 0) and channels (axis 2)"
        )
    out = (side - 1) // stride + 1
    return t, n, f, out, out


def norm_act_refusal(backend: str, z_shape) -> str | None:
    """Why images are not of `NORM_ACT_SCOPE`, in one line; `None` if they are."""
    height, width = z_shape[3:]
    if height == width and height**2 <= COUNTED:
        return None
    most = f" of up to {math.isqrt(COUNTED)} pixels a side" if height == width else ""
    return f"{backend} norm_act takes {NORM_ACT_SCOPE}{most}, got {height}×{width}"


def norm_act_operands(
    backend: str, z: Tensor, gain: Tensor, bias: Tensor, statistics: tuple | None, pooled: bool
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Those per channel and their shape, for `expect`, after `z` was found to fit."""
    reason = norm_act_refusal(backend, z.shape)
    if reason:
        raise ValueError(f"{reason}; plain takes any")
    t, n, c, side, _ = z.shape
    if 0 in (t, n, c) or side < 1 + pooled:
        raise ValueError(
            f"{backend} norm_act: z must have no empty axis and images of at least "
            f"{1 + pooled}×{1 + pooled}, got {list(z.shape)}"
        )
    operands = {"gain": gain, "bias": bias}
    if statistics is not None:
        operands["mean"], operands["variance"] = statistics
    return {name: (tensor, (t, c)) for name, tensor in operands.items()}


def net_sizes(backend: str, net: Net, most_stages: int, largest: int = COUNTED) -> None:
    """ValueError for a network that has no passes. An eps of 0 is one: a channel whose values are
    all equal is then divided by 0, and what follows is NaN.
    """
    if not isinstance(net, Net):
        raise ValueError(f"{backend} passes take a kernels.Net, got {type(net).__name__}")
    for name in ("channels", "side", "filters", "stages", "ways"):
        size = getattr(net, name)
        if type(size) is not int or size > largest:
            raise ValueError(
                f"{backend} passes: {name} must be an int up to {largest}, got {size!r} of "
                f"{type(size).__name__}"
            )
    if type(net.pool) is not bool or not isinstance(net.precision, str):
        raise ValueError(
            f"{backend} passes: pool must be a bool and precision a name, got {net.pool!r} and "
            f"{net.precision!r}"
        )
    for name in ("negative_slope", "eps"):
        value = getattr(net, name)
        if type(value) not in (int, float) or not 0 <= value <= LARGEST_NUMBER:
            raise ValueError(
                f"{backend} passes: {name} must be a number from 0 to {LARGEST_NUMBER:g}, got "
                f"{value!r}"
            )
    if not 1 <= net.stages <= most_stages:
        raise ValueError(f"{backend} passes take 1 to {most_stages} stages, got {net.stages}")
    smallest = 2**net.stages if net.pool else 1
    if net.side < smallest or min(net.channels, net.filters, net.ways) < 1:
        raise ValueError(
            f"{backend} passes take sizes of at least 1, and of {net.stages} stages that "
            f"{'pool' if net.pool else 'stride'} a side of at least {smallest}, got {net}"
        )


def net_images(net: Net, x: Tensor) -> None:
    """ValueError for images that a network does not take."""
    if not isinstance(x, Tensor):
        raise ValueError(f"images: must be a tensor, got {type(x).__name__}")
    dense("images", "x", x)
    shape = tuple(x.shape)
    if shape[2:] != (net.channels, net.side, net.side) or 0 in shape:
        raise ValueError(
            f"images: got {shape}; this backbone takes [T ≥ 1, N ≥ 1, {net.channels}, "
            f"{net.side}, {net.side}]"
        )


def pass_operands(
    op: str,
    net: Net,
    like,  # has the dtype and device of the images
    tasks: int,
    images: int,
    theta: Tensor,
    row: Tensor,
    labels: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None,
    keep: bool,
) -> None:
    """ValueError for arguments of a pass that do not fit its images."""
    tensors(op, theta=theta, row=row)
    stats = net.stages * net.filters
    shape = (tasks, 2 * stats) if row.dim() == 2 else (2 * stats,)
    operands = {"theta": (theta, (tasks, parameters(net))), "row": (row, shape)}
    if statistics is not None:
        if len(statistics) != 2:
            raise ValueError(
                f"{op}: statistics must be a mean and a variance, got {len(statistics)} of them"
            )
        tensors(op, mean=statistics[0], var=statistics[1])
        shape = (stats,) if statistics[0].dim() == 1 else (tasks, stats)
        operands |= {n: (s, shape) for n, s in zip(("mean", "var"), statistics, strict=True)}
    expect(op, like, **operands)
    if labels is None:
        if keep:
            raise ValueError(f"{op}: keep needs labels, a forward pass has no tangent")
        return
    shape, kind = (tasks, images), (labels.dtype, labels.device)
    if labels.shape != shape or kind != (torch.int64, like.device):
        raise ValueError(
            f"{op}: labels must be torch.int64 {list(shape)} on {like.device}, got "
            f"{labels.dtype} {list(labels.shape)} on {labels.device}"
        )


def seal(*parts: Any) -> tuple:
    """Of what a backend hands out to be handed back: by it `unbroken` tells whether it is the
    same, and whether a tensor of it was written to since.
    """
    return tuple((part, _writes(part)) for part in parts)


def unbroken(seal: tuple, *parts: Any) -> bool:
    return len(seal) == len(parts) and all(
        part is sealed and _writes(part) == writes
        for part, (sealed, writes) in zip(parts, seal, strict=True)
    )


def _writes(part: Any) -> int | None:
    """How often a tensor was written to; those of inference mode do not count that."""
    return part._version if isinstance(part, Tensor) and not part.is_inference() else None


def handed_back(op: str, value: Any, kind: type, origin: str, unbroken: bool) -> None:
    """ValueError unless `value` is what `origin` gave."""
    if not isinstance(value, kind):
        raise ValueError(f"{op} takes what {origin} gave, got {type(value).__name__}")
    if not unbroken:
        raise ValueError(
            f"{op}: what {origin} gave was changed since, or a tensor in it was written to; hand "
            "it on as it is"
        )


@cache
def features(net: Net) -> int:
    """Values of an image that the classifier sees, D."""
    side = net.side
    for _ in range(net.stages):
        side = side // 2 if net.pool else (side + 1) // 2
    return net.filters * (side**2 if net.pool else 1)


@cache
def parameters(net: Net) -> int:
    """Values of one task's theta, P."""
    filters = net.filters * 9 * (net.channels + net.filters * (net.stages - 1))
    return filters + net.ways * (features(net) + 1)
