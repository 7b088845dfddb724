"""What a machine can do at best: multiply-adds in registers, a matrix product and a copy of memory,
as calls to time.
"""

from collections.abc import Callable

import torch

from kernels import native


def multiply_adds(rounds: int) -> tuple[Callable, int]:
    """The call, on torch's number of threads, and its floating-point operations, in float32 by the
    vectors of the native kernels."""
    threads, run = torch.get_num_threads(), native.module.float32.multiply_adds
    return lambda: run(threads, rounds), int(run(threads, rounds))


def matrix_product(
    side: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Callable, int]:
    """The call and its floating-point operations; on random values, which cost the most power."""
    a, b = torch.rand(2, side, side, device=device).to(dtype)
    return lambda: a @ b, 2 * side**3


def copy(floats: int, device: torch.device | str = "cpu") -> tuple[Callable, int]:
    """The call and the bytes that it reads and writes."""
    source, target = torch.rand(2, floats, device=device)
    return lambda: target.copy_(source), 2 * source.nbytes
