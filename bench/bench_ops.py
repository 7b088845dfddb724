"""Seconds of single ops and of whole passes, on every backend that has them.

They run in this process on all of torch's threads. An op that is not what its definition says fails
before it is timed.
"""

from statistics import median

import pytest

from bench import gate, ops
from bench.cases import rounds_in, seconds
from bench.flops import PARTS

BUDGET = {False: (0.1, 3, 50), True: (0.4, 5, 200)}  # of --full: seconds, fewest and most rounds


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("op", ops.available(), ids=str)
def bench_op(op: ops.Op, part: str, benchmark, record, request):
    gate.check_op(op)
    call = ops.calls(op)[part]
    call()
    rounds = rounds_in(seconds(call), *BUDGET[request.config.option.full])
    benchmark.pedantic(call, rounds=rounds)
    which = {"op": op.name, "case": op.case, "backend": op.backend, "part": part}
    taken = {"shape": ops.shape(op), "seconds": median(benchmark.stats.stats.data)}
    record("ops", which | taken | ops.work(op, part)._asdict())
