"""Floating-point operations of the network's passes and of whole outer iterations.

A convolution counts nine taps at every output position, whatever way it is computed: an algorithm
that needs fewer multiplications (Winograd's) shows a higher rate. A multiply-add is two operations.
Batch norm, activation, pooling, update and Adam are not in the counts of passes and iterations.
"""

from typing import NamedTuple

from engine.config import Config
from engine.meta import loss_weights, second_order
from engine.models.backbone import Backbone
from kernels import native
from kernels.cases import Case


class PerImage(NamedTuple):
    """Multiply-adds of one image's passes."""

    forward: int
    gradient: int  # forward and backward
    tangent: int  # of both, along a direction of the weights: a Hessian-vector product


class Total(NamedTuple):
    """Floating-point operations of one outer iteration or evaluation."""

    support: int
    tangent: int
    target: int

    @property
    def all(self) -> int:
        return sum(self)


def layers(cfg: Config) -> list[int]:
    """Multiply-adds of a forward pass of one image in each convolution and in the classifier."""
    model = Backbone.of(cfg)
    sides = model.image_sizes[:-1] if model.pool else model.image_sizes[1:]
    sizes = dict(zip(model.shapes, model.sizes, strict=True))
    convolutions = [side**2 * sizes[f"conv{i}.weight"] for i, side in enumerate(sides)]
    return [*convolutions, sizes["linear.weight"]]


def per_image(cfg: Config) -> PerImage:
    """A layer's gradient is one product for the weights and one for its input, its tangent two of
    each of the three; images need no gradient and have no direction, which spares the first layer
    one and four.
    """
    first, rest = layers(cfg)[0], sum(layers(cfg)[1:])
    return PerImage(first + rest, 2 * first + 3 * rest, 2 * first + 6 * rest)


def iteration(cfg: Config) -> Total:
    """Of the first epoch."""
    macs, weights = per_image(cfg), loss_weights(0, cfg)
    support = cfg.tasks * cfg.steps * cfg.ways * cfg.shots
    targets = cfg.tasks * sum(map(bool, weights)) * cfg.ways * cfg.targets
    return Total(
        2 * support * macs.gradient,
        2 * support * macs.tangent * second_order(0, cfg),
        2 * targets * macs.gradient,
    )


def performed(cfg: Config) -> float | None:
    """Floating-point operations of the convolutions of one outer iteration of the first epoch, as
    the native passes take them on this processor; None where there are none.
    """
    if native.module is None:
        return None
    net, weighted = Backbone.of(cfg).net, sum(map(bool, loss_weights(0, cfg)))
    forward, backward, tangent = native.passes.products(net, cfg.ways * cfg.shots)
    support = cfg.steps * (forward + backward + tangent * second_order(0, cfg))
    targets = weighted * sum(native.passes.products(net, cfg.ways * cfg.targets)[:2])
    return 2 * cfg.tasks * (support + targets)


def evaluation(cfg: Config) -> Total:
    macs = per_image(cfg)
    support = cfg.tasks * cfg.steps * cfg.ways * cfg.shots
    return Total(
        2 * support * macs.gradient, 0, 2 * cfg.tasks * cfg.ways * cfg.targets * macs.forward
    )


class Work(NamedTuple):
    """Of one call. Bytes are those of the float32 operands and results, each once."""

    flops: int
    bytes: int


PARTS = ("fwd", "bwd", "tan")
# Operations on each value of z and on each of y, counted in the closed forms of
# kernels/plain/norm_act.py.
_NORM_ACT = {"fwd": (5, 4), "bwd": (4, 6), "tan": (9, 16)}
# On each parameter, in those of kernels/plain/update.py, and its operands and results.
_UPDATE = {"fwd": (2, 3), "bwd": (3, 3), "tan": (7, 6)}


def conv(case: Case, part: str) -> Work:
    """A first stage's images need no gradient and have no direction."""
    first = case.channels != case.filters
    products = {"fwd": 1, "bwd": 1, "tan": 2} if first else {"fwd": 1, "bwd": 2, "tan": 6}
    x = case.tasks * case.images * case.side**2 * case.channels
    z = case.tasks * case.images * case.out_side**2 * case.filters
    w = case.tasks * 9 * case.channels * case.filters
    values = {
        "fwd": x + w + z,
        "bwd": z + (1 if first else 2) * x + 2 * w,
        "tan": 3 * z + (1 if first else 3) * x + 3 * w,  # w, its direction and its result; as z, x
    }
    return Work(2 * products[part] * z * 9 * case.channels, 4 * values[part])


def norm_act(case: Case, part: str) -> Work:
    planes = case.tasks * case.images * case.filters
    z = planes * case.out_side**2
    y = planes * (case.out_side // 2 if case.pool else case.out_side) ** 2
    of_z, of_y = _NORM_ACT[part]
    values = {"fwd": z + y, "bwd": y + 2 * z, "tan": 3 * z + 3 * y}
    return Work(of_z * z + of_y * y, 4 * values[part])


def head(tasks: int, images: int, features: int, ways: int, part: str) -> Work:
    products = {"fwd": 1, "bwd": 2, "tan": 6}[part]
    h, w, logits = images * features, ways * features, images * ways
    values = {"fwd": h + w + logits, "bwd": 2 * h + 2 * w + logits, "tan": 3 * (h + w) + logits}
    return Work(2 * products * tasks * h * ways, 4 * tasks * values[part])


def update(parameters: int, part: str) -> Work:
    operations, values = _UPDATE[part]
    return Work(operations * parameters, 4 * values * parameters)


def network_pass(cfg: Config, images: int, part: str) -> Work:
    """A pass over `images` images a task: `fwd` predicts, `bwd` is forward and backward, `tan` the
    Hessian-vector product. Bytes are those of its convolutions and norms.
    """
    model, macs = Backbone.of(cfg), per_image(cfg)
    stages = [
        Case(
            f"{s}",
            cfg.tasks,
            images,
            cfg.filters if s else cfg.channels,
            cfg.filters,
            model.image_sizes[s],
            model.stride,
            model.pool,
        )
        for s in range(cfg.stages)
    ]
    parts = {"fwd": ("fwd",), "bwd": ("fwd", "bwd"), "tan": ("tan",)}[part]
    bytes = sum(op(stage, p).bytes for stage in stages for p in parts for op in (conv, norm_act))
    return Work(2 * cfg.tasks * images * macs[PARTS.index(part)], bytes)
