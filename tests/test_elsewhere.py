"""The public ops in other people's code: every way to differentiate, transform, compile, keep and
move what they compute gives what ordinary torch gives, or an error with a name.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import kernels
from kernels import dispatch, reference
from tests.derivatives import Op
from tests.ops import randn
from tests.slow import ALL
from tests.ways import NAMED, OTHERWISE, POSSIBLE, RECENT, WAYS

T, N, C, F, SIDE, CLASSES = 2, 2, 2, 2, 4, 3


class Case(NamedTuple):
    make: Callable  # of kernels or reference: the op, of its differentiable inputs
    inputs: Callable[[torch.dtype], tuple[Tensor, ...]]


def conv(ops) -> Op:
    return lambda x, w: ops.task_conv2d(x, w, stride=2)


def any_conv(ops) -> Op:
    return lambda x, w: ops.task_conv2d(x, w[..., :2], padding=0)


def norm(ops) -> Op:
    return lambda z, gain, bias: ops.per_step_batch_norm(
        z, gain, bias, 1, negative_slope=0.1, pool=True
    )[0]


def norm_by_task(ops) -> Op:
    steps = torch.tensor([2, 0])
    statistics = randn(8, C) * 0.1, 1 + randn(9, C) ** 2

    def op(z, gain, bias):
        given = tuple(s.to(z) for s in statistics)
        return ops.per_step_batch_norm(z, gain, bias, steps, statistics=given)[0]

    return op


def head(ops) -> Op:
    labels = torch.tensor([[0, 2], [1, 1]])
    return lambda h, w, c: ops.linear_cross_entropy(h, w, c, labels)[0]


def update(ops) -> Op:
    return lambda theta, grad, rates: ops.lslr_update(theta, grad, rates, (4, 1, 2))


def conv_inputs(dtype=torch.float64):
    shapes = (T, N, C, SIDE, SIDE), (T, F, C, 3, 3)
    return tuple(randn(i, *shape, dtype=dtype) for i, shape in enumerate(shapes))


def norm_inputs(dtype=torch.float64):
    z, bias = (randn(i, *s, dtype=dtype) for i, s in ((2, (T, N, C, SIDE, SIDE)), (3, (3, C))))
    return z, 1 + 0.3 * randn(4, 3, C, dtype=dtype), bias


def head_inputs(dtype=torch.float64):
    shapes = (T, N, 5), (T, CLASSES, 5), (T, CLASSES)
    return tuple(randn(5 + i, *shape, dtype=dtype) for i, shape in enumerate(shapes))


def update_inputs(dtype=torch.float64):
    return tuple(randn(8 + i, *s, dtype=dtype) for i, s in enumerate(((T, 7), (T, 7), (3,))))


def elementwise(ops) -> Op:
    return ops.elementwise_update


def elementwise_inputs(dtype=torch.float64):
    return tuple(randn(8 + i, *s, dtype=dtype) for i, s in enumerate(((T, 7), (T, 7), (7,))))


pytestmark = pytest.mark.usefixtures("one_thread")
CASES = {
    "conv": Case(conv, conv_inputs),
    "any_conv": Case(any_conv, conv_inputs),
    "norm": Case(norm, norm_inputs),
    "norm_by_task": Case(norm_by_task, norm_inputs),
    "head": Case(head, head_inputs),
    "update": Case(update, update_inputs),
    "elementwise": Case(elementwise, elementwise_inputs),
}
OPS = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
BACKENDS = [n for n in ("native", "plain") if dispatch.space(n).OPS]


USES = pytest.mark.parametrize("way", WAYS)
LONG = "compile", "make_fx", "func.hessian in reverse"


def every_day(way: str, case: Case, backend: str) -> bool:
    """Whether it is soon done, or like no other: torch traces all ops, of any backend, alike."""
    alike = case is CASES["any_conv"] or backend == "plain" and case is not CASES["norm"]
    return not (alike and way.startswith(LONG))


def flat(results) -> list[Tensor]:
    return [t.detach() for t in torch.utils._pytree.tree_leaves(results) if t is not None]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if refused := dispatch.space(request.param).refuses(torch.device("cpu"), torch.float64):
        pytest.skip(refused)
    return request.param


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@OPS
@USES
def test_every_way_is_right_or_an_error_with_a_name(way: str, case: Case, backend) -> None:
    if way in RECENT and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("older versions of torch, 2.6 for one, cannot trace a jvp of anything")
    if not (ALL or every_day(way, case, backend)):
        pytest.skip("takes long, and is like others; set MAMLPP_SLOW=1")
    run, inputs = WAYS[way], case.inputs()
    wanted = None
    if way not in NAMED:
        wanted = flat(OTHERWISE.get(way, run)(case.make(reference), inputs))
    with kernels.use("plain" if backend == "plain" else "auto"):
        if wanted is None:
            with pytest.raises(RuntimeError, match=NAMED[way]):
                run(case.make(kernels), inputs)
            return
        try:
            found = flat(run(case.make(kernels), inputs))
        except RuntimeError as error:
            assert POSSIBLE.get(way, "no error at all") in str(error)
            return
    assert len(found) == len(wanted) > 0
    for ours, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
