"""Time of every op and whole pass, as a share of what the machine can do at best."""

from collections.abc import Callable

import torch

from bench import flops, ops
from bench.cases import Row
from bench.flops import PARTS, Work
from bench.gpu import clock
from bench.gpu.checks import absent, passes_here, refusals_left_out, rows_of_networks
from bench.gpu.progress import Items, Request
from bench.gpu.rows import config
from bench.ops import Op


def items(request: Request) -> Items:
    """Passes first. Those of the slower, exact precisions are checked only."""
    yield from absent("ops", request)
    timed = ("tf32", "bf16") if request.cuda else ("fp32",)
    for precision, backend in passes_here(request.device):
        if precision not in timed:
            continue
        for row in rows_of_networks(request):
            for which in ("support", "target"):
                name = f"passes {backend} {precision} {row.case} {which}"
                arguments = row, precision, backend, which, request
                yield name, lambda a=arguments: _passes(*a)
    for op in ops.available(request.device):
        if op.name != "passes" and not (request.quick and op.case not in ("omniglot-4", "mini")):
            yield str(op), lambda op=op: _op(op, request)


def _passes(row: Row, precision: str, backend: str, which: str, request: Request) -> dict:
    cfg = config(row, precision, request.quick, request.device)
    calls = ops.passes(cfg, backend, torch.float32, request.device, which)
    images = cfg.ways * (cfg.shots if which == "support" else cfg.targets)
    work = {part: flops.network_pass(cfg, images, part) for part in PARTS}
    model = f"{cfg.tasks} × {images} × {cfg.channels} × {cfg.image_size}²"
    about = {"op": "passes", "case": f"{row.case} {which}", "shape": model}
    return about | {"backend": backend, "precision": precision} | _times(calls, work, request)


def _op(op: Op, request: Request) -> dict:
    with refusals_left_out():
        calls = ops.calls(op, request.device)
    work = {part: ops.work(op, part) for part in PARTS}
    about = {"op": op.name, "case": op.case, "shape": ops.shape(op), "backend": op.backend}
    precision = "tf32" if op.name == "conv" and request.cuda else "fp32"  # torch's default
    return about | {"precision": precision} | _times(calls, work, request, op.backend != "plain")


def _times(
    calls: dict[str, Callable],
    work: dict[str, Work],
    request: Request,
    capture: bool = True,  # plain ops wait for the device here and there, which no graph can
) -> dict:
    """A target set has no tangent in training, but is timed all the same."""
    found, words = {}, []
    for part in PARTS:
        with torch.no_grad():
            seconds = clock.of_call(calls[part], request.device, capture)
        found[part] = {"seconds": seconds} | work[part]._asdict()
        rate = work[part].flops / seconds / 1e12
        words.append(f"{part} {1e6 * seconds:,.1f} µs ({rate:.2f} TFLOP/s)")
    return {"times": found, "said": ", ".join(words)}
