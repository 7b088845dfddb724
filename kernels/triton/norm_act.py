"""Batch norm + affine + leaky ReLU + 2×2 max pool, statistics per task and channel; signatures as
in `kernels.plain.norm_act`, which has the formulas.

Square images. What is kept is the input itself and x̂ at the winners; the slope of the activation
follows from x̂. The statistics and coefficients are those of a pass, one launch each.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels import checks
from kernels.plain.layout import channels_last, empty_images, whole
from kernels.tensors import expect_winners
from kernels.triton.launch import block, merge, within
from kernels.triton.norm_act_kernels import (
    activation_dot_kernel,
    delta_kernel,
    dense_sums_kernel,
    dz_kernel,
    normalise_dot_kernel,
    normalise_kernel,
)
from kernels.triton.operands import COEFFICIENTS
from kernels.triton.sums import (
    bwd_sums_kernel,
    moments_kernel,
    tan_bwd_sums_kernel,
    tan_fwd_sums_kernel,
)
from kernels.triton.tensors import countable, expect

SCOPE = checks.NORM_ACT_SCOPE
ALONG = "z_dot", "gain_dot", "bias_dot", "dy_dot"  # directions, of which each may be None: 0
TILE = 32  # pixels of a program


class Saved(NamedTuple):
    z: Tensor  # [T, N, C, H, H] the input
    bias: Tensor  # [T, C]
    mean: Tensor  # [T, C] of the batch
    var: Tensor  # [T, C] of the batch, biased
    coef: Tensor  # [T, 8, C] of which what was subtracted is written
    rstd: Tensor  # [T, C]
    x_hat: Tensor  # [T, N, C, h, h] normalised input at the pooling winners
    winners: Tensor | None  # uint8 [T, N, h, h, C], None without pooling
    negative_slope: float
    count: int  # elements behind each statistic; 0: the statistics were given and are constants


class Tangent(NamedTuple):
    z_dot: Tensor | None  # [T, N, C, H, H]
    coef: Tensor | None  # [T, 8, C] of which the mean of z_dot is written too
    q: Tensor | None  # [T, C] mean of x̂·ż
    x_hat_dot: Tensor | None  # [T, N, C, h, h]


def refusal(z_shape) -> str | None:
    """Why images of this shape are not for here, in one line; `None` if they are."""
    return checks.norm_act_refusal("triton", z_shape)


def fwd(
    z: Tensor,  # [T, N, C, H, H]
    gain: Tensor,  # [T, C]
    bias: Tensor,  # [T, C]
    eps: float,
    negative_slope: float,
    pooled: bool,
    statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, C]; None: the batch's own
) -> tuple[Tensor, Saved]:
    operands = checks.norm_act_operands("triton", z, gain, bias, statistics, pooled)
    expect("norm_act", z, **operands)
    countable("norm_act", z.shape)
    t, n, c, side, _ = z.shape
    z, gain, bias = channels_last(z), whole(gain), whole(bias)
    mean, var, rstd, coef = (_new(z, t, *shape) for shape in ((c,), (c,), (c,), (COEFFICIENTS, c)))
    part = _parts(z, side)
    dense_sums_kernel[_grid(z, side)](
        z, z, z, part, n * side**2, c, DUAL=False, BM=TILE, BF=block(c), num_warps=8
    )
    given, is_given = [*map(whole, statistics or (mean, var))], statistics is not None
    small = side // 2 if pooled else side
    merged = within(part.shape[1], _grid(z, small)[0])
    if not merged["MERGE"]:
        grid, blocks = _merge(z, part)
        moments_kernel[grid](
            part, *given, coef, rstd, mean, var, part.shape[1], TILE, n * side**2, c, c, c, eps,
            GIVEN=is_given, **blocks,
        )  # fmt: skip
    y, x_hat = (empty_images(z, t, n, c, small) for _ in range(2))
    winners = _new(z, t, n, small, small, c, dtype=torch.uint8) if pooled else None
    normalise_kernel[_grid(z, small)](
        z, gain, bias, coef, rstd, part, *given, mean, var,
        x_hat, x_hat if winners is None else winners, y,
        n, side, small, c, c, negative_slope, part.shape[1], TILE, c, c, eps,
        POOL=pooled, ACT=True, BORDER=False, GIVEN=is_given, **merged,
        BM=TILE, BF=block(c), num_warps=8,
    )  # fmt: skip
    count = n * side * side if statistics is None else 0
    return y, Saved(z, bias, mean, var, coef, rstd, x_hat, winners, negative_slope, count)


def bwd(
    saved: Saved,
    gain: Tensor,  # [T, C]
    dy: Tensor,  # [T, N, C, h, h]
    spent: bool = False,  # dz may take the memory of dy
) -> tuple[Tensor, Tensor, Tensor]:  # dz, dgain [T, C], dbias [T, C]
    saved, gain = _checked(saved, gain, dy=(dy, saved.x_hat.shape))
    coef = saved.coef.clone()
    delta, _, *rows = _delta(saved, gain, channels_last(dy), coef)
    return _dz(saved, coef, delta), *rows


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
    tangent = Tangent(None, None, None, None)
    if z_dot is not None:
        tangent = _normalised_dot(saved, channels_last(z_dot))
    x_hat_dot = saved.x_hat if tangent.x_hat_dot is None else tangent.x_hat_dot
    gain_dot, bias_dot = whole(gain_dot), whole(bias_dot)
    t, n, c, small, _ = saved.x_hat.shape
    y_dot = empty_images(saved.z, t, n, c, small)
    activation_dot_kernel[_grid(saved.z, small)](
        saved.x_hat, x_hat_dot, gain, saved.bias,
        gain if gain_dot is None else gain_dot, gain if bias_dot is None else bias_dot, y_dot,
        n * small**2, c, saved.negative_slope,
        X_DOT=z_dot is not None, GAIN_DOT=gain_dot is not None, BIAS_DOT=bias_dot is not None,
        BM=TILE, BF=block(c), num_warps=8,
    )  # fmt: skip
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
    if tangent.z_dot is None:
        tangent = _normalised_dot(saved, torch.zeros_like(saved.z))
    coef = tangent.coef.clone()
    dy = channels_last(dy)
    dy_dot = torch.zeros_like(dy) if dy_dot is None else channels_last(dy_dot)
    delta, sums, *_ = _delta(saved, gain, dy, coef)
    delta_dot, part = _bent(saved, gain, dy_dot, (tangent.x_hat_dot, delta))
    (t, n, c, side, _), c_dot = saved.z.shape, whole(gain_dot)
    d_gain_dot, d_bias_dot = (_new(saved.z, t, c) for _ in range(2))
    grid, blocks = _merge(saved.z, part)
    tan_bwd_sums_kernel[grid](
        part, coef, saved.rstd, tangent.q, sums, sums if c_dot is None else c_dot,
        torch.empty_like(sums), d_gain_dot, d_bias_dot, part.shape[1], n * side**2, c, c,
        GIVEN=not saved.count, GAIN_DOT=c_dot is not None, **blocks,
    )  # fmt: skip
    return _dz(saved, coef, delta, (tangent.z_dot, delta_dot)), d_gain_dot, d_bias_dot


def _normalised_dot(saved: Saved, z_dot: Tensor) -> Tangent:
    t, n, c, side, _ = z_dot.shape
    part, coef, q = _parts(z_dot, side), saved.coef.clone(), _new(z_dot, t, c)
    dense_sums_kernel[_grid(z_dot, side)](
        z_dot, saved.z, coef, part, n * side**2, c, DUAL=True, BM=TILE, BF=block(c), num_warps=8
    )
    small = saved.x_hat.shape[3]
    merged = within(part.shape[1], _grid(z_dot, small)[0])
    if not merged["MERGE"]:
        grid, blocks = _merge(z_dot, part)
        tan_fwd_sums_kernel[grid](
            part, coef, saved.rstd, q, part.shape[1], n * side**2, c,
            GIVEN=not saved.count, **blocks,
        )  # fmt: skip
    x_hat_dot = empty_images(z_dot, t, n, c, small)
    normalise_dot_kernel[_grid(z_dot, small)](
        z_dot, saved.x_hat, _winners(saved), coef, saved.rstd, q, part, q, q, x_hat_dot, x_hat_dot,
        n, side, small, c, c, 1.0, part.shape[1],
        POOL=saved.winners is not None, BORDER=False, GIVEN=not saved.count, **merged,
        BM=TILE, BF=block(c), num_warps=8,
    )  # fmt: skip
    return Tangent(z_dot, coef, q, x_hat_dot)


def _delta(saved: Saved, gain: Tensor, dy: Tensor, coef: Tensor) -> tuple[Tensor, ...]:
    """δ, its sums [T, 2, C], and the gradients of gain and bias; writes the coefficients of dz."""
    delta, part = _bent(saved, gain, dy)
    t, n, c, side, _ = saved.z.shape
    sums, d_gain, d_bias = _new(dy, t, 2, c), _new(dy, t, c), _new(dy, t, c)
    grid, blocks = _merge(saved.z, part)
    bwd_sums_kernel[grid](
        part, coef, saved.rstd, gain, sums, d_gain, d_bias, part.shape[1], n * side**2, c, c, c,
        GIVEN=not saved.count, **blocks,
    )  # fmt: skip
    return delta, sums, d_gain, d_bias


def _bent(saved: Saved, gain: Tensor, dy: Tensor, dual: tuple | None = None) -> tuple:
    """δ and parts of its sums, or with `dual`, which is x̂_dot and δ, those of its direction."""
    t, n, c, small, _ = saved.x_hat.shape
    x_hat_dot, delta = dual or (dy, dy)
    out, part = empty_images(dy, t, n, c, small), _parts(saved.z, small)
    delta_kernel[_grid(saved.z, small)](
        dy, saved.x_hat, x_hat_dot, delta, gain, saved.bias, out, part,
        n * small**2, c, saved.negative_slope, DUAL=dual is not None,
        BM=TILE, BF=block(c), num_warps=8,
    )  # fmt: skip
    return out, part


def _dz(saved: Saved, coef: Tensor, delta: Tensor, dual: tuple | None = None) -> Tensor:
    """dz, or with `dual`, which is z_dot and δ_dot, its direction."""
    t, n, c, side, _ = saved.z.shape
    z_dot, delta_dot = dual or (saved.z, delta)
    out = empty_images(saved.z, t, n, c, side)
    dz_kernel[_grid(saved.z, side)](
        saved.z, z_dot, delta, delta_dot, _winners(saved), coef, *[coef] * 8, out,
        n, side, delta.shape[3], c, 0, 0, 0,
        POOL=saved.winners is not None, DUAL=dual is not None, BORDER=False,
        GIVEN=False, MERGE=False, BT=16,
        BM=TILE, BF=block(c), num_warps=8,
    )  # fmt: skip
    return out


def _checked(
    saved: Saved, gain: Tensor, optional: tuple[str, ...] = (), **operands: tuple
) -> tuple[Saved, Tensor]:
    """What was saved and `gain` as the kernels read them, after all operands were found to fit.
    Autograd kept it, whose hooks may give back another layout, or something else.
    """
    t, n, c, side, _ = saved.z.shape
    small = side if saved.winners is None else side // 2
    kept = {
        "x_hat": (saved.x_hat, (t, n, c, small, small)),
        "coef": (saved.coef, (t, COEFFICIENTS, c)),
        "rstd": (saved.rstd, (t, c)),
        "bias": (saved.bias, (t, c)),
    }
    expect("norm_act", saved.z, optional, gain=(gain, (t, c)), **kept, **operands)
    shape = t, n, small, small, c
    expect_winners("triton norm_act", saved.winners, saved.z, torch.uint8, shape)
    saved = saved._replace(
        z=channels_last(saved.z),
        bias=whole(saved.bias),
        coef=whole(saved.coef),
        rstd=whole(saved.rstd),
        x_hat=channels_last(saved.x_hat),
        winners=whole(saved.winners),
    )
    return saved, whole(gain)


def _winners(saved: Saved) -> Tensor:
    return saved.x_hat if saved.winners is None else saved.winners


def _new(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _parts(like: Tensor, side: int) -> Tensor:
    """[T, tiles, 2, C] for images of a side"""
    t, n, c = like.shape[:3]
    return _new(like, t, triton.cdiv(n * side**2, TILE), 2, c)


def _grid(like: Tensor, side: int) -> tuple[int, int, int]:
    t, n, c = like.shape[:3]
    return triton.cdiv(n * side**2, TILE), t, triton.cdiv(c, block(c))


def _merge(like: Tensor, part: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs and configuration of a merge of `part` [T, tiles, 2, C]."""
    return merge(len(like), part.shape[1], like.shape[2], like.device)
