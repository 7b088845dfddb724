"""The check of a machine sees what is planted in Triton's kernels. The interpreter rounds no
operands, so that all precisions are as good as float32 here, and has no bfloat16.
"""

import pytest
import torch

from kernels import triton
from kernels.check.rows import PARTS, Subject, rows
from tests.planted import SMALL, assert_caught, assert_clean, one_wrong, scaled

HERE = Subject(torch.device("cpu"), "triton", None)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "tf32x3"])
def test_kernels_are_within_budget(precision: str) -> None:
    found = rows([HERE], SMALL, [precision])
    assert_clean(found)
    assert {row.op for row in found} == set(triton.OPS)


@pytest.mark.parametrize("op", triton.OPS)
@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_kernel_is_caught(op: str, part: str) -> None:
    for fault in (scaled, one_wrong):
        assert_caught(HERE, op, part, fault)
