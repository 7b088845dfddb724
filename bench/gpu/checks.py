"""Every op and whole pass against float64 with the winners replayed, twice for the same bits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from bench import gate, ops
from bench.cases import Row, cast, episode
from bench.gpu.errors import item, same, verdict
from bench.gpu.progress import Items, LeftOut, Request
from bench.gpu.replay import Bends, Replay, bends, choices, stem_of
from bench.gpu.rows import GOALS, config
from bench.ops import Op
from engine.config import Config
from engine.models.backbone import Backbone
from kernels import cases, dispatch, reference
from kernels.check.oracle import Choices, exact_products, stage

PARTS = ("fwd", "bwd", "tan")
GRID = 2.0**-12  # values on it are apart enough to keep their order when they are normalised


def items(request: Request) -> Items:
    """Ops first: what is wrong there is not looked for in a pass."""
    yield from absent("kernels", request)
    for op in ops.available(request.device):
        if op.name != "passes" and not (request.quick and _large(op)):
            yield str(op), lambda op=op: _op(op, request.device)
    yield from (each for first, each in _passes(request) if not first)


def first_passes(request: Request) -> Items:
    """One of each precision: whether it runs at all."""
    yield from (each for first, each in _passes(request) if first)


def _passes(request: Request) -> Iterator[tuple[bool, tuple]]:
    """All of them, and whether each is its precision's first."""
    for precision, backend in passes_here(request.device):
        first = True
        for row in rows_of_networks(request):
            for which in ("support", "target"):
                cfg = config(row, precision, request.quick, request.device)
                measure = partial(passes, cfg, which, backend, request.device)
                yield first, (f"passes {backend} {precision} {row.case} {which}", measure)
                first = False


def absent(part: str, request: Request) -> Items:
    """An item, left out, for each backend that runs nothing here: it says why."""

    def leave_out(reason: str) -> dict:
        raise LeftOut(reason)

    for backend in dispatch.CHOICES[request.device.type]:
        name = f"{backend}, all of it"
        if reason := dispatch.space(backend).refuses(request.device, torch.float32):
            yield name, partial(leave_out, reason)
        else:  # as it may have been when the run was begun
            request.progress.part(part).pop(name, None)


def passes_here(device: torch.device) -> Iterator[tuple[str, str]]:
    """Precision and backend of all whole passes that run on a device; plain composes its own."""
    for backend in dispatch.BACKENDS:
        for precision in kernels.PRECISIONS:
            with kernels.use(backend):
                chosen, _ = dispatch.choose("passes", device, torch.float32, precision)
            if chosen or (backend, precision) == ("plain", "fp32"):
                yield precision, backend


def rows_of_networks(request: Request) -> list[Row]:
    """One of each size of pass."""
    mini, _, omniglot, five_way = GOALS
    return [mini, omniglot] if request.quick or not request.cuda else [mini, omniglot, five_way]


def _large(op: Op) -> bool:
    return op.case not in ("mini-4-support", "omniglot-4", "mini")


def _op(op: Op, device: torch.device) -> dict:
    """A public op with its derivatives to second order."""
    public = _public(op)
    inputs = [t.to(device) for t in public.inputs]

    def run() -> list[Tensor]:
        # A convolution would take TF32, as torch's does; passes are checked in every precision.
        with exact_products(), on(op.backend), refusals_left_out():
            return gate.derivatives(lambda *t: public.call(kernels, None, *t), inputs)

    results = run()
    repeats = same(results, run())
    with exact_products():
        torch32, exact = (
            gate.derivatives(
                lambda *t: public.call(reference, results[0], *t), [t.to(dtype) for t in inputs]
            )
            for dtype in (torch.float32, torch.float64)
        )
    order = ["fwd"] + ["bwd"] * len(inputs) + ["tan"] * len(inputs)
    found = {
        part: verdict(
            (f"{part} {i}", *each)
            for i, (own, *each) in enumerate(zip(order, results, torch32, exact, strict=True))
            if own == part
        )
        for part in PARTS
    }
    return item(found, repeats)


class _Public(NamedTuple):
    """call(ops, value, *inputs): `value` is what was computed before, whose signs are replayed."""

    call: Callable[..., Tensor]
    inputs: list[Tensor]


@contextmanager
def on(backend: str) -> Iterator[None]:
    """Plain ops are checked as what they are meant to be: on a GPU torch would round to TF32, and
    take sums in any order.
    """
    with kernels.use(backend), exact_products() if backend == "plain" else nullcontext():
        yield


@contextmanager
def refusals_left_out() -> Iterator[None]:
    try:
        yield
    except kernels.BackendError as error:
        raise LeftOut(str(error)) from None


def _public(op: Op) -> _Public:
    """On the size that is timed, in float32."""
    if op.name == "conv":
        inputs = cases.conv_inputs(ops.STAGES[op.case], torch.float32)
        return _Public(lambda o, _, x, w: o.task_conv2d(x, w), [*inputs])
    if op.name == "norm_act":
        return _norm_act(ops.STAGES[op.case])
    cfg = ops.config(op)
    model = Backbone.of(cfg)
    if op.name == "head":
        width = model.shapes["linear.weight"][1] // 2  # `head_inputs` has twice the filters
        case = cases.Case("head", cfg.tasks, cfg.ways * cfg.shots, 1, width, 1)
        *inputs, labels = cases.head_inputs(case, cfg.ways, torch.float32)
        return _Public(
            lambda o, _, *t: o.linear_cross_entropy(*t, labels.to(t[0].device))[0], inputs
        )
    *inputs, sizes = cases.update_inputs(cfg.tasks, model.sizes, torch.float32)
    return _Public(lambda o, _, *t: o.lslr_update(*t, sizes), inputs)


def _norm_act(case: cases.Case) -> _Public:
    z, gain, bias = cases.norm_inputs(case, 1, torch.float32)
    options = case.negative_slope, case.pool

    def call(of, value: Tensor | None, z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        if of is kernels:
            named = dict(zip(("negative_slope", "pool"), options, strict=True))
            return of.per_step_batch_norm(z, gain, bias, 0, **named)[0]
        chosen = Choices(None, value > 0)
        return stage(z, gain[0], bias[0], 1e-5, *options, None, chosen)[0]

    return _Public(call, [(z / GRID).round() * GRID, gain, bias])


def passes(cfg: Config, which: str, backend: str, device: torch.device) -> dict:
    """A forward and backward pass and its tangent, over the support or the target sets."""
    return held(problem(cfg, which, device), backend)


def held(made: "Problem", backend: str) -> dict:
    """Against float64, with its own choices."""
    results, chosen, near = run(made, backend)
    repeats = same(results.values(), run(made, backend)[0].values())
    wide = cast(made, torch.float64)
    with exact_products():
        own = made.model.precision
        torch32 = oracle(made, chosen, own, stem_of(backend, own))
        exact = oracle(wide, chosen, "fp32")
    found = {
        part: verdict((n, results[n], torch32[n], exact[n]) for n in results if _part_of(n) == part)
        for part in PARTS
    }
    return item(found, repeats, chosen is not None, near)


class Problem(NamedTuple):
    model: Backbone
    x: Tensor  # [T, N, C, H, W]
    labels: Tensor  # [T, N]
    theta: Tensor  # [T, P]
    row: Tensor  # [G]
    direction: Tensor  # [T, P]


def problem(cfg: Config, which: str, device: torch.device) -> Problem:
    """Initial weights of every task a little apart, gains and biases off their initial values."""
    model, generator = Backbone.of(cfg), torch.Generator().manual_seed(0)
    params = model.init(cfg.steps, 1, cfg.inner_rate, generator)
    noise = [torch.randn(cfg.tasks, len(params.theta), generator=generator) for _ in range(2)]
    theta, direction = params.theta * (1 + 0.1 * noise[0]), params.theta.std() * noise[1]
    row = params.norm[0] + 0.2 * torch.randn(params.norm[0].shape, generator=generator)
    batch = episode(cfg)
    x, labels = (getattr(batch, f"{which}_{part}") for part in ("x", "y"))
    return Problem(model, *(t.to(device) for t in (x, labels, theta, row, direction)))


def run(p: Problem, backend: str) -> tuple[dict[str, Tensor], list[Choices] | None, Bends]:
    """The results by name, the choices of the pass if it tells them, and which bends are near."""
    with on(backend), torch.no_grad():
        images = p.model.prepare(p.x, 2)
        result = images.loss_and_gradient(p.theta, p.row, p.labels, keep=True)
        product, norm_product = result.kept.tangent(p.direction)
    values = result.loss, result.logits, *result.moments
    gradients = result.gradient, result.norm_gradient, product, norm_product
    told = p.model, p.row, result.kept
    return _named(p.model, *values, *gradients), choices(*told), bends(*told)


def oracle(
    p: Problem, chosen: list[Choices] | None, precision: str, stem: str = "fp32"
) -> dict[str, Tensor]:
    """The same by autograd, in the problem's dtype, one task after the other."""
    tasks = [_oracle_of(p, chosen, (precision, stem), t) for t in range(len(p.x))]
    return _named(p.model, *(torch.cat(each) for each in zip(*tasks, strict=True)))


def _oracle_of(p: Problem, chosen, precisions: tuple[str, str], task: int) -> tuple[Tensor, ...]:
    at = slice(task, task + 1)
    tape = None if chosen is None else [[_of_task(c, at) for c in chosen]]
    theta, row = (t.detach().requires_grad_() for t in (p.theta[at], p.row))
    replay = Replay(p.model, tape, *precisions)
    loss, logits, moments = replay.loss(theta, row, p.x[at], p.labels[at])
    gradient, norm_gradient = torch.autograd.grad(loss.sum(), (theta, row), create_graph=True)
    products = torch.autograd.grad((gradient * p.direction[at]).sum(), (theta, row))
    rows = norm_gradient, products[1]
    norm_gradient, norm_product = (r.detach().unsqueeze(0) for r in rows)
    return (
        loss.detach(), logits, *moments, gradient.detach(), norm_gradient, products[0], norm_product
    )  # fmt: skip


def _of_task(chosen: Choices, at: slice) -> Choices:
    return Choices(*(None if c is None else c[at] for c in chosen))


def _named(model, loss, logits, mean, var, gradient, norm_gradient, product, norm_product):
    """By name, the gradients layer by layer."""
    named = {"loss": loss, "logits": logits, "mean": mean, "var": var}
    named |= {"norm gradient": norm_gradient, "norm product": norm_product}
    for what, values in (("gradient", gradient), ("product", product)):
        layers = zip(model.shapes, values.split(model.sizes, 1), strict=True)
        named |= {f"{what} {layer}": part for layer, part in layers}
    return named


def _part_of(name: str) -> str:
    return "tan" if "product" in name else "bwd" if "gradient" in name else "fwd"
