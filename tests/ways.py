"""Ways in which other people's code uses an op: each takes an op and its differentiable inputs, and
gives what there is to compare.
"""

import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint as checkpointed
from torch.utils.data import DataLoader, Dataset

import kernels
from kernels import dispatch
from tests.ops import randn

Op = Callable[..., Tensor]


def weighted(y: Tensor, power: int = 1) -> Tensor:
    """A scalar that every value counts in; no random numbers, which vmap does not take."""
    weights = torch.arange(1.0, y.numel() + 1, dtype=y.dtype).mul(1.7).sin()
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
    return torch.func.jvp(op, inputs, tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs)))


def func_jvp_of_one(op, inputs):
    results = []
    for i, t in enumerate(inputs):

        def alone(v, i=i):
            return op(*inputs[:i], v, *inputs[i + 1 :])

        results += torch.func.jvp(alone, (t,), (randn(22, *t.shape),))
    return results


def func_jvp_of_grad(op, inputs):
    dots = tuple(randn(22 + i, *t.shape) for i, t in enumerate(inputs))

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


def checkpoint(reentrant: bool):
    def way(op, inputs):
        inputs = leaves(inputs)
        y = checkpointed(op, *inputs, use_reentrant=reentrant)
        weighted(y, 2).backward()
        return y, *(t.grad for t in inputs)

    return way


def accumulated(op, inputs):
    """Gradients that are added up, halved in place, and of which nobody else sees it."""
    inputs, others = leaves(inputs), leaves(inputs)
    for _ in range(2):
        y = op(*inputs) + op(*others)
        dy = randn(26, *y.shape)
        y.backward(dy)
    for t in inputs:
        t.grad.mul_(0.5)
    return dy, *(t.grad for t in inputs), *(t.grad for t in others)


class Wrapped(Tensor):
    """One that has no memory of its own, and a tensor that has."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        unwrap = lambda t: t.inner if isinstance(t, cls) else t  # noqa: E731
        args, kwargs = tree_map(unwrap, (args, kwargs or {}))
        wrap = lambda t: cls(t) if isinstance(t, Tensor) else t  # noqa: E731
        return tree_map(wrap, function(*args, **kwargs))


def wrapped_cotangent(op, inputs):
    inputs = leaves(inputs)
    y = op(*inputs)
    found = torch.autograd.grad(y, inputs, Wrapped(randn(26, *y.shape)))
    return [t.inner if isinstance(t, Wrapped) else t for t in found]


def written_to(op, inputs):
    """The result changed in place, as `F.relu_` does."""
    return to_second_order(lambda *a: op(*a).mul_(1.5).sin_(), inputs)


def checkpoint_to_second_order(op, inputs):
    return to_second_order(lambda *a: checkpointed(op, *a, use_reentrant=False), inputs)


def kept_by(pack: Callable, unpack: Callable):
    def way(op, inputs):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return to_second_order(op, inputs)

    return way


def dense(t: Tensor) -> Tensor:
    """As `torch.autograd.graph.save_on_cpu(pin_memory=True)` packs."""
    return torch.empty(t.size(), dtype=t.dtype).copy_(t)


def backwards(t: Tensor) -> Tensor:
    """With the last axis the slowest."""
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def kept_on_cpu(op, inputs):
    with torch.autograd.graph.save_on_cpu():
        return to_second_order(op, inputs)


def negated(op, inputs):
    """Inputs whose sign is a bit that has not been resolved."""
    lazy = [torch.complex(torch.zeros_like(t), -t).conj().imag for t in inputs]
    assert all(t.is_neg() for t in lazy)
    lazy = [t.requires_grad_() for t in lazy]
    y = op(*lazy)
    first = torch.autograd.grad(weighted(y, 2), lazy, create_graph=True)
    return [y.detach(), *first, *torch.autograd.grad(sum(weighted(g, 2) for g in first), lazy)]


def negated_gradient(op, inputs):
    """A gradient that arrives as one."""
    inputs = leaves(inputs)
    y = op(*inputs)
    dy = torch.complex(torch.zeros_like(y), -randn(26, *y.shape)).detach().conj().imag
    return torch.autograd.grad(y, inputs, dy)


def zeros_nowhere(op, inputs):
    """Directions and gradients of zeros that have no memory."""
    inputs = leaves(inputs)
    y = op(*inputs)
    zero = torch._efficientzerotensor(y.shape, dtype=y.dtype)
    return torch.autograd.grad(y, inputs, zero)


def input_of_zeros(op, inputs):
    return op(torch._efficientzerotensor(inputs[0].shape, dtype=inputs[0].dtype), *inputs[1:])


def expanded(op, inputs):
    """Tasks that share their memory."""
    return to_second_order(op, [t[:1].expand_as(t) for t in inputs])


def in_another_layout(op, inputs):
    return to_second_order(op, [backwards(t) for t in inputs])


def in_a_larger_tensor(op, inputs):
    """Strided, and not from the start of its memory."""
    return to_second_order(op, [torch.stack([t, t, t], -1)[..., 1] for t in inputs])


def in_a_thread(op, inputs):
    """Which has not the caller's context variables, and so is told of its choice of backend."""
    results, request = [], dispatch._request()

    def run():
        with kernels.use(request):
            results.append(to_second_order(op, inputs))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


class Results(Dataset):
    """What an op gives in the process that asks, on one thread of torch's own."""

    def __init__(self, op, inputs):
        self.op, self.inputs = op, inputs

    def __len__(self):
        return 1

    def __getitem__(self, _):
        torch.set_num_threads(1)
        return to_second_order(self.op, self.inputs)


def in_a_worker(op, inputs):
    """Of a data loader, by fork, after the parent has used the op."""
    to_second_order(op, inputs)
    loader = DataLoader(
        Results(op, inputs),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=60,
    )
    (results,) = loader
    return results


def in_a_child(op, inputs):
    """Of a fork, which ends by itself should it hang."""
    to_second_order(op, inputs)
    file = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            torch.save(Results(op, inputs)[0], file)
            file.flush()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    file.seek(0)
    with file:
        return torch.load(file)


def inference(op, inputs):
    with torch.inference_mode():
        return op(*inputs)


class Named(Tensor):
    """A subclass that changes nothing."""


def subclassed(op, inputs):
    found = to_second_order(op, [t.as_subclass(Named) for t in inputs])
    return [t.as_subclass(Tensor) for t in found]


class Parameters(torch.nn.Module):
    def __init__(self, op, inputs):
        super().__init__()
        self.op, self.last = op, torch.nn.Parameter(inputs[-1])

    def forward(self, *inputs):
        return self.op(*inputs, self.last)


def in_a_module(op, inputs):
    module = Parameters(op, inputs)
    y = module(*inputs[:-1])
    weighted(y, 2).backward()
    return y, module.last.grad


def exported(op, inputs):
    program = torch.export.export(Parameters(op, inputs), tuple(inputs[:-1]))
    return program.module()(*(2 * t for t in inputs[:-1]))


def jit_traced(op, inputs):
    """Traced on some inputs, run to second order on others."""
    other = tuple(t.flip(0) for t in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(op, other, check_trace=False)
        return to_second_order(traced, inputs)


def fx_traced(op, inputs):

    def first(*a):
        return torch.func.grad(lambda *b: weighted(op(*b), 2), arguments(inputs))(*a)

    return make_fx(first)(*(t.flip(0) for t in inputs))(*inputs)


def fx_traced_value(op, inputs):

    return to_second_order(make_fx(op)(*(t.flip(0) for t in inputs)), inputs)


def fx_traced_second_order(op, inputs):

    traced = make_fx(lambda *a: func_grad_of_grad(op, a))
    return traced(*(t.flip(0) for t in inputs))(*inputs)


def fx_traced_jvp_of_grad(op, inputs):

    traced = make_fx(lambda *a: func_jvp_of_grad(op, a))
    return traced(*(t.flip(0) for t in inputs))(*inputs)


def compiled_jvp_of_grad(op, inputs):
    torch._dynamo.reset()
    return torch.compile(lambda *a: func_jvp_of_grad(op, a), backend="aot_eager")(*inputs)


def compiled(order: Callable, **options):
    def way(op, inputs):
        torch._dynamo.reset()
        return order(torch.compile(op, **options), inputs)

    return way


def compiled_gradient(backend: str):
    def way(op, inputs):
        torch._dynamo.reset()
        first = torch.func.grad(lambda *a: weighted(op(*a), 2), arguments(inputs))
        return torch.compile(first, backend=backend)(*inputs)

    return way


def compiled_second_order(op, inputs):
    """Of one graph that has both derivatives in it."""
    torch._dynamo.reset()
    return torch.compile(lambda *a: func_grad_of_grad(op, a), backend="aot_eager")(*inputs)


def compiled_mapped_gradient(op, inputs):
    torch._dynamo.reset()
    dims = (0,) * len(inputs)
    mapped = torch.compile(torch.func.vmap(grad_of(op, inputs), dims), backend="aot_eager")
    return mapped(*several(inputs, dims))


def compiled_regions(op, inputs):
    """A compiled region before and after the op, which runs between them."""
    torch._dynamo.reset()

    def f(*a):
        a = [t * 1.5 for t in a]
        torch._dynamo.graph_break()
        return op(*a).tanh()

    return to_second_order(torch.compile(f, backend="eager"), inputs)


WAYS = {
    "autograd": to_first_order,
    "create_graph": to_second_order,
    "func.grad": func_grad,
    "func.grad of grad": func_grad_of_grad,
    "func.vjp": func_vjp,
    "func.vjp outside": func_vjp_outside,
    "func.jvp": func_jvp,
    "func.jvp of one": func_jvp_of_one,
    "func.jvp of grad": func_jvp_of_grad,
    "func.grad of jvp": func_grad_of_jvp,
    "func.grad of directions": func_grad_of_directions,
    "func.grad of jvp of first": func_grad_of_jvp_of_first,
    "func.jvp of vjp": func_jvp_of_vjp,
    "func.jacrev": func_jacrev,
    "func.jacfwd": func_jacfwd,
    "func.hessian": func_hessian,
    "func.hessian in reverse": func_hessian_in_reverse,
    "vmap": mapped(value_of, lambda n: (0,) * n),
    "vmap of first": mapped(value_of, first_alone),
    "vmap of last": mapped(value_of, last_alone),
    "vmap along the last axis": mapped(value_of, along_the_last),
    "vmap of grad": mapped(grad_of, lambda n: (0,) * n),
    "vmap of grad, first": mapped(grad_of, first_alone),
    "vmap of grad, last": mapped(grad_of, last_alone),
    "vmap of jvp": mapped(jvp_of, lambda n: (0,) * n),
    "vmap of jvp, first": mapped(jvp_of, first_alone),
    "vmap of hessian": mapped(hessian_of_last, lambda n: (0,) * n),
    "vmap of vmap of grad": twice_mapped,
    "autograd of vmap": mapped_then_differentiated,
    "autograd of vmap, shared": shared_then_differentiated,
    "batched gradients": batched_gradients,
    "batched second derivatives": batched_second_derivatives,
    "dual numbers": dual_numbers,
    "functional.hessian": functional_hessian,
    "functional.vhp": functional_vhp,
    "functional.hvp": functional_hvp,
    "functional.jvp": functional_jvp,
    "functional.jacobian": functional_jacobian,
    "functional.jacobian forward": functional_jacobian_forward,
    "checkpoint": checkpoint(False),
    "checkpoint, reentrant": checkpoint(True),
    "checkpoint to second order": checkpoint_to_second_order,
    "hooks that make dense": kept_by(dense, lambda t: t),
    "hooks that lay out anew": kept_by(backwards, lambda t: t),
    "save_on_cpu": kept_on_cpu,
    "negative bit": negated,
    "gradient with a negative bit": negated_gradient,
    "gradient of zeros nowhere": zeros_nowhere,
    "input of zeros nowhere": input_of_zeros,
    "expanded": expanded,
    "another layout": in_another_layout,
    "in a larger tensor": in_a_larger_tensor,
    "accumulated gradients": accumulated,
    "wrapped cotangent": wrapped_cotangent,
    "result written to": written_to,
    "thread": in_a_thread,
    "data loader's worker": in_a_worker,
    "fork": in_a_child,
    "inference mode": inference,
    "subclass": subclassed,
    "module": in_a_module,
    "export": exported,
    "jit.trace": jit_traced,
    "make_fx": fx_traced_value,
    "make_fx of grad": fx_traced,
    "make_fx of grad of grad": fx_traced_second_order,
    "make_fx of jvp of grad": fx_traced_jvp_of_grad,
    "compile jvp of grad": compiled_jvp_of_grad,
    "compile eager": compiled(to_first_order, backend="eager"),
    "compile eager, second order": compiled(to_second_order, backend="eager"),
    "compile fullgraph": compiled(to_first_order, backend="aot_eager", fullgraph=True),
    "compile dynamic": compiled(to_first_order, backend="aot_eager", dynamic=True),
    "compile inductor": compiled(to_first_order, backend="inductor", fullgraph=True),
    "compile aot_eager, second order": compiled(to_second_order, backend="aot_eager"),
    "compile grad, eager": compiled_gradient("eager"),
    "compile grad, aot_eager": compiled_gradient("aot_eager"),
    "compile grad of grad": compiled_second_order,
    "compile vmap of grad": compiled_mapped_gradient,
    "compile around": compiled_regions,
}
# Another way to the same for ordinary torch, which does not do all of them, or takes long.
OTHERWISE = {
    "functional.jacobian forward": func_jacfwd,
    "hooks that lay out anew": to_second_order,
    "compile eager": to_first_order,
    "compile jvp of grad": func_jvp_of_grad,
    "compile eager, second order": to_second_order,
    "compile fullgraph": to_first_order,
    "compile dynamic": to_first_order,
    "compile inductor": to_first_order,
    "compile grad, eager": func_grad,
    "compile grad, aot_eager": func_grad,
    "compile grad of grad": func_grad_of_grad,
    "compile vmap of grad": mapped(grad_of, lambda n: (0,) * n),
}
# Those that torch itself learnt late.
RECENT = ("make_fx of jvp of grad", "compile jvp of grad")
# An error that a backend may raise where it keeps what was written to, as torch's own ops do.
POSSIBLE = {"result written to": "modified by an inplace operation"}
# Errors that say what is wrong, instead of a wrong number.
NAMED = {
    "compile aot_eager, second order": "not currently support double backward|in-place operation",
}
