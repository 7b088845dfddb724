"""Errors against float64, and how much of one a precision explains.

The budget is twice the largest error of ordinary float32 torch with the same operands, rounded as
the precision rounds them, or four times where Winograd's sums ask for it, and some units in the
last place: torch on some machine may round a result once where another right order of the
operations rounds it a few times.
"""

from math import inf, isinf
from typing import NamedTuple

from torch import Tensor

from kernels.check.oracle import PARTS, Parts

UNITS = 8 * 2.0**-23
# The least budget of a scale. It is for rounded products, whose own error may hide a wrong factor;
# other errors of it show in the norm.
SCALE = 1e-3
# Native's rounded products are Winograd's F(2×2, 3×3). Its operands are sums of values, and the
# variances of what goes into a sum add up to 25/9 of a direct one's, in a weight gradient to 4.
# In fp32 gradients and tangents are its F(4×4, 3×3), of 2.4 times the error of direct sums.
WINOGRAD = 4.0
DIRECT = 2.0


def allowed(precision: str, part: str) -> float:
    """Multiple of torch's error."""
    return DIRECT if precision == "fp32" and part == "fwd" else WINOGRAD


class Error(NamedTuple):
    error: float
    budget: float
    what: str  # the result, or for an infinite error what was raised

    @property
    def within(self) -> bool:
        return self.error <= self.budget  # which what is no number is not

    @property
    def badness(self) -> tuple[bool, float]:
        return not self.within, self.error / self.budget if self.budget else inf

    @property
    def cell(self) -> str:
        """For a table."""
        return f"{self.error:.1e} of {self.budget:.1e}" if self.what else "none"

    def __str__(self) -> str:
        if isinf(self.error) and not self.budget:
            return self.what
        return f"{self.what} off by {self.error:.1e}, allowed {self.budget:.1e}"


def raised(error: Exception) -> dict[str, Error]:
    """A kernel that does not run."""
    reason = str(error).strip().splitlines()[:1] or [""]
    return dict.fromkeys(PARTS, Error(inf, 0.0, f"raised {type(error).__name__}: {reason[0]:.200}"))


def judged(ours: Parts, torch32: Parts, exact: Parts, precision: str) -> dict[str, Error]:
    """Of each part its worst error."""
    return {
        part: _worst(ours[part], torch32[part], exact[part], allowed(precision, part))
        for part in PARTS
    }


def _worst(ours: dict, torch32: dict, exact: dict, factor: float) -> Error:
    """Of each measure the result that torch has worst gives the budget. An op may have none."""
    if not exact:
        return Error(0.0, 0.0, "")
    theirs = [errors(torch32[name], e) for name, e in exact.items()]
    budgets = [factor * max(each) + UNITS for each in zip(*theirs, strict=True)]
    budgets[-1] = max(budgets[-1], SCALE)
    found = [
        Error(error, budget, name)
        for name, e in exact.items()
        for error, budget in zip(errors(ours[name], e), budgets, strict=True)
    ]
    return max(found, key=lambda each: each.badness)


def errors(a: Tensor, exact: Tensor) -> tuple[float, float, float]:
    """Relative: of the largest entry, which one wrong element moves; of the norm; and along the
    exact values, which a wrong scale moves and rounding hardly does.
    """
    e = exact.double().flatten()
    off = a.detach().to("cpu", e.dtype).flatten() - e
    largest, norm = e.abs().max().item() or 1.0, e.norm().item() or 1.0
    return (
        off.abs().max().item() / largest,
        off.norm().item() / norm,
        abs((off @ e).item()) / norm**2,
    )
