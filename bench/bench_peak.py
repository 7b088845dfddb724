"""What this machine can do at best, in the same run: a matrix product and a copy of memory."""

import pytest
import torch

SIDE = 2048
FLOATS = 1 << 26  # 256 MiB: more than the caches hold
ROUNDS = 10


def matrix_product():
    a, b = torch.rand(2, SIDE, SIDE)
    return lambda: a @ b, 2 * SIDE**3


def copy():
    source, target = torch.rand(2, FLOATS)
    return lambda: target.copy_(source), 2 * source.nbytes  # read and written


@pytest.mark.parametrize("name, make", [("matmul", matrix_product), ("copy", copy)])
def bench_peak(name: str, make, benchmark, record):
    """Floating-point operations, or bytes, a second, of the fastest round."""
    call, amount = make()
    benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=2)
    record("peaks", {"name": name, "per_second": amount / benchmark.stats.stats.min})
