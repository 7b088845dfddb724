"""Batch norm + affine + leaky ReLU + 2×2 max pool, statistics per task and channel; signatures as
in `kernels.plain.norm_act`, which has the formulas.

Square images. What is kept is the input itself and, of pooling, x̂ at the winners, of which one is
two bits; the slope of the activation follows from x̂.
"""

from functools import cache

import torch
from torch import Tensor

from kernels import checks
from kernels.native import module
from kernels.native.tensors import expect, ops
from kernels.plain.layout import empty_images, images, vectors, whole
from kernels.tensors import Saved, Tangent, matrix
from kernels.threads import threads

SCOPE = checks.NORM_ACT_SCOPE
ALONG = "z_dot", "gain_dot", "bias_dot", "dy_dot"  # directions, of which each may be None: 0


def refusal(z_shape) -> str | None:
    """Why images of this shape are not for here, in one line; `None` if they are."""
    return checks.norm_act_refusal("native", z_shape)


def fwd(
    z: Tensor,  # [T, N, C, H, H]
    gain: Tensor,  # [T, C]
    bias: Tensor,  # [T, C]
    eps: float,
    negative_slope: float,
    pooled: bool,
    statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, C]; None: the batch's own
) -> tuple[Tensor, Saved]:
    operands = checks.norm_act_operands("native", z, gain, bias, statistics, pooled)
    expect("norm_act", z, **operands)
    t, n, c, side, _ = z.shape
    given = (None, None) if statistics is None else statistics
    z, gain, bias, *given = images(z), *map(vectors, (gain, bias, *given))
    shape = _shape(n, c, side, pooled, negative_slope, eps)
    small = side // 2 if pooled else side
    y = empty_images(z, t, n, c, small)
    x_hat = empty_images(z, t, n, c, small) if pooled else None
    mean, var, rstd = (torch.empty((t, c), dtype=z.dtype, device=z.device) for _ in range(3))
    words = ops(z.dtype).winner_words(shape)
    winners = torch.empty((t, n, words), dtype=torch.int16, device=z.device) if pooled else None
    operands = z, gain, bias, *given, y, mean, var, rstd, x_hat, winners
    ops(z.dtype).norm_act_fwd(shape, t, threads(), *map(matrix, operands))
    centre, count = (mean, n * side * side) if statistics is None else (given[0], 0)
    return y, Saved(z, bias, mean, var, centre, rstd, x_hat, winners, shape, count)


def bwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, h]
    spent: bool = False,  # dz may take the memory of dy
) -> tuple[Tensor, Tensor, Tensor]:  # dz, dgain [T, C], dbias [T, C]
    saved, gain = _checked(saved, gain, dy=(dy, saved.small))
    dy = images(dy)
    # An image's dy is read before its dz is written, unless tasks share it.
    in_place = spent and saved.winners is None and dy.stride(0) != 0
    results = _gradients(saved, dy if in_place else None)
    operands = map(matrix, (dy, *results))
    _call("norm_act_bwd", saved, gain, *operands)
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
    rows = saved.rstd.shape
    dots = {"z_dot": (z_dot, saved.z.shape), "gain_dot": (gain_dot, rows)}
    saved, gain = _checked(saved, gain, ALONG, bias_dot=(bias_dot, rows), **dots)
    z_dot, gain_dot, bias_dot = images(z_dot), vectors(gain_dot), vectors(bias_dot)
    y_dot = empty_images(saved.z, *saved.small[:4])
    tangent = Tangent(
        z_dot,
        *(
            None
            if z_dot is None or not saved.count
            else torch.empty(rows, dtype=saved.z.dtype, device=saved.z.device)
            for _ in range(2)
        ),
        None if z_dot is None else empty_images(saved.z, *saved.small[:4]),
    )
    operands = map(matrix, (z_dot, gain_dot, bias_dot, y_dot, *tangent[1:]))
    _call("norm_act_tan_fwd", saved, gain, *operands)
    return y_dot, tangent


def tan_bwd(
    saved: Saved,
    tangent: Tangent,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, h]
    dy_dot: Tensor | None,  # [T, N, C, h, h]
    gain_dot: Tensor | None = None,  # [T, C]
) -> tuple[Tensor, Tensor, Tensor]:  # directions of dz, dgain, dbias
    small = saved.small
    dots = {"dy_dot": (dy_dot, small), "gain_dot": (gain_dot, saved.rstd.shape)}
    saved, gain = _checked(saved, gain, ALONG, dy=(dy, small), **dots)
    dy, dy_dot, gain_dot = images(dy), images(dy_dot), vectors(gain_dot)
    results = _gradients(saved)
    operands = map(matrix, (*tangent, dy, dy_dot, gain_dot, *results))
    _call("norm_act_tan_bwd", saved, gain, *operands)
    return results


def _checked(
    saved: Saved, gain: Tensor, optional: tuple[str, ...] = (), **operands: tuple
) -> tuple[Saved, Tensor]:
    """What was saved and `gain` as the module reads them, after all operands were found to fit."""
    t, n, c = saved.z.shape[:3]
    expect("norm_act", saved.z, optional, gain=(gain, (t, c)), **operands)
    words = ops(saved.z.dtype).winner_words(saved.shape)
    if saved.winners is not None and saved.winners.shape[2] != words:
        raise ValueError(
            "native norm_act: the instruction set changed between fwd and bwd; call limit_isa "
            "before or after both"
        )
    saved = saved.laid_out("native norm_act", images, (torch.int16, (t, n, words), whole))
    return saved, vectors(gain)


def _gradients(saved: Saved, dz: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten tensors of z, unless it is there, gain and bias."""
    rows = (
        torch.empty(saved.rstd.shape, dtype=saved.z.dtype, device=saved.z.device) for _ in range(2)
    )
    return empty_images(saved.z, *saved.z.shape[:4]) if dz is None else dz, *rows


def _call(name: str, saved: Saved, gain: Tensor, *operands: tuple[int, int]) -> None:
    kept = saved.z, gain, saved.bias, saved.centre, saved.rstd, saved.x_hat, saved.winners
    matrices = module.NormMatrices(*map(matrix, kept), not saved.count)
    getattr(ops(saved.z.dtype), name)(saved.shape, len(saved.z), threads(), matrices, *operands)


@cache
def _shape(*sizes):
    return module.NormShape(*sizes)
