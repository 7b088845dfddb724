"""Functions of autograd whose tensors have the task as their leading axis: one call for autograd,
forward mode, `torch.func`, `torch.compile` and the dispatcher.

`vmap` folds the mapped axis into the task axis: an op mapped over tasks is its own batched kernel.
"""

import sys
from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from kernels import autocast

PLAIN = (Tensor, torch.nn.Parameter)  # types whose values lie at their address

transformed = torch._C._are_functorch_transforms_active
batching = partial(
    torch._C._dispatch_tls_is_dispatch_key_included, torch._C._parse_dispatch_key("VmapMode")
)
_dispatching = partial(
    torch._C._dispatch_tls_is_dispatch_key_excluded,
    torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode,
)


def is_constant(*tensors: Tensor | None) -> bool:
    """Whether nobody will ask for a derivative of what is made of them."""
    if forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return False
    return True


def undisturbed(function: Callable, args: tuple) -> tuple:
    """The result, of which torch.compile, which goes on to trace what runs between its graphs,
    traces nothing.
    """
    if "torch._dynamo" in sys.modules:
        return _untraced(function, args)
    return function(*args)


@torch._disable_dynamo
def _untraced(function: Callable, args: tuple) -> tuple:
    return function(*args)


class Batched(Function):
    """A Function of a call and tensors, in this order: `lead` that come first, the arguments of
    `Call.fwd`, what is held, and with `dots` a direction of every input. The outputs from `first`
    on belong to the inputs. The same op of `torch.ops` has the name of the call and `suffix`.
    """

    lead, dots, first, suffix = 0, False, None, ""

    @classmethod
    def apply(cls, *args):
        # torch.compile, should it begin to trace only here, has silently wrong second derivatives
        # of a Function whose backward is another; of autograd's own batched gradients
        # (`is_grads_batched`) nothing but the dispatcher sees what is batched; and in the
        # dispatcher torch.func does not see a Function. What has no memory of its own goes there.
        active = transformed()
        if torch.compiler.is_compiling() or batching() or (active and _dispatching()):
            return cls._as_op(*args)
        for t in args[1:]:
            if t is not None and type(t) not in PLAIN:
                return cls._as_op(*args)
        if active:
            return undisturbed(super().apply, args)
        args = unwrap_dead_wrappers(args)
        return undisturbed(cls.forward if is_constant(*args[1:]) else cls.recorded, args)

    @classmethod
    def start(cls, *args):
        """`apply` where none of this is the case, for a caller who wants the outputs alone."""
        if transformed():
            return undisturbed(super().apply, args)
        return undisturbed(cls.forward if is_constant(*args[1:]) else cls.recorded, args)

    @classmethod
    def _as_op(cls, call, *tensors):
        """By `torch.ops`, which keep nothing for each other."""
        end = len(tensors) - (call.inputs if cls.dots else 0)
        tensors = *tensors[: end - len(call.held)], *tensors[end:]
        results = getattr(torch.ops.mamlpp, call.name + cls.suffix)(*tensors, *call.options)
        return results if isinstance(results, tuple) else (results,)

    @classmethod
    def record(cls, *args):
        """`apply` for autograd alone, or the level of torch.func that it works at."""
        return cls.recorded(*unwrap_dead_wrappers(args))

    def __init_subclass__(cls) -> None:
        """`recorded` is `apply` of the same Function without `setup_context`, which torch.func
        wants and which costs as much as a small op.
        """
        if "forward" in cls.__dict__:
            rest = {name: staticmethod(getattr(cls, name)) for name in ("backward", "jvp")}
            single = type(cls.__name__, (Function,), {"forward": staticmethod(cls.kept), **rest})
            cls.recorded = super(Function, single).apply

    @classmethod
    def kept(cls, ctx, call, *tensors):
        """`forward` and `setup_context`."""
        results = cls.forward(call, *tensors)
        cls.setup_context(ctx, (call, *tensors), results)
        return results

    @classmethod
    def vmap(cls, info, in_dims, call, *tensors):
        size, dims = info.batch_size, in_dims[1:]
        shared = [cls.lead + i for i in call.shared]
        vectors = [i for i in shared if tensors[i].dim() - (dims[i] is not None) == 1]
        also = [len(tensors) - call.inputs - cls.lead + i for i in vectors] if cls.dots else []
        outputs = cls.apply(call, *fold(size, dims, tensors, [*vectors, *also]))
        outputs = [unfold(size, t) for t in outputs]
        if cls.first is not None:
            for i in (cls.first + place - cls.lead for place in vectors):
                outputs[i] = None if outputs[i] is None else outputs[i].sum(1)
        return tuple(outputs), tuple(None if t is None else 0 for t in outputs)


def fold(size: int, dims: tuple, tensors: tuple, vectors: list[int] | tuple = ()) -> list:
    """Tensors with the mapped axis in the task axis, which those at `vectors` have not yet."""

    def in_front(tensor: Tensor, dim: int | None) -> Tensor:
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    moved = [None if t is None else in_front(t, d) for t, d in zip(tensors, dims, strict=True)]
    tasks = moved[0].shape[1]
    for i in vectors:
        moved[i] = None if moved[i] is None else moved[i].unsqueeze(1).expand(-1, tasks, -1)
    return [None if t is None else t.flatten(0, 1) for t in moved]


def unfold(size: int, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.unflatten(0, (size, -1))


def as_it_is(forward: Callable[..., tuple]) -> Callable[..., tuple]:
    """A `forward` without autocast, as the public ops have cast what is to be cast, whose results
    are views of its arguments or none at all, as nobody may write to them otherwise.
    """

    @wraps(forward)
    def run(call, *tensors):
        if autocast.anywhere() and autocast.enabled(tensors[0]):
            with torch.autocast(tensors[0].device.type, enabled=False):
                results = forward(call, *tensors)
        else:
            results = forward(call, *tensors)
        for r in results:
            if r is not None and r._base is not None:
                return tuple([_alone(r, tensors) for r in results])
        return results

    return run


def _alone(result: Tensor | None, tensors: tuple) -> Tensor | None:
    """The same values in the same place, but not as a view of something that nobody has."""
    if result is None or result._base is None:
        return result
    if any(t is not None and (result._base is t or result._base is t._base) for t in tensors):
        return result
    place = result.storage_offset(), result.shape, result.stride()
    return result.new_empty(0).set_(result.untyped_storage(), *place)


def hold(ctx, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)  # a compiled graph enters forward mode where Python sees none
    ctx.set_materialize_grads(False)


def padded(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """With None for the remaining arguments."""
    return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))
