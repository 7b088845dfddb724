"""Whole meta-gradients by the adjoint against the float64 oracle, with the winners of every pass
replayed: of the rows' networks, and of the reference implementation's files.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from bench.cases import cast, episode, moved
from bench.gpu.checks import on, passes_here
from bench.gpu.errors import error, item, same, verdict
from bench.gpu.progress import Items, LeftOut, Request
from bench.gpu.replay import Recording, Replay, Tape, stem_of
from bench.gpu.rows import ROWS, config
from engine import unroll
from engine.config import Config
from engine.episodes import Episode
from engine.meta import loss_weights, second_order
from engine.models.backbone import Backbone
from engine.models.interface import Params
from engine.unroll import MetaGradient
from kernels import reference
from kernels.check.oracle import exact_products
from tests import golden

EXACT = 1e-9  # the oracle's own difference from a file that was made in float64


class Problem(NamedTuple):
    model: Backbone
    params: Params
    episode: Episode
    weights: Sequence[float]
    second: bool


def items(request: Request) -> Items:
    device = request.device
    few = (ROWS[0], ROWS[6]) if request.quick else (ROWS[0], ROWS[2])
    for precision, backend in passes_here(device):
        # All rows in the precision that is the default on a GPU.
        for row in ROWS if precision == "tf32" and not request.quick else few:
            cfg = config(row, precision, request.quick, device)
            made = lambda c=cfg: of_row(c, device)  # noqa: E731
            name = f"{backend} {precision} {row.case} {row.loss} {row.order} order"
            yield name, lambda p=made, b=backend: check(p(), b)
    files = golden.files()
    yield "golden files", lambda: {"files": [f.stem for f in _needed(files)]}
    for file in files:
        for precision, backend in passes_here(device):
            name = f"{backend} {precision} golden {file.stem}"
            yield name, lambda f=file, p=precision, b=backend: of_file(f, p, b, device)


def _needed(files: list) -> list:
    if not files:
        raise LeftOut("no files of the reference implementation; name their folder by GOLDEN_DIR")
    return files


def of_row(cfg: Config, device: torch.device) -> Problem:
    """Of few tasks: those of a batch do not meet before their gradients are added."""
    cfg = replace(cfg, tasks=min(cfg.tasks, 2 if cfg.image_size < 50 else 1))
    model, generator = Backbone.of(cfg), torch.Generator().manual_seed(0)
    theta, norm, rates = model.init(cfg.steps, cfg.steps, cfg.inner_rate, generator)
    norm, rates = (
        value + size * torch.randn(value.shape, generator=generator)
        for value, size in ((norm, 0.2), (rates, 0.3 * cfg.inner_rate))
    )
    params = Params(*(t.to(device) for t in (theta, norm, rates)))
    batch = episode(cfg, device=device)
    return Problem(model, params, batch, loss_weights(0, cfg), second_order(0, cfg))


def check(p: Problem, backend: str) -> dict:
    ours, recording = adjoint(p, backend)
    tape = recording.tape
    # the model itself may pass the targets of all steps at once, which a recording does not
    again = adjoint(p, backend)[0], _by(p.model, p, backend)
    repeats = all(same(_tensors(ours), _tensors(found)) for found in again)
    with exact_products():
        own = p.model.precision
        torch32 = oracle(p, tape, own, stem_of(backend, own))
        exact = oracle(_cast(p, torch.float64), tape, "fp32")
    found = verdict(zip(_NAMES, *map(_tensors, (ours, torch32, exact)), strict=True))
    return item({"gradient": found}, repeats, all(tape), recording.bends)


def of_file(file, precision: str, backend: str, device: torch.device) -> dict:
    """Also how far the oracle's own choices lead from the file, and ours from it."""
    golden_file = golden.Golden(file)
    model = replace(golden.model_of(golden_file), precision=precision)
    weights = [w / golden_file.config["tasks"] for w in golden_file.loss_weights]
    params = Params(*(t.to(device) for t in golden.params_of(golden_file, "init")))
    batch = moved(Episode(*golden_file.sets), device)
    wide = Problem(model, params, batch, weights, golden_file.config["second_order"])
    p = _cast(wide, torch.float32)
    found = check(p, backend)
    expected = torch.cat([t.flatten() for t in golden.params_of(golden_file, "grad")]).to(device)
    with exact_products():
        own = _flat(oracle(wide, None, "fp32"))
    free = error(_flat(adjoint(p, backend)[0]), expected)
    apart = error(own, expected)
    if not apart <= EXACT:
        raise AssertionError(f"the oracle itself is {apart:.1e} away from {file.name}")
    words = f"{found['said']}; with free winners {free:.1e}"
    return found | {"free": free, "oracle": apart, "said": words}


def adjoint(p: Problem, backend: str) -> tuple[MetaGradient, Recording]:
    recording = Recording(p.model)
    return _by(recording, p, backend), recording


def _by(model: Backbone | Recording, p: Problem, backend: str) -> MetaGradient:
    with on(backend):
        block = unroll.adjoint(model, p.params, p.episode, p.weights, p.second)
    return unroll.total([block])


def oracle(p: Problem, tape: Tape | None, precision: str, stem: str = "fp32") -> MetaGradient:
    replay = Replay(p.model, tape, precision, stem)
    block = unroll.autograd(replay, p.params, p.episode, p.weights, p.second, ops=reference)
    return unroll.total([block])


_NAMES = ("loss", "logits", *Params._fields)


def _tensors(found: MetaGradient) -> list[torch.Tensor]:
    return [found.loss, found.logits, *found.gradient]


def _flat(found: MetaGradient) -> torch.Tensor:
    return torch.cat([t.flatten() for t in found.gradient])


def _cast(p: Problem, dtype: torch.dtype) -> Problem:
    return p._replace(params=cast(p.params, dtype), episode=moved(p.episode, dtype))
