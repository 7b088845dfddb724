"""What the CUDA functions are called with, beside `kernels.tensors`."""

from collections.abc import Collection
from functools import cache

import torch
from torch import Tensor

from kernels import cuda
from kernels.plain.layout import empty_images
from kernels.plain.layout import images as nhwc
from kernels.tensors import expect as expect_at

DEVICE = "cuda"
VECTOR = 16  # bytes that a thread reads at once


def ops(dtype: torch.dtype):
    """The module's functions of this dtype."""
    return cuda.module.float32 if dtype == torch.float32 else cuda.module.float64


def expect(
    op: str,
    like: Tensor,
    optional: Collection[str] = (),
    **operands: tuple[Tensor | None, tuple[int, ...]],
) -> None:
    """ValueError unless all operands fit `like`, which is on a GPU."""
    expect_at("cuda", DEVICE, op, like, optional, **operands)


def stream(like: Tensor) -> tuple[int, int]:
    """The number of the GPU, and the address of its current stream."""
    current = torch.cuda.current_stream(like.device)
    return current.device_index, current.cuda_stream


@cache
def refusal(device: torch.device) -> str | None:
    """Why this GPU does not run the kernels, in one line; `None` if it does."""
    index = torch.cuda.current_device() if device.index is None else device.index
    refused = cuda.module.refusal(index)
    return f"cuda: {refused}; built for {cuda.module.architectures()}" if refused else None


def images(x: Tensor | None) -> Tensor | None:
    """[T, N, C, H, W] with NHWC memory inside each task, aligned to the vectors that fill its
    pixels.
    """
    x = nhwc(x)
    if x is None:
        return x
    pixel, step = x.shape[2] * x.element_size(), x.stride(0) * x.element_size() * (len(x) > 1)
    vector = min(VECTOR, pixel & -pixel)  # of winners, a byte each, a part of it
    if x.data_ptr() % vector == step % vector == 0:
        return x
    return empty_images(x, *x.shape[:4]).copy_(x)
