"""What the ops' autograd Functions share, and the Functions of those that are differentiable twice.

Such an op is a `Call`: what one call of it does with tensors, by the functions of a backend. Its
derivatives are written once, here, for autograd, forward mode and `torch.func` alike. With
Φ = ⟨dy, y⟩ `Grad` is the gradient of Φ; the Hessian of Φ is symmetric, so that its product with a
direction is the tangent of `Grad` along it, whichever way it is asked for. That is as far as the
closed forms go: a third derivative raises.

`vmap` folds the mapped axis into the task axis: an op mapped over tasks is its own batched kernel.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from kernels import autocast
from kernels.plain.layout import total

transformed = torch._C._are_functorch_transforms_active
batching = partial(
    torch._C._dispatch_tls_is_dispatch_key_included, torch._C._parse_dispatch_key("VmapMode")
)
_dispatching = partial(
    torch._C._dispatch_tls_is_dispatch_key_excluded,
    torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode,
)


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


class Call:
    """One call of an op, differentiable twice in the first `inputs` of its tensors; the others are
    constants. Tensors are [T, ...], but for those at the places `shared`, which may be vectors that
    all tasks share. A subclass calls the backend.
    """

    name: str  # of the public op
    inputs: int
    outputs: int  # of `fwd`
    shared: tuple[int, ...] = ()
    # Of what the backend saved: for each field the place of a tensor among the arguments and the
    # outputs that are `held`, or None and the value in `rest`.
    kind: type[tuple]
    returned: int | None = None  # outputs that the caller sees, None: and what is held
    places: Sequence[int | None] = ()
    held: Sequence[int] = ()
    rest: Sequence = ()
    options: tuple = ()  # of the op of `torch.ops`, after its tensors

    def fwd(self, *tensors: Tensor | None) -> tuple[tuple[Tensor, ...], tuple]:
        """The outputs, of which the first is differentiable, and what the backend saved."""
        raise NotImplementedError

    def bwd(self, saved: tuple, tensors: tuple, dy: Tensor) -> tuple[Tensor, ...]:
        """The gradient of ⟨dy, y⟩ in every input."""
        raise NotImplementedError

    def dot(self, saved: tuple, tensors: tuple, dots: tuple) -> Tensor:
        """The direction of y along those of the inputs, of which not all are None."""
        raise NotImplementedError

    def grad_dot(
        self, saved: tuple, tensors: tuple, dots: tuple, dy: Tensor, dy_dot: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The directions of y and of the gradients along those of the inputs and of dy."""
        raise NotImplementedError

    def keep(self, saved: tuple, tensors: tuple, outputs: tuple) -> tuple[Tensor, ...]:
        """Outputs of the Function: `outputs`, and what else of `saved` are tensors. Autograd is to
        hold them: it frees them after the last use, sees whether somebody wrote to them since, and
        has hooks. What are no tensors stays here.
        """
        if not saved:
            return outputs
        known = (*tensors, *outputs)
        at, count = {id(t): i for i, t in enumerate(known)}, len(tensors)
        held, places, more = [], [], []
        for value in saved:
            if not isinstance(value, Tensor):
                places.append(None)
                continue
            i = at.get(id(value))
            if i is None:
                i = at[id(value)] = len(known) + len(more)
                more.append(value)
            if i >= count:
                held.append(i - count)
                i = count + len(held) - 1
            places.append(i)
        self.held, self.places, self.kind = held, places, type(saved)
        self.rest = [v if i is None else None for v, i in zip(saved, places, strict=True)]
        return (*outputs, *more)

    def split(self, tensors: tuple) -> tuple[tuple, tuple]:
        """What the backend saved, and the arguments of `fwd`, of these followed by what is held."""
        if not self.places:
            return (), tensors
        found = zip(self.rest, self.places, strict=True)
        saved = self.kind._make([rest if i is None else tensors[i] for rest, i in found])
        return saved, tensors[: len(tensors) - len(self.held)]


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
        # dispatcher torch.func does not see a Function.
        active = transformed()
        if torch.compiler.is_compiling() or batching() or (active and _dispatching()):
            return cls._as_op(*args)
        return undisturbed(super().apply if active else cls.record, args)

    @classmethod
    def start(cls, *args):
        """`apply` where none of this is the case, for a caller who wants the outputs alone."""
        if transformed():
            return undisturbed(super().apply, args)
        if forward_ad._current_level < 0 and not torch._C._any_requires_grad(*args):
            return undisturbed(cls.forward, args)  # nobody will ask for a derivative
        args[0].returned = args[0].outputs
        return undisturbed(cls.recorded, args)

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
        wants and which costs as much as a small op: what is held needs not be returned then.
        """
        if "forward" not in cls.__dict__:
            return
        forward, setup_context, shown = cls.forward, cls.setup_context, cls.shown

        def both(ctx, call, *tensors):
            results = forward(call, *tensors)
            setup_context(ctx, (call, *tensors), results)
            results = shown(call, results)
            ctx.others = len(results) - 1
            return results

        rest = {"backward": staticmethod(cls.backward), "jvp": staticmethod(cls.jvp)}
        single = type(cls.__name__, (Function,), {"forward": staticmethod(both), **rest})
        cls.recorded = super(Function, single).apply

    @staticmethod
    def shown(call, results: tuple) -> tuple:
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


class Value(Batched):
    @staticmethod
    @as_it_is
    def forward(call, *tensors):
        outputs, saved = call.fwd(*tensors)
        return call.keep(saved, tensors, outputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        call, *tensors = inputs
        ctx.call, ctx.others = call, len(output) - 1
        if ctx.others:
            tensors += [output[i] for i in call.held]
            ctx.mark_non_differentiable(*output[1:])
        hold(ctx, *tensors)

    @staticmethod
    def shown(call, results):
        return results[: call.returned]

    @staticmethod
    def backward(ctx, dy, *_):
        tensors = ctx.saved_tensors
        return padded(ctx, None, *(() if dy is None else Grad.apply(ctx.call, dy, *tensors)))

    @staticmethod
    def jvp(ctx, _, *dots):
        dots = dots[: ctx.call.inputs]
        y_dot = None if _all_zero(dots) else Dot.apply(ctx.call, *ctx.saved_tensors, *dots)[0]
        return y_dot, *[None] * ctx.others


class Grad(Batched):
    """dy, ... → the gradient in every input."""

    lead, first, suffix = 1, 0, "_grad"

    @staticmethod
    @as_it_is
    def forward(call, dy, *tensors):
        return tuple(call.bwd(*call.split(tensors), dy))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, *tensors = inputs
        hold(ctx, *tensors)

    @staticmethod
    def backward(ctx, *dots):
        if _all_zero(dots):
            return padded(ctx)
        dy, *tensors = ctx.saved_tensors
        return padded(ctx, None, *GradDot.apply(ctx.call, dy, None, *tensors, *dots))

    @staticmethod
    def jvp(ctx, _, dy_dot, *dots):
        call, dots = ctx.call, dots[: ctx.call.inputs]
        if dy_dot is None and _all_zero(dots):
            return (None,) * call.inputs
        dy, *tensors = ctx.saved_tensors
        return GradDot.apply(call, dy, dy_dot, *tensors, *dots)[1:]


class Dot(Batched):
    """... and directions of the inputs → the direction of y, in forward mode."""

    dots, suffix = True, "_dot"

    @staticmethod
    @as_it_is
    def forward(call, *tensors):
        tensors, dots = tensors[: -call.inputs], tensors[-call.inputs :]
        return (call.dot(*call.split(tensors), dots),)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, *tensors = inputs
        hold(ctx, *tensors)

    @staticmethod
    def backward(ctx, dy_dot):
        """⟨w, ẏ⟩ is the derivative of ⟨w, y⟩ along the directions."""
        call, tensors = ctx.call, ctx.saved_tensors
        _, *d_inputs = GradDot.apply(call, dy_dot, None, *tensors)
        d_dots = Grad.apply(call, dy_dot, *tensors[: -call.inputs])
        rest = [None] * (len(tensors) - 2 * call.inputs)
        return None, *d_inputs, *rest, *d_dots

    @staticmethod
    def jvp(ctx, *_):
        raise RuntimeError(
            f"{ctx.call.name}: a forward derivative of a forward derivative is not implemented; "
            f"take one of them in reverse, as torch.func.hessian does, or use "
            f"kernels.reference.{ctx.call.name}"
        )


class GradDot(Batched):
    """dy, its direction, ... and directions of the inputs → those of y and of the gradients."""

    lead, dots, first, suffix = 2, True, 1, "_grad_dot"

    @staticmethod
    @as_it_is
    def forward(call, dy, dy_dot, *tensors):
        tensors, dots = tensors[: -call.inputs], tensors[-call.inputs :]
        return tuple(call.grad_dot(*call.split(tensors), dots, dy, dy_dot))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, *tensors = inputs
        hold(ctx, *tensors)
        ctx.places = [i for i, t in enumerate(tensors) if t is not None]

    @staticmethod
    def backward(ctx, y_dot, *tangents):
        """It is linear in the directions of the inputs, whose gradient is not a third derivative:
        that of ⟨u, y_dot⟩ + ⟨v, tangents⟩ is `Grad` of u and the tangent along v.
        """
        call, (dy, _, *tensors) = ctx.call, ctx.saved_tensors
        linear = 2 + len(tensors) - call.inputs
        edges = zip(ctx.places, ctx.next_functions, strict=True)
        if any(place < linear and _is_wanted(node) for place, (node, _) in edges):
            _third_derivative(call)
        tensors, nothing = tensors[: -call.inputs], [None] * call.inputs
        first = nothing if y_dot is None else Grad.apply(call, y_dot, *tensors)
        second = [None]
        if not _all_zero(tangents):
            second = GradDot.apply(call, dy, None, *tensors, *tangents)
        return *[None] * (1 + linear), *map(total, first, (*second[1:], *nothing)[: call.inputs])

    @staticmethod
    def jvp(ctx, *_):
        _third_derivative(ctx.call)


def _third_derivative(call: Call) -> None:
    raise RuntimeError(
        f"{call.name}: the third derivative is not implemented; use kernels.reference.{call.name}, "
        f"which has every order"
    )


def _is_wanted(node) -> bool:
    """Whether this backward pass will go on to a node of the graph."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient was asked for
        return True


def hold(ctx, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def _all_zero(dots: tuple) -> bool:
    return all(dot is None for dot in dots)


def padded(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """With None for the remaining arguments."""
    return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))
