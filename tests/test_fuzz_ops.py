"""The public ops for whatever shapes, layouts and unresolved signs hypothesis thinks of, by every
instruction set and number of threads, to the second derivative against ordinary torch in float64.

`FUZZ=2000 pytest tests/test_fuzz_ops.py` looks longer than the tests do.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels import native, reference
from tests.derivatives import to_second_order
from tests.ops import randn

EXAMPLES = int(os.environ.get("FUZZ", 60))
FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
SIDES, CHANNELS = st.integers(1, 11), st.sampled_from((1, 2, 3, 5, 8, 16, 17, 32, 33))


def turned(t: Tensor) -> Tensor:
    axes = tuple(reversed(range(t.dim())))
    return t.permute(axes).contiguous().permute(axes)


def nhwc(t: Tensor) -> Tensor:
    if t.dim() != 5:
        return t
    return t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


LAYOUTS = {
    "contiguous": lambda t: t,
    "nhwc": nhwc,
    "turned": turned,
    "in a larger tensor": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "with an offset": lambda t: torch.cat([t[:1], t])[1:],
    "shared by the tasks": lambda t: t[:1].expand_as(t),
    "negated": lambda t: torch.complex(t, -t).conj().imag,
    "negated nhwc": lambda t: nhwc(torch.complex(t, -t)).conj().imag,
}
LAYOUT = st.sampled_from(sorted(LAYOUTS))
ISAS = ("portable", "neon", "avx2", "avx512")


@pytest.fixture(scope="module")
def granted() -> list:
    """The instruction sets of this machine; the best is there again afterwards."""
    if native.module is None:
        return [None]
    sets = {native.module.limit_isa(getattr(native.module.Isa, name)) for name in ISAS}
    yield sorted(sets, key=int)
    native.module.limit_isa(native.module.Isa.amx)


def same(draw, granted: list, make, shapes: list[tuple[int, ...]]) -> None:
    inputs = [LAYOUTS[draw(LAYOUT)](randn(i, *shape)) for i, shape in enumerate(shapes)]
    isa, count, before = draw(st.sampled_from(granted)), draw(st.integers(1, 3)), None
    expected = to_second_order(make(reference), inputs)
    try:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        if isa is not None:
            native.module.limit_isa(isa)
        with kernels.use(draw(st.sampled_from(("auto", "plain")))):
            found = to_second_order(make(kernels), inputs)
    finally:
        torch.set_num_threads(before)
        if isa is not None:
            native.module.limit_isa(native.module.Isa.amx)
    for ours, wanted in zip(found, expected, strict=True):
        scale = float(wanted.abs().max()) + 1
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-10 * scale)


@FUZZED
@given(st.data())
def test_conv(granted, data) -> None:
    draw = data.draw
    t, n = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    c, f, h = draw(CHANNELS), draw(CHANNELS), draw(SIDES)
    usual = draw(st.booleans())
    w, r, s = (
        (h, 3, 3) if usual else (draw(SIDES), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    )
    padding = 1 if usual else draw(st.integers(0, 2))
    stride = draw(st.integers(1, 2 if usual else 3))
    h, w = (max(side, max(r, s) - 2 * padding) for side in (h, w))

    def make(ops):
        return lambda x, w: ops.task_conv2d(x, w, stride=stride, padding=padding)

    same(draw, granted, make, [(t, n, c, h, w), (t, f, c, r, s)])


@FUZZED
@given(st.data())
def test_batch_norm(granted, data) -> None:
    draw = data.draw
    t, n, k = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    c, h = draw(CHANNELS), draw(st.integers(2, 11))
    w = h if draw(st.booleans()) else draw(st.integers(2, 11))
    rows = st.integers(0, k - 1)
    step = draw(rows) if draw(st.booleans()) else torch.tensor([draw(rows) for _ in range(t)])
    statistics = None
    if draw(st.booleans()):
        shape = (c,) if draw(st.booleans()) else (t, c)
        statistics = randn(8, *shape), 0.5 + randn(9, *shape) ** 2
    options = {
        "eps": draw(st.sampled_from((1e-5, 1e-2, 1.0))),
        "negative_slope": draw(st.sampled_from((0.0, 0.01, 1.0, 2.0))),
        "pool": draw(st.booleans()),
        "statistics": statistics,
    }

    def make(ops):
        return lambda z, gain, bias: ops.per_step_batch_norm(z, gain, bias, step, **options)[0]

    same(draw, granted, make, [(t, n, c, h, w), (k, c), (k, c)])


@FUZZED
@given(st.data())
def test_head(granted, data) -> None:
    draw = data.draw
    t, n, ways = (draw(st.integers(1, 5)) for _ in range(3))
    d = draw(st.integers(1, 40))
    labels = torch.tensor([[draw(st.integers(0, ways - 1)) for _ in range(n)] for _ in range(t)])

    def make(ops):
        return lambda h, w, c: ops.linear_cross_entropy(h, w, c, labels)[0]

    same(draw, granted, make, [(t, n, d), (t, ways, d), (t, ways)])


@FUZZED
@given(st.data())
def test_update(granted, data) -> None:
    draw = data.draw
    t, sizes = draw(st.integers(1, 4)), tuple(draw(st.lists(st.integers(0, 70), min_size=1)))
    sizes = sizes if sum(sizes) else (*sizes, 1)

    def make(ops):
        return lambda theta, grad, rates: ops.lslr_update(theta, grad, rates, sizes)

    same(draw, granted, make, [(t, sum(sizes)), (t, sum(sizes)), (len(sizes),)])


@FUZZED
@given(st.data())
def test_elementwise_update(granted, data) -> None:
    t, p = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 200))
    same(data.draw, granted, lambda ops: ops.elementwise_update, [(t, p), (t, p), (p,)])
