"""Whole passes of the backbone in one call each: forward, backward, and the tangent of both.

The compiled engine runs the tasks of a call side by side, one on each of `kernels.threads()`
threads, and those left over on all of them. What it keeps between calls lies in blocks of its own
memory, which are reused.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import checks
from kernels.native import module
from kernels.native.tensors import expect, ops
from kernels.net import Embedded, Net, Result
from kernels.plain.layout import channels_last, vectors, whole
from kernels.tensors import address
from kernels.threads import threads

MOST_STAGES = 16  # as csrc/cpu/pass.h
LARGEST = 4096  # of any size, as csrc/cpu/amx.cpp; the kernels multiply some of them as ints
MOST_IMAGES = 2**16
PRECISIONS = ("fp32", "bf16x3", "bf16")


class Images(NamedTuple):
    """A set of images a task, as the passes read them."""

    net: Net
    count: int  # images of a task
    dtype: torch.dtype
    device: torch.device
    blocks: list  # one a task


class Kept(NamedTuple):
    images: Images
    theta: Tensor  # [T, P]
    blocks: list
    seal: tuple  # of theta


class KeptFeatures(NamedTuple):
    images: Images
    theta: Tensor  # [T, P]
    blocks: list
    seal: tuple  # of theta


def refusal(precision: str) -> str | None:
    """Why this processor does not run passes of a precision, in one line; `None` if it does."""
    if precision not in PRECISIONS:
        return f"native takes products in fp32, bf16x3 and bf16, not in {precision}; ask for fp32"
    if module.has_passes(getattr(module.Precision, precision)):
        return None
    return (
        f"native takes products in {precision} where the processor and the compiler that built it "
        "have AVX512-BF16 or AMX, not here; ask for fp32"
    )


def stem_precision(precision: str) -> str:
    """Of the products of a first stage that pools; of AMX, which takes them in two parts, what they
    are held to.
    """
    return "fp32"


def fastest_precision() -> str:
    """Where nothing was measured: in two parts a product may well take longer."""
    return "fp32"


def prepare(net: Net, x: Tensor) -> Images:  # [T, N, C, H, W]
    """The images with what all passes over them share, such as the moments of their patches."""
    checks.net_sizes("native", net, MOST_STAGES, LARGEST)
    if reason := refusal(net.precision):
        raise ValueError(reason)
    checks.net_images(net, x)
    if net.precision != "fp32" and x.dtype != torch.float32:
        raise ValueError(
            f"native passes in {net.precision} take float32 images, got {x.dtype}; convert them "
            f"or ask for fp32"
        )
    expect("passes", x)
    t, n = x.shape[:2]
    if n > MOST_IMAGES or max(n * net.side**2, checks.parameters(net)) > checks.COUNTED:
        raise ValueError(
            f"native passes take up to {MOST_IMAGES} images a task, and {checks.COUNTED} pixels "
            f"and parameters, got {list(x.shape)} and {checks.parameters(net)} parameters; plain "
            f"takes any"
        )
    x = channels_last(x)
    blocks = ops(x.dtype).prepare(_net(net), t, n, threads(), address(x))
    return Images(net, n, x.dtype, x.device, blocks)


def repeated(images: Images, times: int) -> Images:
    """The same images as of so many times T tasks, all of them `times` in turn."""
    return images._replace(blocks=images.blocks * times)


def run(
    images: Images,
    theta: Tensor,  # [T, P]
    row: Tensor,  # [G], or of each task its own [T, G]
    labels: Tensor | None = None,  # int64 [T, N]; None: forward only
    statistics: tuple[Tensor, Tensor] | None = None,  # mean, biased variance [S], or [T, S]
    keep: bool = False,
) -> Result:
    """Logits and batch moments; with labels also the mean cross-entropy of each task and its
    gradient; `keep` what `tangent` needs.
    """
    checks.handed_back("native passes: run", images, Images, "prepare", True)
    expect("passes", images)
    net, tasks = images.net, len(images.blocks)
    checks.pass_operands(
        "native passes", net, images, tasks, images.count, theta, row, labels, statistics, keep
    )
    new, labels = theta.new_empty, whole(labels)
    loss, gradient, norm_gradient = (
        (None, None, None)
        if labels is None
        else (new(tasks), new(theta.shape), new((tasks, row.shape[-1])))
    )
    logits = new((tasks, images.count, net.ways))
    written = loss, logits, gradient, norm_gradient
    mean, var, kept = _pass(images, theta, row, labels, statistics, written, keep, None)
    return Result(*written, mean, var, Kept(*kept) if keep else None)


def embed(
    images: Images,
    theta: Tensor,  # [T, P], of which the classifier is not read
    row: Tensor,  # [G], or of each task its own [T, G]
    statistics: tuple[Tensor, Tensor] | None = None,  # mean, biased variance [S], or [T, S]
    keep: bool = False,
) -> Embedded:
    """The features that the classifier would see, and batch moments; `keep` what `pullback`
    needs.
    """
    checks.handed_back("native passes: embed", images, Images, "prepare", True)
    expect("passes", images)
    net, tasks = images.net, len(images.blocks)
    checks.pass_operands(
        "native passes", net, images, tasks, images.count, theta, row, None, statistics, False
    )
    features = theta.new_empty((tasks, images.count, checks.features(net)))
    mean, var, kept = _pass(images, theta, row, None, statistics, (None,) * 4, keep, features)
    return Embedded(features, mean, var, KeptFeatures(*kept) if keep else None)


def pullback(
    kept: KeptFeatures,
    d_features: Tensor,  # [T, N, D]
) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
    """The gradient of ⟨d_features, features⟩ in theta, of the classifier 0, and in row."""
    same = isinstance(kept, KeptFeatures) and checks.unbroken(kept.seal, kept.theta)
    checks.handed_back("native passes: pullback", kept, KeptFeatures, "embed", same)
    images, theta, blocks, _ = kept
    net, tasks = images.net, len(images.blocks)
    checks.tensors("native passes", d_features=d_features)
    shape, width = (tasks, checks.parameters(net)), checks.features(net)
    operands = {"theta": (theta, shape), "d_features": (d_features, (tasks, images.count, width))}
    expect("passes", images, **operands)
    gradient, d_features = theta.new_empty(shape), whole(d_features)
    norm_gradient = theta.new_empty((tasks, 2 * net.stages * net.filters))
    ops(images.dtype).pullback(
        _net(net),
        images.count,
        threads(),
        images.blocks,
        blocks,
        address(theta),
        theta.stride(0),
        theta.shape[1],
        address(d_features),
        width,
        address(gradient),
        address(norm_gradient),
    )
    return gradient, norm_gradient


def _pass(
    images: Images,
    theta: Tensor,
    row: Tensor,
    labels: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None,
    written: tuple[Tensor | None, ...],  # loss, logits, gradient, norm_gradient
    keep: bool,
    features: Tensor | None,
) -> tuple[Tensor, Tensor, tuple]:
    """Writes what is asked for; batch moments, and the fields of what was kept."""
    net, tasks = images.net, len(images.blocks)
    stats = net.stages * net.filters
    theta, row = vectors(theta), whole(row)
    given = [None] * 2 if statistics is None else [whole(s) for s in statistics]
    mean, var = (theta.new_empty(tasks, stats) for _ in range(2))
    blocks = ops(images.dtype).pass_(
        _net(net),
        images.count,
        threads(),
        images.blocks,
        address(labels),
        address(theta),
        theta.stride(0),
        theta.shape[1],
        address(row),
        row.stride(0) if row.dim() == 2 else 0,
        *map(address, given),
        stats if statistics is not None and given[0].dim() == 2 else 0,
        *map(address, (*written, mean, var)),
        keep,
        address(features),
        checks.features(net),
    )
    return mean, var, (images, theta, blocks, checks.seal(theta))


def tangent(
    kept: Kept,
    direction: Tensor,  # [T, P]
) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
    """Derivative of (gradient, norm_gradient) of a pass along a direction of theta."""
    same = isinstance(kept, Kept) and checks.unbroken(kept.seal, kept.theta)
    checks.handed_back("native passes: tangent", kept, Kept, "run", same)
    images, theta, blocks, _ = kept
    checks.tensors("native passes", direction=direction)
    shape = len(images.blocks), checks.parameters(images.net)
    expect("passes", images, theta=(theta, shape), direction=(direction, shape))
    net, direction = images.net, whole(direction)
    product = torch.empty_like(direction)
    norm_product = direction.new_empty((len(direction), 2 * net.stages * net.filters))
    ops(images.dtype).tangent(
        _net(net),
        images.count,
        threads(),
        images.blocks,
        blocks,
        address(theta),
        theta.stride(0),
        theta.shape[1],
        address(direction),
        address(product),
        address(norm_product),
    )
    return product, norm_product


def products(net: Net, images: int) -> tuple[float, float, float]:
    """Multiply-adds of the convolutions of so many images, as the instruction set in use takes
    them in float32: by Winograd in its cells, and of filters that complete a vector. Of a forward
    pass, of the backward one, and of the tangent of both.
    """
    checks.net_sizes("native", net, MOST_STAGES, LARGEST)
    return module.float32.products(_net(net), images)


@cache
def _net(net: Net):
    *sizes, precision = net
    return module.Net(*sizes, getattr(module.Precision, precision))
