"""Tensors as the compiled module takes them: an address, and the elements from one task to the
next. It trusts both, so that shapes are checked here.
"""

import torch
from torch import Tensor

from kernels import checks
from kernels.native import module

DTYPES = (torch.float32, torch.float64)


def ops(dtype: torch.dtype):
    """The module's functions of this dtype."""
    return module.float32 if dtype == torch.float32 else module.float64


def matrix(rows: Tensor | None) -> tuple[int, int]:
    """Of [T, ...], whose entries of one task lie as the function wants them."""
    return (0, 0) if rows is None else (rows.data_ptr(), rows.stride(0))


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def expect(op: str, like: Tensor, **operands: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """ValueError unless every operand given has its shape, and the dtype and device of `like`,
    which the module has to know.
    """
    if like.device.type != "cpu" or like.dtype not in DTYPES:
        raise ValueError(
            f"native {op} takes float32 and float64 on a CPU, got {like.dtype} on {like.device}; "
            f"convert the input or use the plain backend"
        )
    checks.expect(f"native {op}", like, **operands)
