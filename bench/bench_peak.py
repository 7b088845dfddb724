"""What this machine can do at best, in the same run: multiply-adds in registers, a matrix product
and a copy of memory.
"""

import pytest

from bench import peaks
from kernels import native

MULTIPLY_ADDS = 1 << 22  # of a dozen vectors, on each thread
SIDE = 2048
FLOATS = 1 << 26  # 256 MiB: more than the caches hold
ROUNDS = 10


@pytest.mark.parametrize(
    "name, make, size",
    [
        pytest.param(
            "multiply-add",
            peaks.multiply_adds,
            MULTIPLY_ADDS,
            marks=pytest.mark.skipif(native.module is None, reason="no native kernels"),
        ),
        ("matmul", peaks.matrix_product, SIDE),
        ("copy", peaks.copy, FLOATS),
    ],
)
def bench_peak(name: str, make, size: int, benchmark, record):
    """Floating-point operations, or bytes, a second, of the fastest round."""
    call, amount = make(size)
    benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=2)
    record("peaks", {"name": name, "per_second": amount / benchmark.stats.stats.min})
