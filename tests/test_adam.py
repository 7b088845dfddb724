"""Adam of every backend that a CPU has: its scales as numbers, and as tensors."""

import pytest
import torch

from kernels import dispatch, plain
from tests.ops import randn


@pytest.mark.parametrize("clamp", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["native", "plain"])
def test_tensors_give_what_numbers_give(name: str, dtype: torch.dtype, clamp: float) -> None:
    backend = dispatch.space(name)
    if refused := backend.refuses(torch.device("cpu"), dtype):
        pytest.skip(refused)
    operands = [randn(i, 3, 70, dtype=dtype) for i in range(4)]
    operands[2] = operands[2].square()
    options = 3e-3, 1.7, 0.9, 0.99, clamp
    scales = torch.tensor(options[:2], dtype=torch.float64)
    ours = backend.update.adam(*operands, *scales, *options[2:])
    numbers = backend.update.adam(*operands, *options)
    exact = plain.update.adam(*(t.double() for t in operands), *options)
    for a, b, e in zip(ours, numbers, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=0)
        torch.testing.assert_close(a, e.to(dtype))


@pytest.mark.parametrize("name", ["native", "plain"])
def test_moments_close_to_1_are_of_the_beta_that_was_given(name: str) -> None:
    """1 − beta of a beta rounded to float32 is off by up to 2⁻²⁵."""
    backend, zero, one = dispatch.space(name), torch.zeros(8), torch.ones(8)
    if refused := backend.refuses(zero.device, zero.dtype):
        pytest.skip(refused)
    for beta1, beta2 in ((0.9, 0.999), (0.999, 0.99999)):
        _, first, second = backend.update.adam(zero, zero, zero, one, 1.0, 1.0, beta1, beta2)
        for found, beta in ((first, beta1), (second, beta2)):
            assert (found.double() / (1 - beta) - 1).abs().max() < 1e-7
