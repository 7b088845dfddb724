"""Tensors as the compiled module takes them: an address, and the elements from one task to the
next. It trusts both, so that shapes are checked here.
"""

import torch
from torch import Tensor

from kernels.native import module
from kernels.plain.layout import channels_last

DTYPES = (torch.float32, torch.float64)


def ops(dtype: torch.dtype):
    """The module's functions of this dtype."""
    return module.float32 if dtype == torch.float32 else module.float64


def matrix(rows: Tensor | None) -> tuple[int, int]:
    """Of [T, ...], whose entries of one task lie as the function wants them."""
    return (0, 0) if rows is None else (rows.data_ptr(), rows.stride(0))


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def vectors(rows: Tensor | None) -> Tensor | None:
    """[T, P] with contiguous rows; one row that all tasks share stays one."""
    whole = rows is None or rows.stride(1) == 1 or rows.shape[1] == 1
    return rows if whole else rows.contiguous()


def images(x: Tensor | None) -> Tensor | None:
    """[T, N, C, H, W], or filters [T, F, C, R, S], with NHWC memory inside each task."""
    if x is None:
        return None
    _, _, c, h, w = x.shape
    strides = zip(x.stride()[1:], (h * w * c, 1, w * c, c), x.shape[1:], strict=True)
    return x if all(a == b for a, b, size in strides if size > 1) else channels_last(x)


def empty_images(like: Tensor, t: int, n: int, c: int, side: int) -> Tensor:
    """[T, N, C, side, side], unwritten, with NHWC memory; no view, which autograd would not let the
    caller write to.
    """
    image = side * side * c
    strides = (n * image, image, 1, side * c, c)
    return torch.empty_strided((t, n, c, side, side), strides, dtype=like.dtype)


def expect(op: str, like: Tensor, **operands: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """ValueError unless every operand given has its shape, and the dtype and device of `like`,
    which the module has to know.
    """
    if like.device.type != "cpu" or like.dtype not in DTYPES:
        raise ValueError(
            f"native {op} takes float32 and float64 on a CPU, got {like.dtype} on {like.device}; "
            f"convert the input or use the plain backend"
        )
    for name, (tensor, shape) in operands.items():
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != like.dtype or tensor.device != like.device:
            raise ValueError(
                f"native {op}: {name} must be {like.dtype} {list(shape)} on {like.device}, got "
                f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
