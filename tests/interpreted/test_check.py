"""The check of a machine sees what is planted in Triton's kernels. The interpreter has no
bfloat16.
"""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from kernels.check.rows import PARTS, Sizes, Subject, rows
from tests.planted import NET, SMALL, assert_clean, one_wrong, wrong

HERE = Subject(torch.device("cpu"), "triton", None)
TINY = NET._replace(side=4, filters=3), 1, 2
OF_NET = Sizes({"mini": TINY}, {"mini": TINY}, (), ())
STAGE = replace(SMALL.stages[0], tasks=1, channels=2, filters=3, side=4)
OF_STAGE = Sizes({}, {}, (STAGE,), ())


@pytest.mark.parametrize(
    ("ops", "sizes"), [(("passes", "update", "gather"), OF_NET), (("conv", "norm_act"), OF_STAGE)]
)
def test_a_wrong_kernel_is_caught(ops: tuple[str, ...], sizes: Sizes) -> None:
    assert_clean(rows([HERE], sizes, ["fp32"]))
    planted = [(op, part) for op in ops for part in (PARTS if op != "gather" else ("fwd",))]
    with ExitStack() as stack:
        for op, part in planted:
            stack.enter_context(wrong(HERE.functions(op), op, part, one_wrong))
        found = rows([HERE], sizes, ["fp32"])
    off = [(r.op, part) for r in found for part, error in r.parts.items() if not error.within]
    assert sorted(off) == sorted(planted)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_passes_in_other_precisions_are_within_budget(precision: str) -> None:
    assert_clean(rows([HERE], OF_NET, [precision]))
