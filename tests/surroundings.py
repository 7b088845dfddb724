"""What surrounds an op in other people's code: as `tests.derivatives`, of what keeps, moves, wraps,
traces and compiles it.
"""

import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint as checkpointed
from torch.utils.data import DataLoader, Dataset

import kernels
from kernels import dispatch
from tests.derivatives import (
    arguments,
    func_grad_of_grad,
    func_jvp_of_grad,
    grad_of,
    leaves,
    several,
    to_second_order,
    weighted,
)
from tests.ops import randn


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
    return torch.empty(t.size(), dtype=t.dtype, device=t.device).copy_(t)


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
    results, request = [], dispatch.choice()

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


def compiled_function(of: Callable, backend: str = "aot_eager"):
    """One graph that has all derivatives in it."""

    def way(op, inputs):
        torch._dynamo.reset()
        whole = torch.compile(lambda *a: of(op, a), backend=backend, fullgraph=True)
        return whole(*inputs)

    return way


def compiled(order: Callable, **options):
    def way(op, inputs):
        torch._dynamo.reset()
        return order(torch.compile(op, **options), inputs)

    return way


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
