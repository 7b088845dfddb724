"""The derivatives of the ops that are differentiable twice, written once for all of them.

Such an op is a `Call`: what one call of it does with tensors, by the functions of a backend. With
Φ = ⟨dy, y⟩ `Grad` is the gradient of Φ; the Hessian of Φ is symmetric, so that its product with a
direction is the tangent of `Grad` along it, whichever way it is asked for. That is as far as the
closed forms go: a third derivative raises.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from kernels import autocast
from kernels.batched import (
    Batched,
    as_it_is,
    hold,
    is_constant,
    padded,
    transformed,
    undisturbed,
)
from kernels.plain.layout import total


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
    places: Sequence[int | None] = ()
    held: Sequence[int] = ()
    rest: Sequence = ()
    identity = False  # the gradient in the first input is dy itself, and `bwd` gives None for it
    # Places of tensors that no derivative reads, each with that of one like it, kept instead.
    unread: dict[int, int] = {}
    options: tuple = ()  # of the op of `torch.ops`, after its tensors

    @property
    def public(self) -> str:
        """What it is called by, where an op of another name computes it."""
        return self.name

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

    def read(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Arguments of `fwd` as the derivatives take them."""
        if not self.unread:
            return tensors
        return [tensors[self.unread.get(i, i)] for i in range(len(tensors))]

    def split(self, tensors: tuple) -> tuple[tuple, tuple]:
        """What the backend saved, and the arguments of `fwd`, of these followed by what is held."""
        if not self.places:
            return (), tensors
        found = zip(self.rest, self.places, strict=True)
        saved = self.kind._make([rest if i is None else tensors[i] for rest, i in found])
        return saved, tensors[: len(tensors) - len(self.held)]


class Value(Batched):
    @staticmethod
    @as_it_is
    def forward(call, *tensors):
        outputs, saved = call.fwd(*tensors)
        return call.keep(saved, tensors, outputs)

    @classmethod
    def start(cls, call, *tensors):
        if transformed() or autocast.anywhere():
            return cls.apply(call, *tensors)
        if is_constant(*tensors):
            return undisturbed(call.fwd, tensors)[0]
        return undisturbed(_outputs, (call, *tensors))

    @staticmethod
    def setup_context(ctx, inputs, output):
        call, *tensors = inputs
        ctx.call, ctx.others, tensors = call, len(output) - 1, call.read(tensors)
        if ctx.others:
            tensors += [output[i] for i in call.held]
            ctx.mark_non_differentiable(*output[1:])
        hold(ctx, *tensors)

    @staticmethod
    def backward(ctx, dy, *_):
        tensors = ctx.saved_tensors
        return padded(ctx, None, *(() if dy is None else _gradients(ctx.call, dy, *tensors)))

    @staticmethod
    def jvp(ctx, _, *dots):
        dots = dots[: ctx.call.inputs]
        y_dot = None if _all_zero(dots) else Dot.apply(ctx.call, *ctx.saved_tensors, *dots)[0]
        return y_dot, *[None] * ctx.others


class _Outputs(Function):
    """`Value` for autograd alone, which returns the outputs alone: what the backend saved needs to
    be neither returned nor looked for among the arguments and outputs.
    """

    @staticmethod
    def forward(ctx, call, *tensors):
        outputs, saved = call.fwd(*tensors)
        tensors = call.read(tensors)
        if saved:
            held = [value for value in saved if isinstance(value, Tensor)]
            places = iter(range(len(tensors), len(tensors) + len(held)))
            call.places = [next(places) if isinstance(v, Tensor) else None for v in saved]
            call.rest = [None if isinstance(v, Tensor) else v for v in saved]
            call.kind, call.held = type(saved), range(len(held))
            tensors = *tensors, *held
        if len(outputs) > 1:
            ctx.mark_non_differentiable(*outputs[1:])
        ctx.call, ctx.others = call, len(outputs) - 1
        hold(ctx, *tensors)
        return outputs

    backward, jvp = staticmethod(Value.backward), staticmethod(Value.jvp)


_outputs = super(Function, _Outputs).apply


def _gradients(call: Call, dy: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    found = Grad.apply(call, dy, *tensors)
    return (dy, *found[1:]) if call.identity else found


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
        dy, *tensors = ctx.saved_tensors
        found = list(GradDot.apply(call, dy, dy_dot, *tensors, *dots)[1:])
        for i, t in enumerate(tensors[: call.inputs]):
            if found[i] is None and (i or not call.identity):  # torch wants a tangent of a tensor
                found[i] = torch.zeros_like(t)
        return tuple(found)


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
        if dy_dot is None:
            return padded(ctx)
        call, tensors = ctx.call, ctx.saved_tensors
        _, *d_inputs = GradDot.apply(call, dy_dot, None, *tensors)
        dots = tensors[-call.inputs :]
        d_dots = _gradients(call, dy_dot, *tensors[: -call.inputs])
        d_dots = [None if dot is None else d for dot, d in zip(dots, d_dots, strict=True)]
        rest = [None] * (len(tensors) - 2 * call.inputs)
        return None, *d_inputs, *rest, *d_dots

    @staticmethod
    def jvp(ctx, *_):
        raise RuntimeError(
            f"{ctx.call.public}: a forward derivative of a forward derivative is not implemented; "
            f"take one of them in reverse, as torch.func.hessian does, or use "
            f"kernels.reference.{ctx.call.public}"
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
        tensors, dots = tensors[: -call.inputs], tensors[-call.inputs :]
        nothing = [None] * call.inputs
        first = nothing if y_dot is None else _gradients(call, y_dot, *tensors)
        second = [None]
        if not _all_zero(tangents):
            second = GradDot.apply(call, dy, None, *tensors, *tangents)
        found = map(total, first, (*second[1:], *nothing)[: call.inputs])
        d_dots = [None if d is None else f for d, f in zip(dots, found, strict=True)]
        return *[None] * (1 + linear), *d_dots

    @staticmethod
    def jvp(ctx, *_):
        _third_derivative(
            ctx.call, ", and every result inside of a dual level asks for one: leave it first"
        )


def _third_derivative(call: Call, hint: str = "") -> None:
    raise RuntimeError(
        f"{call.public}: the third derivative is not implemented{hint}; use "
        f"kernels.reference.{call.public}, which has every order"
    )


def _is_wanted(node) -> bool:
    """Whether this backward pass will go on to a node of the graph."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient was asked for
        return True


def _all_zero(dots: tuple) -> bool:
    return all(dot is None for dot in dots)
