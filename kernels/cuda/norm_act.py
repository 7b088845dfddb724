"""Batch norm + affine + leaky ReLU + 2×2 max pool, statistics per task and channel; signatures as
in `kernels.plain.norm_act`, which has the formulas.

Square images. What is kept is the input itself and x̂ at the winners; the slope of the activation
follows from x̂, and a winner is its position in the window, 0 to 3.
"""

from functools import cache

import torch
from torch import Tensor

from kernels import checks, cuda
from kernels.cuda.tensors import expect, images, ops, stream
from kernels.plain.layout import empty_images, vectors
from kernels.tensors import Saved, Tangent, matrix

SCOPE = checks.NORM_ACT_SCOPE
ALONG = "z_dot", "gain_dot", "bias_dot", "dy_dot"  # directions, of which each may be None: 0


def refusal(z_shape) -> str | None:
    """Why images of this shape are not for here, in one line; `None` if they are."""
    return checks.norm_act_refusal("cuda", z_shape)


def fwd(
    z: Tensor,  # [T, N, C, H, H]
    gain: Tensor,  # [T, C]
    bias: Tensor,  # [T, C]
    eps: float,
    negative_slope: float,
    pooled: bool,
    statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, C]; None: the batch's own
) -> tuple[Tensor, Saved]:
    operands = checks.norm_act_operands("cuda", z, gain, bias, statistics, pooled)
    expect("norm_act", z, **operands)
    t, n, c, side, _ = z.shape
    given = (None, None) if statistics is None else statistics
    z, gain, bias, *given = images(z), *map(vectors, (gain, bias, *given))
    shape = _shape(n, c, side, pooled, negative_slope, eps)
    small = side // 2 if pooled else side
    y, x_hat = (empty_images(z, t, n, c, small) for _ in range(2))
    winners = empty_images(z, t, n, c, small, torch.uint8) if pooled else None
    mean, var, rstd = (torch.empty((t, c), dtype=z.dtype, device=z.device) for _ in range(3))
    operands = z, gain, bias, *given, y, mean, var, rstd, x_hat, winners
    _call("norm_act_fwd", z, shape, *map(matrix, operands))
    centre, count = (mean, n * side * side) if statistics is None else (given[0], 0)
    return y, Saved(z, bias, mean, var, centre, rstd, x_hat, winners, shape, count)


def bwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, h]
    spent: bool = False,  # dz may take the memory of dy
) -> tuple[Tensor, Tensor, Tensor]:  # dz, dgain [T, C], dbias [T, C]
    saved, gain = _checked(saved, gain, dy=(dy, saved.x_hat.shape))
    dy, results = images(dy), _gradients(saved)
    operands = map(matrix, (dy, *results))
    _call("norm_act_bwd", saved.z, saved.shape, _kept(saved, gain), *operands)
    return results


def tan_fwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    z_dot: Tensor | None,  # [T, N, C, H, H]
    gain_dot: Tensor | None = None,  # [T, C]
    bias_dot: Tensor | None = None,  # [T, C]
) -> tuple[Tensor | None, Tangent]:
    if z_dot is gain_dot is bias_dot is None:
        return None, Tangent(None, None, None, None)
    rows, small = saved.rstd.shape, saved.x_hat.shape[:4]
    dots = {"z_dot": (z_dot, saved.z.shape), "gain_dot": (gain_dot, rows)}
    saved, gain = _checked(saved, gain, ALONG, bias_dot=(bias_dot, rows), **dots)
    z_dot, gain_dot, bias_dot = images(z_dot), vectors(gain_dot), vectors(bias_dot)
    mean_dot = q = x_hat_dot = None
    if z_dot is not None:
        x_hat_dot = empty_images(saved.z, *small)
        if saved.count:
            mean_dot, q = torch.empty_like(saved.rstd), torch.empty_like(saved.rstd)
    y_dot, tangent = empty_images(saved.z, *small), Tangent(z_dot, mean_dot, q, x_hat_dot)
    operands = map(matrix, (z_dot, gain_dot, bias_dot, y_dot, *tangent[1:]))
    _call("norm_act_tan_fwd", saved.z, saved.shape, _kept(saved, gain), *operands)
    return y_dot, tangent


def tan_bwd(
    saved: Saved,
    tangent: Tangent,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, h]
    dy_dot: Tensor | None,  # [T, N, C, h, h]
    gain_dot: Tensor | None = None,  # [T, C]
) -> tuple[Tensor, Tensor, Tensor]:  # directions of dz, dgain, dbias
    small = saved.x_hat.shape
    dots = {"dy_dot": (dy_dot, small), "gain_dot": (gain_dot, saved.rstd.shape)}
    saved, gain = _checked(saved, gain, ALONG, dy=(dy, small), **dots)
    dy, dy_dot, gain_dot = images(dy), images(dy_dot), vectors(gain_dot)
    results = _gradients(saved)
    operands = map(matrix, (*tangent, dy, dy_dot, gain_dot, *results))
    _call("norm_act_tan_bwd", saved.z, saved.shape, _kept(saved, gain), *operands)
    return results


def _checked(
    saved: Saved, gain: Tensor, optional: tuple[str, ...] = (), **operands: tuple
) -> tuple[Saved, Tensor]:
    """What was saved and `gain` as the module reads them, after all operands were found to fit."""
    expect("norm_act", saved.z, optional, gain=(gain, saved.rstd.shape), **operands)
    saved = saved.laid_out("cuda norm_act", images, (torch.uint8, saved.x_hat.shape, images))
    return saved, vectors(gain)


def _gradients(saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten tensors of z, gain and bias."""
    rows = (torch.empty_like(saved.rstd) for _ in range(2))
    return empty_images(saved.z, *saved.z.shape[:4]), *rows


def _kept(saved: Saved, gain: Tensor):
    kept = saved.z, gain, saved.bias, saved.centre, saved.rstd, saved.x_hat, saved.winners
    return cuda.module.Saved(*map(matrix, kept), not saved.count)


def _call(name: str, z: Tensor, shape, *operands) -> None:
    """On the current stream, with memory that the stream's next call may have."""
    functions, tasks = ops(z.dtype), len(z)
    size = functions.norm_work_bytes(shape, tasks)
    work = torch.empty(size, dtype=torch.uint8, device=z.device)
    getattr(functions, name)(stream(z), shape, tasks, work.data_ptr(), *operands)


@cache
def _shape(*sizes):
    return cuda.module.NormShape(*sizes)
