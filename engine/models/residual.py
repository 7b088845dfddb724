"""Passes of ResNet-12 over a set of images a task, composed of single ops: forward, backward, and
the tangent of both.

Of each convolution with its normalisation, a unit, a pass holds the convolution's output alone,
and of a light one, as the shortcut, nothing; the rest is run again where its values are wanted.
That is a few passes over memory beside a convolution of hundreds of channels, and less than half of
what autograd holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from engine.models.interface import Moments, Pass
from kernels.plain.layout import total
from kernels.plain.window import at_winners, bend, scatter

if TYPE_CHECKING:
    from engine.models.resnet12 import ResNet12

# Of a block: the chain, and beside it the shortcut.
UNITS = ("conv0", "conv1", "conv2", "shortcut")
SHORTCUT = 3


class Unit(NamedTuple):
    """A convolution and its normalisation, with an activation unless the slope is 1."""

    weight: Tensor  # [T, F, C, R, R]
    gain: Tensor  # [T, F]
    bias: Tensor  # [T, F]
    given: tuple[Tensor, Tensor] | None  # to normalise by, [T, F] each
    slope: float
    eps: float

    def conv(self, x: Tensor):
        """What runs the convolution, and its stride and padding."""
        options = 1, self.weight.shape[-1] // 2
        return kernels.backend("conv", x, x.shape, self.weight.shape, *options), options

    def convolved(self, x: Tensor) -> Tensor:
        conv, options = self.conv(x)
        return conv.fwd(x, self.weight, *options)

    def norm(self, z: Tensor) -> tuple[Tensor, tuple, object]:
        """The unit's output, what the normalisation saved, and what runs it."""
        run = kernels.backend("norm_act", z, z.shape)
        y, saved = run.fwd(z, self.gain, self.bias, self.eps, self.slope, False, self.given)
        return y, saved, run


class Block(NamedTuple):
    """What a pass keeps of a block; tangents need the gradients too."""

    units: list[Unit]
    x: Tensor  # [T, N, C, H, W] the input
    z: list[Tensor | None]  # [T, N, F, H, W] of each convolution; None: run it again
    index: Tensor  # int32 [T·N, F, h, w] winners of the pooling, inside their image
    y: Tensor  # [T, N, F, h, w] the output, whose sign says where the activation bends
    slope: float
    dy: Tensor | None = None  # [T, N, F, h, w] gradient of the output
    du: tuple[Tensor, ...] = ()  # [T, N, F, H, W] gradients of the chain's activations

    def norm(self, k: int) -> tuple[Tensor, tuple, object]:
        """`Unit.norm` of a unit, again."""
        unit, z = self.units[k], self.z[k]
        return unit.norm(unit.convolved(self.x) if z is None else z)

    def spread(self, dy: Tensor) -> Tensor:
        """Gradient of the output → that of the residual sum."""
        size = *self.x.shape[:2], dy.shape[2], *self.x.shape[3:]
        return scatter(bend(dy, self.y, self.slope), self.index.long(), size)

    def gathered(self, sum_dot: Tensor) -> Tensor:
        """Direction of the residual sum → that of the output."""
        return bend(at_winners(sum_dot, self.index.long()), self.y, self.slope)


class UnitDot(NamedTuple):
    """Directions in a unit, forward."""

    x_dot: Tensor | None
    tangent: tuple  # of norm_act


class Images(NamedTuple):
    """Images, ready for passes."""

    model: ResNet12
    x: Tensor  # [T, N, C, H, W]

    def predict(self, theta, row, statistics=None):
        weights = self.model.weights(theta)
        h, _, moments = self._forward(weights, row, statistics, hold=False)
        return torch.baddbmm(weights[-1].unsqueeze(1), h, weights[-2].mT), moments

    def loss_and_gradient(self, theta, row, labels, statistics=None, keep=False):
        model, weights = self.model, self.model.weights(theta)
        h, blocks, moments = self._forward(weights, row, statistics, hold=True)
        head = kernels.backend("head", h)
        loss, logits, head_saved = head.fwd(h, *weights[-2:], labels)
        dh, dw, dc = head.bwd(head_saved, h, weights[-2], torch.ones_like(loss))
        gradients, norm_gradients = [dw, dc], []
        dy = _mean_bwd(dh, blocks[-1].y)
        for b in reversed(range(len(blocks))):
            block = blocks[b]._replace(dy=dy)
            blocks[b] = None  # frees what is used up
            dy, du, dws, affine = block_bwd(block, b > 0, keep)
            if keep:
                blocks[b] = block._replace(du=du)
            gradients[:0] = dws
            norm_gradients[:0] = affine
        kept = Kept(model, blocks, weights[-2], h, head_saved) if keep else None
        return Pass(
            loss, logits, model.flat(gradients), torch.cat(norm_gradients, 1), moments, kept
        )

    def _forward(
        self, weights: list[Tensor], row: Tensor, statistics: Moments | None, hold: bool
    ) -> tuple[Tensor, list[Block], Moments]:
        model, x, blocks, moments = self.model, self.x, [], []
        affine, given = model.affine(row), model.given(statistics, len(x))
        for b in range(len(model.widths)):
            units = []
            for k in range(len(UNITS)):
                at = b * len(UNITS) + k
                gain, bias = (v.expand(len(x), -1) for v in affine[at])
                slope = model.negative_slope if k < 2 else 1.0
                units.append(Unit(weights[at], gain, bias, given[at], slope, model.norm_eps))
            block, of_block = block_fwd(units, x, model.negative_slope)
            x = block.y
            moments += of_block
            if hold:
                blocks.append(block)
        mean, var = (torch.cat(m, 1) for m in zip(*moments, strict=True))
        return x.mean((3, 4)), blocks, Moments(mean, var)


class Kept(NamedTuple):
    model: ResNet12
    blocks: list[Block]
    weight: Tensor  # [T, ways, F] of the classifier
    h: Tensor  # [T, N, F]
    head: tuple  # what the head saved

    def tangent(self, direction):
        model, blocks, w, h, head_saved = self
        weights_dot, x_dot, dots = model.weights(direction), None, []
        of_block = [weights_dot[at : at + len(UNITS)] for at in range(0, len(weights_dot) - 2, 4)]
        for block, w_dot in zip(blocks, of_block, strict=True):
            x_dot, units_dot = block_tan_fwd(block, x_dot, w_dot)
            dots.append(units_dot)
        h_dot, (w_dot, c_dot) = x_dot.mean((3, 4)), weights_dot[-2:]
        head = kernels.backend("head", h)
        _, logits_dot = head.tan_fwd(head_saved, h, w, h_dot, w_dot, c_dot)
        ones = torch.ones_like(h[:, 0, 0])
        dh_dot, dw_dot, dc_dot = head.tan_bwd(head_saved, logits_dot, h, w, h_dot, w_dot, ones)
        gradients, norm_gradients = [dw_dot, dc_dot], []
        dy_dot = _mean_bwd(dh_dot, blocks[-1].y)
        for b in reversed(range(len(blocks))):
            dy_dot, dws, affine = block_tan_bwd(
                blocks[b], dots.pop(), of_block[b], dy_dot, need_dx=b > 0
            )
            gradients[:0] = dws
            norm_gradients[:0] = affine
        return model.flat(gradients), torch.cat(norm_gradients, 1)


def _mean_bwd(dh: Tensor, y: Tensor) -> Tensor:
    """Gradient of the mean over the image → that of the image."""
    return (dh / y[0, 0, 0].numel())[..., None, None].expand_as(y)


def block_fwd(units: list[Unit], x: Tensor, slope: float) -> tuple[Block, list[tuple]]:
    """A block, and mean and variance of each of its normalisations [T, F]."""
    zs, moments, ys, u = [], [], [], x
    for k, unit in enumerate(units):
        z = unit.convolved(x if k == SHORTCUT else u)
        zs.append(None if _light(units, k) else z)
        u, saved, _ = unit.norm(z)
        moments.append((saved.mean, saved.var))
        if k >= 2:
            ys.append(u)
        del z, saved  # dense maps
    joined = ys[0].add_(ys[1]).flatten(0, 1)
    pooled, index = F.max_pool2d(joined, 2, return_indices=True)
    y = F.leaky_relu_(pooled, slope).unflatten(0, x.shape[:2])
    return Block(units, x, zs, index.int(), y, slope), moments


def _light(units: list[Unit], k: int) -> bool:
    """Whether it takes few products, beside the chain's, to make from the block's input again."""
    products = [unit.weight[0, 0].numel() for unit in units]  # for one value
    return k in (0, SHORTCUT) and 4 * products[k] <= products[1]


def block_bwd(
    block: Block, need_dx: bool, keep: bool
) -> tuple[Tensor | None, tuple[Tensor, ...], list[Tensor], list[Tensor]]:
    """Gradients of the input, of the chain's activations if they are kept, of the filters, of gains
    and biases in turn. What is not kept is freed as soon as it is used, of the block too.
    """
    units, x, zs, du, dws, affine = block.units, block.x, block.z, (), [], []

    def renewed(k: int) -> tuple:
        found = block.norm(k)
        zs[k] = zs[k] if keep else None
        return found

    d_sum = block.spread(block.dy)
    saved, norm = renewed(SHORTCUT)[1:]
    dz, *d_affine = norm.bwd(saved, units[SHORTCUT].gain, d_sum)
    del saved
    conv, options = units[SHORTCUT].conv(x)
    dx, dw = conv.bwd(dz, x, units[SHORTCUT].weight, *options, need=(need_dx, True))
    dws.insert(0, dw)
    affine[:0] = d_affine
    saved, norm = renewed(2)[1:]
    dy, spent = d_sum, True
    del dz, d_sum
    for k in (2, 1, 0):
        dz, *d_affine = norm.bwd(saved, units[k].gain, dy, spent)
        del saved, dy
        u, saved, norm = renewed(k - 1) if k else (x, None, None)
        conv, options = units[k].conv(u)
        dy, dw = conv.bwd(dz, u, units[k].weight, *options, need=(need_dx or k > 0, True))
        del dz, u
        dws.insert(0, dw)
        affine[:0] = d_affine
        if keep and k:
            du, spent = (dy, *du), False
    return total(dx, dy), du, dws, affine


def block_tan_fwd(
    block: Block, x_dot: Tensor | None, weights_dot: list[Tensor]
) -> tuple[Tensor, list[UnitDot]]:
    """Direction of the output along those of the input and the filters."""
    units_dot, ys_dot, u, u_dot = [], [], block.x, x_dot
    for k, (unit, w_dot) in enumerate(zip(block.units, weights_dot, strict=True)):
        if k == SHORTCUT:
            u, u_dot = block.x, x_dot
        conv, options = unit.conv(u)
        z_dot = conv.tan_fwd(u, unit.weight, u_dot, w_dot, *options)
        u, saved, norm = block.norm(k)
        y_dot, tangent = norm.tan_fwd(saved, unit.gain, z_dot)
        units_dot.append(UnitDot(u_dot, tangent))
        del saved
        u_dot = y_dot
        if k >= 2:
            ys_dot.append(y_dot)
    return block.gathered(ys_dot[0] + ys_dot[1]), units_dot


def block_tan_bwd(
    block: Block,
    units_dot: list[UnitDot],
    weights_dot: list[Tensor],
    dy_dot: Tensor,
    need_dx: bool,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Directions of the gradients of the input, of the filters, of gains and biases in turn."""
    units, x = block.units, block.x
    d_sum, d_sum_dot = block.spread(block.dy), block.spread(dy_dot)

    def unit_tan_bwd(k: int, saved, norm, u: Tensor, dy: Tensor, dy_dot: Tensor, need: bool):
        unit, (u_dot, tangent) = units[k], units_dot[k]
        dz = norm.bwd(saved, unit.gain, dy)[0]
        dz_dot, *d_affine = norm.tan_bwd(saved, tangent, unit.gain, dy, dy_dot)
        units_dot[k] = None  # used up
        conv, options = unit.conv(u)
        operands = dz, dz_dot, u, unit.weight, u_dot, weights_dot[k]
        return *conv.tan_bwd(*operands, *options, need=(need, True)), d_affine

    saved, norm = block.norm(SHORTCUT)[1:]
    dx_dot, dw_dot, d_affine = unit_tan_bwd(SHORTCUT, saved, norm, x, d_sum, d_sum_dot, need_dx)
    dws, affine, du_dot = [dw_dot], [*d_affine], d_sum_dot
    saved, norm = block.norm(2)[1:]
    for k in (2, 1, 0):
        below = block.norm(k - 1) if k else (x, None, None)
        dy = block.du[k] if k < 2 else d_sum
        du_dot, dw_dot, d_affine = unit_tan_bwd(
            k, saved, norm, below[0], dy, du_dot, need_dx or k > 0
        )
        saved, norm = below[1:]
        dws.insert(0, dw_dot)
        affine[:0] = d_affine
    return total(dx_dot, du_dot), dws, affine
