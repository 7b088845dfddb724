"""Errors against float64, and how much of one a precision explains.

The budget is not chosen: it is twice the largest error of ordinary float32 torch whose products'
operands are rounded in the same way (`bench.gpu.replay.Replay`), and one unit in the last place.
"""

from collections.abc import Iterable
from math import isnan

import torch
from torch import Tensor

from bench.gpu.replay import Bends

ULP = 2.0**-23


def error(a: Tensor, exact: Tensor) -> float:
    """‖a − exact‖ / ‖exact‖, or ‖a‖ where the exact value is 0; NaN where a has one."""
    a, exact = a.detach().double().flatten(), exact.detach().double().flatten()
    scale = exact.norm()
    return ((a - exact).norm() / (scale if scale > 0 else 1.0)).item()


def verdict(quadruples: Iterable[tuple[str, Tensor, Tensor, Tensor]]) -> dict:
    """Of (name, ours, float32 torch, float64): our largest error, and whether it is within the
    budget that torch's largest one gives; the errors of both by name.
    """
    errors = [(n, error(ours, exact), error(t, exact)) for n, ours, t, exact in quadruples]
    budget = 2 * max(torch32 for *_, torch32 in errors) + ULP
    # what is not a number is worse than any
    worst, largest, _ = max(errors, key=lambda each: (isnan(each[1]), each[1]))
    found = {"error": largest, "budget": budget, "worst": worst, "within": largest <= budget}
    return found | {"errors": {name: both for name, *both in errors}}


def item(
    parts: dict[str, dict], repeats: bool, replayed: bool = True, bends: Bends | None = None
) -> dict:
    """What is kept of a check. One whose winners could not be replayed is shown, not judged."""
    words = [
        f"{part} {v['error']:.1e} of {v['budget']:.1e}"
        + ("" if v["within"] or not replayed else " TOO MUCH")
        for part, v in parts.items()
    ]
    words += [] if replayed else ["its own winners"]
    words += [] if repeats else ["NOT THE SAME BITS TWICE"]
    kept = {"parts": parts, "repeats": repeats, "replayed": replayed}
    if bends is not None:
        kept["bends"] = bends._asdict()
        words += [f"{bends.rounded} bends hang on a rounding"] if bends.rounded else []
        words += [f"{bends.apart} BENDS TAKEN OTHERWISE"] if bends.apart else []
    return kept | {"said": "; ".join(words)}


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
