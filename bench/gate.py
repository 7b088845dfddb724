"""The check that a row passes before its clock starts: both implementations compute the same."""

import torch
from torch import Tensor

from bench.cases import Ours, Theirs, reduced, unflatten
from engine.config import Config
from engine.meta import meta_gradient

EXACT = 1e-9  # float64, loss and every gradient, on a reduced size
SINGLE = 1e-3  # float32, loss, on the size that is timed


def check_exact(cfg: Config) -> None:
    """Loss and gradients of the first iteration agree in float64."""
    cfg = reduced(cfg)
    ours, theirs = Ours(cfg, torch.float64), Theirs(cfg, torch.float64)
    meta = meta_gradient(ours.state, ours.batch, cfg)
    agree("loss", meta.loss, theirs.iteration(), EXACT)
    loop = theirs.loop
    for group, tensors in unflatten(cfg, meta.gradient)._asdict().items():
        if group == "rates" and not loop.cfg.learned_rates:
            continue
        for name, gradient in tensors.items():
            expected = getattr(loop, group)[name].grad
            agree(f"gradient of {group} {name}", gradient, expected, EXACT)


def check_single(ours: float, theirs: float) -> None:
    """The first float32 losses on the size that is timed agree."""
    agree("float32 loss", ours, theirs, SINGLE)


def agree(what: str, a: Tensor | float, b: Tensor | float, bound: float) -> None:
    a, b = (torch.as_tensor(v, dtype=torch.float64).detach().flatten() for v in (a, b))
    scale = torch.maximum(a.abs().max(), b.abs().max())
    error = ((a - b).abs().max() / scale).item() if scale != 0 else 0.0
    if not error <= bound:
        raise AssertionError(f"{what}: relative difference {error:.1e}, allowed {bound:.0e}")
