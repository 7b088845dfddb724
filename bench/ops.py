"""The single ops and whole passes of the network as calls to time, on every backend that has them.

The parts are `fwd`, `bwd` and `tan`, both halves of the tangent; of a pass, see
`bench.flops.network_pass`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

import kernels
from bench import flops
from bench.cases import Row, cast, episode
from bench.flops import Work
from engine.config import Config
from engine.meta import init_state
from engine.models.backbone import Backbone
from kernels import cases, dispatch
from kernels.cases import Case
from kernels.plain.layout import channels_last

DATA = {"mini": "mini 5w1s", "omniglot": "omniglot 20w1s"}
STAGES = {case.name: case for case in cases.REAL}


class Op(NamedTuple):
    """An op of one shape on one backend."""

    name: str  # conv, norm_act, head, update or passes
    case: str  # a key of STAGES, or of DATA
    backend: str

    def __str__(self) -> str:
        return "-".join(self)


def available(device: torch.device | str = "cpu") -> list[Op]:
    """Every op on every backend that runs it on a device here, in float32."""
    names = dict.fromkeys(("conv", "norm_act"), STAGES)
    names |= dict.fromkeys(("head", "update", "passes"), DATA)
    return [
        Op(name, case, backend)
        for name, each in names.items()
        for case in each
        for backend in dispatch.BACKENDS
        if _runs(name, backend, torch.device(device))
    ]


def _runs(op: str, backend: str, device: torch.device) -> bool:
    with kernels.use(backend):
        return dispatch.choose(op, device, torch.float32)[0] == backend


Calls = dict[str, Callable[[], Any]]  # by part; each answers what the backend does


@lru_cache(maxsize=1)  # the parts of an op are timed one after the other
def calls(op: Op, device: torch.device | str = "cpu") -> Calls:
    """In float32, on the size that is timed."""
    if op.name == "passes":
        return passes(config(op), op.backend, torch.float32, device)
    impl = getattr(dispatch.space(op.backend), op.name)
    build = {"conv": _conv, "norm_act": _norm_act, "head": _head, "update": _update}[op.name]
    return build(impl, STAGES[op.case] if op.case in STAGES else config(op), device)


def work(op: Op, part: str) -> Work:
    if op.case in STAGES:
        return getattr(flops, op.name)(STAGES[op.case], part)
    cfg = config(op)
    model, images = Backbone.of(cfg), cfg.ways * cfg.shots
    if op.name == "head":
        return flops.head(cfg.tasks, images, model.shapes["linear.weight"][1], cfg.ways, part)
    if op.name == "update":
        return flops.update(cfg.tasks * sum(model.sizes), part)
    return flops.network_pass(cfg, images, part)


def shape(op: Op) -> str:
    """Tasks × images × what is an image."""
    if op.case in STAGES:
        case = STAGES[op.case]
        channels = f"{case.channels} → {case.filters}" if op.name == "conv" else f"{case.filters}"
        side = case.side if op.name == "conv" else case.out_side
        return f"{case.tasks} × {case.images} × {channels} × {side}²"
    cfg = config(op)
    model = Backbone.of(cfg)
    if op.name == "update":
        return f"{cfg.tasks} × {sum(model.sizes):,}"
    ways, width = model.shapes["linear.weight"]
    image = f"{width} → {ways}" if op.name == "head" else f"{cfg.channels} × {cfg.image_size}²"
    return f"{cfg.tasks} × {cfg.ways * cfg.shots} × {image}"


def config(op: Op) -> Config:
    return Row.of(DATA[op.case]).config()


def _conv(impl, case: Case, device) -> Calls:
    x, w = (channels_last(t.to(device)) for t in cases.conv_inputs(case, torch.float32))
    first, geometry = case.channels != case.filters, (case.stride, 1)
    dz = channels_last(impl.fwd(x, w, *geometry).clone())
    x_dot, w_dot, dz_dot = (channels_last(t.flip(1)) for t in (x, w, dz))
    x_dot, need = None if first else x_dot, (not first, True)
    directions = dz, dz_dot, x, w, x_dot, w_dot
    return {
        "fwd": lambda: impl.fwd(x, w, *geometry),
        "bwd": lambda: impl.bwd(dz, x, w, *geometry, need),
        "tan": lambda: (
            impl.tan_fwd(x, w, x_dot, w_dot, *geometry),
            impl.tan_bwd(*directions, *geometry, need),
        ),
    }


def _norm_act(impl, case: Case, device) -> Calls:
    z, *affine = (t.to(device) for t in cases.norm_inputs(case, 1, torch.float32))
    z, (gain, bias) = channels_last(z), (row.expand(case.tasks, -1) for row in affine)
    arguments = z, gain, bias, 1e-5, case.negative_slope, case.pool, None
    y, saved = impl.fwd(*arguments)
    dy, dy_dot, z_dot = (channels_last(t.flip(1)) for t in (y, y * y, z))

    def tangent():
        y_dot, along = impl.tan_fwd(saved, gain, z_dot)
        return y_dot, impl.tan_bwd(saved, along, gain, dy, dy_dot)

    return {
        "fwd": lambda: impl.fwd(*arguments),
        "bwd": lambda: impl.bwd(saved, gain, dy),
        "tan": tangent,
    }


def _head(impl, cfg: Config, device) -> Calls:
    width = Backbone.of(cfg).shapes["linear.weight"][1]
    case = Case("head", cfg.tasks, cfg.ways * cfg.shots, 1, width // 2, 1)  # D is twice its filters
    inputs = cases.head_inputs(case, cfg.ways, torch.float32)
    h, w, c, labels = (t.to(device) for t in inputs)
    loss, _, saved = impl.fwd(h, w, c, labels)
    ones, directions = torch.ones_like(loss), tuple(t.flip(1) for t in (h, w, c))

    def tangent():
        _, logits_dot = impl.tan_fwd(saved, h, w, *directions)
        return impl.tan_bwd(saved, logits_dot, h, w, *directions[:2], ones)

    return {
        "fwd": lambda: impl.fwd(h, w, c, labels),
        "bwd": lambda: impl.bwd(saved, h, w, ones),
        "tan": tangent,
    }


def _update(impl, cfg: Config, device) -> Calls:
    sizes = Backbone.of(cfg).sizes
    *inputs, _ = cases.update_inputs(cfg.tasks, sizes, torch.float32)
    theta, grad, rates = (t.to(device) for t in inputs)
    theta_dot, grad_dot, rates_dot = theta.flip(1), grad.flip(1), rates.flip(0)
    return {
        "fwd": lambda: impl.fwd(theta, grad, rates, sizes),
        "bwd": lambda: impl.bwd(theta, grad, rates, sizes),
        "tan": lambda: (
            impl.tan_fwd(grad, rates, theta_dot, grad_dot, rates_dot, sizes),
            impl.tan_bwd(theta, grad_dot, rates_dot, sizes),
        ),
    }


def passes(
    cfg: Config,
    backend: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    images_of: str = "support",
) -> Calls:
    """Over the support or the target sets, at the initial parameters, along a direction of their
    size.
    """
    model, batch = Backbone.of(cfg), episode(cfg, dtype, device)
    params = cast(init_state(cfg, device).params, dtype)
    theta, row = params.theta.expand(cfg.tasks, -1), params.norm[0]
    x, labels = (getattr(batch, f"{images_of}_{which}") for which in ("x", "y"))
    with kernels.use(backend):
        images = model.prepare(x, cfg.steps)
        kept = images.loss_and_gradient(theta, row, labels, keep=True).kept
    direction = theta.flip(1).contiguous()

    def on_backend(call: Callable[[], Any]) -> Callable[[], Any]:
        def run():
            with kernels.use(backend):
                return call()

        return run

    return {
        "fwd": on_backend(lambda: images.predict(theta, row)[0]),
        "bwd": on_backend(lambda: images.loss_and_gradient(theta, row, labels).gradient),
        "tan": on_backend(lambda: kept.tangent(direction)[0]),
    }
