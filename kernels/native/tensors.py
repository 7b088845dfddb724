"""What the native functions are called with, beside `kernels.tensors`."""

from functools import partial

import torch

from kernels.native import module
from kernels.tensors import expect as expect_at

# Raises ValueError unless all operands fit `like`, which is on a CPU.
expect = partial(expect_at, "native", "cpu")


def ops(dtype: torch.dtype):
    """The module's functions of this dtype."""
    return module.float32 if dtype == torch.float32 else module.float64
