"""Whole passes of the backbone in one call each: forward, backward, and the tangent of both.

The compiled engine runs the tasks of a call side by side, one on each of `kernels.threads()`
threads, and those left over on all of them. What it keeps between calls lies in blocks of its own
memory, which are reused.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.native import module
from kernels.native.tensors import address, ops, vectors
from kernels.net import Net
from kernels.plain.layout import channels_last
from kernels.threads import threads

MOST_STAGES = 16  # as csrc/cpu/pass.h


class Images(NamedTuple):
    """A set of images a task, as the passes read them."""

    net: Net
    count: int  # images of a task
    dtype: torch.dtype
    blocks: list  # one a task


class Result(NamedTuple):
    loss: Tensor | None  # [T]
    logits: Tensor  # [T, N, ways]
    gradient: Tensor | None  # [T, P]
    norm_gradient: Tensor | None  # [T, G]
    mean: Tensor  # [T, S] of the batch
    var: Tensor  # [T, S] biased
    kept: "Kept | None"


class Kept(NamedTuple):
    images: Images
    theta: Tensor  # [T, P]
    blocks: list


def prepare(net: Net, x: Tensor) -> Images:  # [T, N, C, H, W]
    """The images with what all passes over them share, such as the moments of their patches."""
    t, n, *size = x.shape
    if not 1 <= net.stages <= MOST_STAGES:
        raise ValueError(f"native passes take 1 to {MOST_STAGES} stages, got {net.stages}")
    if tuple(size) != (net.channels, net.side, net.side) or not n:
        raise ValueError(
            f"images: got {tuple(x.shape)}; this backbone takes [T, N ≥ 1, {net.channels}, "
            f"{net.side}, {net.side}]"
        )
    x = channels_last(x)
    blocks = ops(x.dtype).prepare(_net(net), t, n, threads(), x.data_ptr())
    return Images(net, n, x.dtype, blocks)


def run(
    images: Images,
    theta: Tensor,  # [T, P]
    row: Tensor,  # [G]
    labels: Tensor | None = None,  # int64 [T, N]; None: forward only
    statistics: tuple[Tensor, Tensor] | None = None,  # mean, biased variance [S], or [T, S]
    keep: bool = False,
) -> Result:
    """Logits and batch moments; with labels also the mean cross-entropy of each task and its
    gradient; `keep` what `tangent` needs.
    """
    net, tasks = images.net, len(images.blocks)
    stats = net.stages * net.filters
    theta, row = vectors(theta), row.contiguous()
    new = theta.new_empty
    given = [None] * 2 if statistics is None else [s.contiguous() for s in statistics]
    loss, gradient, norm_gradient = (
        (None, None, None)
        if labels is None
        else (new(tasks), new(theta.shape), new((tasks, 2 * stats)))
    )
    labels = None if labels is None else labels.contiguous()
    logits, mean, var = new((tasks, images.count, net.ways)), new(tasks, stats), new(tasks, stats)
    blocks = ops(images.dtype).pass_(
        _net(net),
        images.count,
        threads(),
        images.blocks,
        address(labels),
        theta.data_ptr(),
        theta.stride(0),
        theta.shape[1],
        row.data_ptr(),
        *map(address, given),
        stats if statistics is not None and given[0].dim() == 2 else 0,
        *map(address, (loss, logits, gradient, norm_gradient, mean, var)),
        keep,
    )
    kept = Kept(images, theta, blocks) if keep else None
    return Result(loss, logits, gradient, norm_gradient, mean, var, kept)


def tangent(
    kept: Kept,
    direction: Tensor,  # [T, P]
) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
    """Derivative of (gradient, norm_gradient) of a pass along a direction of theta."""
    images, theta, blocks = kept
    net, direction = images.net, direction.contiguous()
    product = torch.empty_like(direction)
    norm_product = direction.new_empty((len(direction), 2 * net.stages * net.filters))
    ops(images.dtype).tangent(
        _net(net),
        images.count,
        threads(),
        images.blocks,
        blocks,
        theta.data_ptr(),
        theta.stride(0),
        theta.shape[1],
        direction.data_ptr(),
        product.data_ptr(),
        norm_product.data_ptr(),
    )
    return product, norm_product


@cache
def _net(net: Net):
    return module.Net(*net)
