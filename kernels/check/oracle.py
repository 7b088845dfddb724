"""What kernels are held against: ordinary differentiable torch, in float64, with the winners of the
poolings and the bends of the activations given.

Rounding makes another cell win where two are nearly equal, and from there two right results differ
by as much as their inputs do. With the same choices both are the same smooth function, and their
difference is rounding alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import pools, tf32
from kernels.check.products import convolution
from kernels.net import Net
from kernels.threads import stay_on_one_core, threads

PARTS = ("fwd", "bwd", "tan")
Parts = dict[str, dict[str, Tensor]]  # of each of them results by name
GAINS = 0.8, 1.2  # between which the absolute gains of a problem lie


class Choices(NamedTuple):
    """What a stage chose in a pass."""

    winners: Tensor | None  # int64 [T, N, F, h, w], 0 to 3 row by row; None: nothing is pooled
    positive: Tensor  # bool [T, N, F, h, w]: the activation did not bend


class Problem(NamedTuple):
    """A pass over images, of values that float32 holds, and what every stage chooses in it."""

    net: Net
    x: Tensor  # [T, N, C, H, W]
    theta: Tensor  # [T, P]
    row: Tensor  # [G]
    labels: Tensor  # int64 [T, N]
    direction: Tensor  # [T, P]
    chosen: list[Choices] | None  # None: its own


def stage(
    z: Tensor,  # [T, N, F, H, W]
    gain: Tensor,  # [F] or [T, F]
    bias: Tensor,  # [F] or [T, F]
    eps: float,
    slope: float,
    pool: bool,
    given: tuple[Tensor, Tensor] | None,  # [T, F] each
    chosen: Choices | None,
) -> tuple[Tensor, Tensor, Tensor]:  # y [T, N, F, h, w], mean and biased variance [T, F]
    """Batch norm, pooling and activation; affine and activation grow, so that pooling before the
    bend is pooling behind it.
    """
    mean, var = z.mean((1, 3, 4)), z.var((1, 3, 4), correction=0)
    centre, spread = given or (mean, var)
    x_hat = (z - _wide(centre)) * (_wide(spread) + eps).rsqrt()
    y = x_hat * gain.view(-1, 1, z.shape[2], 1, 1) + bias.view(-1, 1, z.shape[2], 1, 1)
    if pool and chosen is not None and chosen.winners is not None:
        y = _at(y, chosen.winners)
    elif pool:
        y = F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, z.shape[:2])
    if chosen is None:
        return F.leaky_relu(y, slope), mean, var
    return torch.where(chosen.positive.clone(), y, slope * y), mean, var


def _wide(v: Tensor) -> Tensor:
    return v[:, None, :, None, None]


def _at(y: Tensor, winners: Tensor) -> Tensor:
    """[T, N, F, H, W] → [T, N, F, h, w]"""
    h, w = (torch.arange(side, device=y.device) for side in winners.shape[3:])
    rows, columns = 2 * h.unsqueeze(1) + winners // 2, 2 * w + winners % 2
    index = rows * y.shape[4] + columns
    return y.flatten(3).gather(3, index.flatten(3)).view(winners.shape)


def _windows(y: Tensor) -> Tensor:
    """[T, N, F, H, W] → [T, N, F, h, w, 4], a pooling window row by row."""
    h, w = (side // 2 * 2 for side in y.shape[3:])
    return y[..., :h, :w].unfold(3, 2, 2).unfold(4, 2, 2).flatten(5)


@contextmanager
def exact_products() -> Iterator[None]:
    """Torch's own float32 products on a GPU are float32 inside the block, and their sums have an
    order: cuDNN may otherwise choose one by which the same inputs give other bits.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.deterministic = cudnn.deterministic, True
    try:
        with tf32.off():
            yield
    finally:
        cudnn.deterministic = before


def derivatives(
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    dots: list[Tensor],  # directions of the inputs
    dy: Tensor,
    dy_dot: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:  # value, gradient, tangents of both
    """The Hessian of ⟨dy, y⟩ is symmetric, so that the gradient of ⟨gradient, dots⟩ is the tangent
    along them; the gradient itself is linear in dy.
    """
    leaves = [t.detach().requires_grad_() for t in (dy, *inputs)]
    value = function(*leaves[1:])
    # Sums, as torch imports SymPy, for half a second, to look at gradients that it is given.
    first = torch.autograd.grad((value * leaves[0]).sum(), leaves[1:], create_graph=True)
    along = sum((g * dot).sum() for g, dot in zip(first, dots, strict=True))
    y_dot, *second = torch.autograd.grad(along, leaves, retain_graph=True, materialize_grads=True)
    if dy_dot is not None:
        more = torch.autograd.grad((value * dy_dot).sum(), leaves[1:])
        second = [a + b for a, b in zip(second, more, strict=True)]
    return [value.detach()], [g.detach() for g in first], [y_dot, *second]


@cache
def problem(net: Net, tasks: int, images: int, margin: float, seed: int = 0) -> Problem:
    """One whose choices no rounding changes: filters are drawn until each has a winner in every
    window that is well ahead, and biases keep the bend between values or below all.

    How far is in units of `margin`, for values of the order of 1: one of the second stage, and one
    more of each that follows, as errors add up; a hundredth of the first stage, which every
    precision takes as float32.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = single(0.5 + drawn(tasks, images, net.channels, net.side, net.side))
    h, weights, rows, chosen = x, [], [], []
    for s in range(net.stages):
        low, high = GAINS
        size = low + (high - low) * torch.rand(net.filters, generator=generator).double()
        gain = single(size * (0.3 - torch.rand(net.filters, generator=generator).double()).sign())
        gain = -gain  # a few of them are negative
        ahead = margin * (s or 0.01)
        w = torch.stack([_filters(images, net, ahead / low, drawn) for images in h])
        w = w * gain.sign().view(-1, 1, 1, 1)
        options = net.eps, 1.0, False, None, None
        z = torch.stack([torch.conv2d(a, b, None, 1, 1) for a, b in zip(h, w, strict=True)])
        best, winners = _windows(stage(z, gain, torch.zeros_like(gain), *options)[0]).max(5)
        bias = in_a_gap(best, ahead / 2)
        y = best + bias.view(-1, 1, 1)
        chosen.append(Choices(winners, y > 0))
        h = torch.where(y > 0, y, net.negative_slope * y)
        weights.append(w)
        rows += [gain, bias]
    width = h[0, 0].numel()
    head = single(drawn(tasks, net.ways * width) / width**0.5)
    flat = [w.permute(0, 1, 3, 4, 2).flatten(1) for w in weights]
    theta = torch.cat([*flat, head, single(0.1 * drawn(tasks, net.ways))], 1)
    scale = torch.cat([part.std(1, keepdim=True).expand_as(part) for part in (*flat, head)], 1)
    scale = torch.cat([scale, torch.ones(tasks, net.ways, dtype=torch.float64)], 1)
    direction = single(scale * drawn(*theta.shape))
    labels = torch.randint(net.ways, (tasks, images), generator=generator)
    return Problem(net, x, theta, torch.cat(rows), labels, direction, chosen)


def randn(seed: int, *shape: int) -> Tensor:
    """Values that float32 holds, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return single(torch.randn(shape, generator=generator, dtype=torch.float64))


def single(t: Tensor) -> Tensor:
    return t.float().double()


def _filters(images: Tensor, net: Net, ahead: float, drawn: Callable) -> Tensor:
    """[F, C, 3, 3] whose normalised maps have a winner `ahead` of the second in every window."""
    found, count, x = [], 0, images.float()
    for _ in range(1000):
        w = drawn(4 * net.filters, images.shape[1], 3, 3) / (9 * images.shape[1]) ** 0.5
        z = torch.conv2d(x, w.float(), None, 1, 1)
        rstd = (z.var((0, 2, 3), correction=0) + net.eps).rsqrt()
        first, second = _windows(z.unsqueeze(0)).topk(2).values.unbind(5)
        gap = (first - second).amin((0, 1, 3, 4)) * rstd
        found.append(single(w[gap > ahead]))
        count += len(found[-1])
        if count >= net.filters:
            return torch.cat(found)[: net.filters]
    raise AssertionError(f"no {net.filters} filters with winners {ahead} ahead on {images.shape}")


def in_a_gap(values: Tensor, margin: float = 0.0) -> Tensor:  # [T, N, F, h, w] → [F]
    """Biases that bring 0 into the middle of the widest gap between the central half of a filter's
    values; below all of them where that is not `margin` away from both sides.
    """
    ordered = values.movedim(2, 0).flatten(1).sort(1).values
    quarter = ordered.shape[1] // 4
    central = ordered[:, quarter : ordered.shape[1] - quarter]
    gaps = central.diff(dim=1)
    at = gaps.argmax(1, keepdim=True)
    half = gaps.gather(1, at) / 2
    inside = central.gather(1, at) + half
    return single(-torch.where(half > margin, inside, ordered[:, :1] - 2 * margin).squeeze(1))


def passes(
    p: Problem,
    precision: str = "fp32",
    dtype: torch.dtype = torch.float64,
    stem: str = "fp32",  # the precision of a first stage that pools, a backend's `stem_precision`
) -> Parts:
    """The results of a pass and of its tangent, by autograd, the choices given, a task on a
    thread. Float32 in a precision other than fp32 is an emulation: operands are rounded, sums are
    not.
    """
    run = partial(_task, p, precisions=(stem, precision), dtype=dtype)
    pool, _ = pools.started(threads(), "check", stay_on_one_core)
    with pool or nullcontext():
        tasks = list((pool.map if pool else map)(run, range(len(p.x))))
    return named(p.net, *(torch.cat(each) for each in zip(*tasks, strict=True)))


def _task(
    p: Problem, task: int, precisions: tuple[str, str], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    net, at = p.net, slice(task, task + 1)
    theta, row = (t.to(dtype).requires_grad_() for t in (p.theta[at], p.row))
    x, means, variances = p.x[at].to(dtype), [], []
    *filters, weight, bias = weights(net, theta)
    for s, (w, affine) in enumerate(zip(filters, row.view(net.stages, 2, -1), strict=True)):
        z = convolution(x[0], w[0], 1, precisions[min(s, 1)]).unsqueeze(0)
        chosen = p.chosen and Choices(*(c[at] for c in p.chosen[s]))
        x, mean, var = stage(z, *affine, net.eps, net.negative_slope, True, None, chosen)
        means.append(mean)
        variances.append(var)
    logits = x.flatten(2) @ weight.mT + bias.unsqueeze(1)
    loss = F.cross_entropy(logits.flatten(0, 1), p.labels[at].flatten()).unsqueeze(0)
    leaves = theta, row
    gradient, norm_gradient = torch.autograd.grad(loss.sum(), leaves, create_graph=True)
    product, norm_product = torch.autograd.grad(
        (gradient * p.direction[at].to(dtype)).sum(), leaves
    )
    results = loss, logits, gradient, norm_gradient.unsqueeze(0)
    moments = torch.cat(means, 1), torch.cat(variances, 1)
    return *(t.detach() for t in (*results, *moments)), product, norm_product.unsqueeze(0)


def weights(net: Net, theta: Tensor) -> list[Tensor]:
    """The tensors [T, …] of flat buffers [T, P], whose filters are NHWC."""
    channels = [net.channels] + [net.filters] * (net.stages - 1)
    *filters, head = theta.split([*segments(net)[:-2], sum(segments(net)[-2:])], 1)
    views = [
        part.view(-1, net.filters, 3, 3, c).permute(0, 1, 4, 2, 3)
        for part, c in zip(filters, channels, strict=True)
    ]
    weight, bias = head.split(segments(net)[-2:], 1)
    return [*views, weight.view(len(theta), net.ways, -1), bias]


def segments(net: Net) -> tuple[int, ...]:
    """Parameters of each tensor of a network that pools."""
    channels = [net.channels] + [net.filters] * (net.stages - 1)
    width = net.filters * (net.side >> net.stages) ** 2
    return *(9 * net.filters * c for c in channels), net.ways * width, net.ways


def named(
    net: Net,
    loss: Tensor,
    logits: Tensor,
    gradient: Tensor,
    norm_gradient: Tensor,
    mean: Tensor,
    var: Tensor,
    product: Tensor,
    norm_product: Tensor,
    alone: Tensor | None = None,  # logits without a gradient; None: the same
) -> Parts:
    """The gradient and its tangent layer by layer, the head's two tensors as one."""
    *filters, weight, bias = segments(net)
    layers = [*(f"conv{s}" for s in range(net.stages)), "head"]
    by_layer = [
        dict(zip(layers, rows.split([*filters, weight + bias], 1), strict=True)) | {"norm": affine}
        for rows, affine in ((gradient, norm_gradient), (product, norm_product))
    ]
    alone = logits if alone is None else alone
    values = {"loss": loss, "logits": logits, "alone": alone, "mean": mean, "variance": var}
    return dict(zip(PARTS, (values, *by_layer), strict=True))


def in_single(p: Problem, device: torch.device) -> Problem:
    """For a backend: float32, on its device."""
    moved = {name: getattr(p, name).to(device, torch.float32) for name in ("x", "theta", "row")}
    moved["direction"] = p.direction.to(device, torch.float32)
    return p._replace(labels=p.labels.to(device), **moved)


def fused(backend, p: Problem, precision: str) -> Parts:
    """The same by a backend of whole passes, of a problem `in_single`."""
    images = backend.prepare(p.net._replace(precision=precision), p.x)
    *results, kept = backend.run(images, p.theta, p.row, p.labels, None, True)
    alone = backend.run(images, p.theta, p.row).logits
    return named(p.net, *results, *backend.tangent(kept, p.direction), alone)
