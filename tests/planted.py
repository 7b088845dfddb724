"""Wrong kernels: results of a backend's functions with a fault that the check has to see."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import cases
from kernels.check.rows import NETS, PARTS, Row, Sizes, Subject, rows

NET = NETS["mini"]._replace(side=12, filters=6, stages=2)
SMALL = Sizes(
    {"mini": (NET, 1, 2)},
    {"mini": (NET._replace(side=16, filters=32), 1, 2)},  # rounding averages out over more values
    (replace(cases.REAL[3], tasks=2, images=2, channels=5, filters=6, side=8),),
    (replace(cases.REAL_SIZED[0], tasks=2, images=2, channels=5, filters=6, side=8),),
)
# The function of an op that gives each part, and where in its results there is something.
FUNCTIONS = {"fwd": "fwd", "bwd": "bwd", "tan": "tan_bwd"}


def scaled(values: Tensor) -> Tensor:
    return values * (1 + 1e-2)


def one_wrong(values: Tensor) -> Tensor:
    """A single element, by a hundredth of the largest value."""
    changed = values.clone()
    changed.view(-1)[values.numel() // 2] += 1e-2 * values.abs().max()
    return changed


def not_a_number(values: Tensor) -> Tensor:
    changed = values.clone()
    changed.view(-1)[-1] = torch.nan
    return changed


FAULTS = (scaled, one_wrong, not_a_number)


def first_changed(result, fault: Callable[[Tensor], Tensor]):
    """With the fault in the first tensor of a result, which may be a tuple."""
    if isinstance(result, Tensor):
        return fault(result.contiguous())
    at = next(i for i, part in enumerate(result) if isinstance(part, Tensor))
    changed = [fault(part.contiguous()) if i == at else part for i, part in enumerate(result)]
    return type(result)(*changed) if hasattr(result, "_fields") else tuple(changed)


@contextmanager
def wrong(functions, op: str, part: str, fault: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A backend's op has the fault in one of the three parts."""
    with pytest.MonkeyPatch.context() as patch:
        if op == "passes":
            _plant_in_passes(patch, functions, part, fault)
        else:
            name = FUNCTIONS[part]
            true = getattr(functions, name)
            patch.setattr(functions, name, lambda *a, **k: first_changed(true(*a, **k), fault))
        yield


def _plant_in_passes(patch, functions, part: str, fault) -> None:
    run, tangent = functions.run, functions.tangent

    def wrong_run(*arguments, **options):
        result = run(*arguments, **options)
        name = {"fwd": "logits", "bwd": "gradient"}[part]
        value = getattr(result, name)
        return result if value is None else result._replace(**{name: fault(value)})

    if part == "tan":
        patch.setattr(functions, "tangent", lambda *a: first_changed(tangent(*a), fault))
    else:
        patch.setattr(functions, "run", wrong_run)


def assert_caught(subject: Subject, op: str, part: str, fault, sizes: Sizes = SMALL) -> None:
    """The fault is found in its op alone, and in its part, which others may be made of."""
    with wrong(subject.functions(op), op, part, fault):
        found = rows([subject], sizes, ["fp32"])
    assert op in {row.op for row in found}
    for row in found:
        off = [p for p in PARTS if not row.parts[p].within]
        assert (part in off) if row.op == op else not off, (row.op, row.failed)


def assert_clean(found: list[Row]) -> None:
    assert found and not [row for row in found if row.failed]
