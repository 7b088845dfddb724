"""Ways to ask for derivatives of an op: each takes an op and its differentiable inputs, and gives
what there is to compare.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.ops import randn

Op = Callable[..., Tensor]


def weighted(y: Tensor, power: int = 1) -> Tensor:
    """A scalar that every value counts in; no random numbers, which vmap does not take."""
    weights = torch.arange(1.0, y.numel() + 1, dtype=y.dtype, device=y.device).mul(1.7).sin()
    return (y**power * weights.view(y.shape)).sum()


def leaves(inputs) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in inputs]


def to_second_order(op: Op, inputs) -> list[Tensor]:
    inputs = leaves(inputs)
    y = op(*inputs)
    first = torch.autograd.grad(weighted(y, 2), inputs, create_graph=True)
    scalar = sum(weighted(g, 2) for g in first)
    return [y.detach(), *(g.detach() for g in first), *torch.autograd.grad(scalar, inputs)]


def to_first_order(op: Op, inputs) -> list[Tensor]:
    inputs = leaves(inputs)
    y = op(*inputs)
    return [y.detach(), *torch.autograd.grad(weighted(y, 2), inputs)]


def arguments(inputs) -> tuple[int, ...]:
    return tuple(range(len(inputs)))


def func_grad(op, inputs):
    return torch.func.grad(lambda *a: weighted(op(*a), 2), arguments(inputs))(*inputs)


def func_grad_of_grad(op, inputs):
    def first(*a):
        gradients = torch.func.grad(lambda *b: weighted(op(*b), 2), arguments(inputs))(*a)
        return sum(weighted(g, 2) for g in gradients)

    return torch.func.grad(first, arguments(inputs))(*inputs)


def func_vjp(op, inputs):
    y, pull = torch.func.vjp(op, *inputs)
    return y, *pull(randn(21, *y.shape))


def func_vjp_outside(op, inputs):
    """Derivatives of the derivative, where the transform has ended."""
    y, pull = torch.func.vjp(op, *inputs)
    (dy,) = leaves([randn(21, *y.shape)])
    return torch.autograd.grad(sum(weighted(g, 2) for g in pull(dy)), dy)


def func_jvp(op, inputs):
    return torch.func.jvp(op, inputs, tuple(t.cos() for t in inputs))


def func_jvp_of_one(op, inputs):
    results = []
    for i, t in enumerate(inputs):

        def alone(v, i=i):
            return op(*inputs[:i], v, *inputs[i + 1 :])

        results += torch.func.jvp(alone, (t,), (randn(22, *t.shape),))
    return results


def func_jvp_of_grad(op, inputs):
    dots = tuple(t.cos() for t in inputs)

    def first(*a):
        return torch.func.grad(lambda *b: weighted(op(*b), 2), arguments(inputs))(*a)

    return sum(torch.func.jvp(first, inputs, dots), ())


def func_grad_of_jvp(op, inputs):
    dots = tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs))
    scalar = lambda *a: weighted(torch.func.jvp(op, a, dots)[1], 2)  # noqa: E731
    return torch.func.grad(scalar, arguments(inputs))(*inputs)


def func_grad_of_directions(op, inputs):
    dots = tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs))
    scalar = lambda *d: weighted(torch.func.jvp(op, inputs, d)[1], 2)  # noqa: E731
    return torch.func.grad(scalar, arguments(inputs))(*dots)


def func_grad_of_jvp_of_first(op, inputs):
    """The other inputs have no direction."""

    def tangent(first, *others):
        dot = randn(22, *first.shape)
        return weighted(torch.func.jvp(lambda a: op(a, *others), (first,), (dot,))[1], 2)

    return torch.func.grad(tangent, arguments(inputs))(*inputs)


def func_jvp_of_vjp(op, inputs):
    """Along the first input alone, with a cotangent that has no direction."""

    def pulled(first):
        y, pull = torch.func.vjp(lambda *others: op(first, *others), *inputs[1:])
        return pull(randn(21, *y.shape))

    return torch.func.jvp(pulled, (inputs[0],), (randn(22, *inputs[0].shape),))


def func_jacrev(op, inputs):
    return torch.func.jacrev(op, arguments(inputs))(*inputs)


def func_jacfwd(op, inputs):
    return torch.func.jacfwd(op, arguments(inputs))(*inputs)


def func_hessian(op, inputs):
    rows = torch.func.hessian(lambda *a: weighted(op(*a), 2), arguments(inputs))(*inputs)
    return sum(rows, ())


def func_hessian_in_reverse(op, inputs):
    scalar = lambda *a: weighted(op(*a), 2)  # noqa: E731
    jacobian = torch.func.jacrev(torch.func.jacfwd(scalar, arguments(inputs)), arguments(inputs))
    return sum(jacobian(*inputs), ())


def several(inputs, dims) -> list[Tensor]:
    """Three of each, along an axis of its own."""
    made = zip(inputs, dims, strict=True)
    return [
        t if d is None else torch.stack([t * (1 + 0.1 * i) for i in range(3)], d) for t, d in made
    ]


def mapped(transform: Callable, dims: Callable[[int], tuple]):
    def way(op, inputs):
        d = dims(len(inputs))
        return torch.func.vmap(transform(op, inputs), d)(*several(inputs, d))

    return way


def value_of(op, inputs):
    return op


def grad_of(op, inputs):
    return torch.func.grad(lambda *a: weighted(op(*a), 2), arguments(inputs))


def hessian_of_last(op, inputs):
    return torch.func.hessian(lambda *a: weighted(op(*a), 2), len(inputs) - 1)


def jvp_of(op, inputs):
    return lambda *a: torch.func.jvp(op, a, tuple(t.cos() for t in a))


def twice_mapped(op, inputs):
    dims = (0,) * len(inputs)
    batch = [torch.stack([t, 2 * t]) for t in several(inputs, dims)]
    return torch.func.vmap(torch.func.vmap(grad_of(op, inputs)))(*batch)


def first_alone(count: int) -> tuple:
    return 0, *[None] * (count - 1)


def last_alone(count: int) -> tuple:
    return *[None] * (count - 1), 0


def along_the_last(count: int) -> tuple:
    return (-1,) * count


def mapped_then_differentiated(op, inputs):
    """`vmap` inside autograd, to second order."""
    dims = (0,) * len(inputs)
    return to_second_order(torch.func.vmap(op, dims), several(inputs, dims))


def shared_then_differentiated(op, inputs):
    dims = first_alone(len(inputs))
    return to_second_order(torch.func.vmap(op, dims), several(inputs, dims))


def batched_gradients(op, inputs):
    inputs = leaves(inputs)
    y = op(*inputs)
    return torch.autograd.grad(y, inputs, randn(23, 3, *y.shape), is_grads_batched=True)


def batched_second_derivatives(op, inputs):
    inputs = leaves(inputs)
    first = torch.autograd.grad(weighted(op(*inputs), 2), inputs, create_graph=True)
    directions = [randn(24 + i, 3, *g.shape) for i, g in enumerate(first)]
    return torch.autograd.grad(first, inputs, directions, is_grads_batched=True)


def dual_numbers(op, inputs):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, randn(25, *t.shape)) for t in inputs]
        return tuple(forward_ad.unpack_dual(op(*duals)))


def functional_hessian(op, inputs):
    return sum(torch.autograd.functional.hessian(lambda *a: weighted(op(*a), 2), inputs), ())


def functional_vhp(op, inputs):
    dots = tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs))
    return torch.autograd.functional.vhp(lambda *a: weighted(op(*a), 2), inputs, dots)[1]


def functional_hvp(op, inputs):
    dots = tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs))
    return torch.autograd.functional.hvp(lambda *a: weighted(op(*a), 2), inputs, dots)[1]


def functional_jvp(op, inputs):
    dots = tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs))
    return torch.autograd.functional.jvp(op, inputs, dots)


def functional_jacobian(op, inputs):
    return torch.autograd.functional.jacobian(op, inputs, vectorize=True)


def functional_jacobian_forward(op, inputs):
    return torch.autograd.functional.jacobian(op, inputs, vectorize=True, strategy="forward-mode")
