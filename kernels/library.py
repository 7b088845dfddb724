"""The ops as `torch.library` knows them, `torch.ops.mamlpp`: what torch.compile, torch.export,
torch.jit.trace and dispatch modes see of a call, which otherwise goes to its backend directly.

An op that is differentiable twice is four of them, one for each Function of `kernels.autograd`, so
that whatever is traced of its derivatives is one of them again. They keep nothing for each other: a
derivative computes the forward pass anew.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from kernels.autograd import Call, Dot, Grad, GradDot, Value
from kernels.batched import PLAIN, Batched, batching, transformed
from kernels.plain.layout import channels_last, nhwc, whole

_LIBRARY = torch.library.Library("mamlpp", "DEF")
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def traced(*tensors: Tensor | None) -> bool:
    """Whether something other than autograd and torch.func is to see the call as an op."""
    if (
        torch.compiler.is_dynamo_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or batching()
    ):
        return True
    for t in tensors:
        # A tensor that a transform has left behind is unwrapped by the dispatcher alone.
        if t is None:
            continue
        if type(t) not in PLAIN or t.is_meta or (_wrapped(t) and not transformed()):
            return True
    return False


def readable(tensor: Tensor) -> bool:
    """Whether a look at its values costs nothing and shows something."""
    return tensor.device.type == "cpu" and not transformed() and not traced(tensor)


def op(name: str) -> Callable:
    return getattr(torch.ops.mamlpp, name)


def below_autograd(name: str, *arguments) -> tuple[Tensor, ...]:
    """The results of an op, which autograd does not see at this level of torch.func; those below,
    for which the modes that a Function's `forward` has turned off are the same, do.
    """
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad(), _set_fwd_grad_enabled(True):
        results = op(name)(*arguments)
    return results if isinstance(results, tuple) else (results,)


def unwritten(like: Tensor, shape: tuple | None = None) -> Tensor:
    """In the layout that the ops' results have: images NHWC, others contiguous."""
    shape = tuple(like.shape if shape is None else shape)
    return like.new_empty_strided(shape, nhwc(shape)) if len(shape) == 5 else like.new_empty(shape)


def define(
    name: str,
    arguments: str,  # tensors, then options, as in a schema
    returns: int,
    run: Callable[..., tuple[Tensor, ...]],
    fake: Callable[..., tuple[Tensor, ...]],
    function: type[Batched],
    call: Callable[..., Call],
) -> None:
    """An op: what it computes, what its results look like, and for autograd the Function of a call
    that `call` makes of the options.
    """
    count = arguments.count("Tensor")

    def results(all_of_them: tuple) -> Tensor | tuple[Tensor, ...]:
        return all_of_them[0] if returns == 1 else tuple(all_of_them[:returns])

    def computed(*arguments):
        with torch.autocast(arguments[0].device.type, enabled=False):
            found = run(*arguments)[:returns]
        found = [channels_last(r) if r.dim() == 5 else whole(r) for r in found]
        given = [a for a in arguments if isinstance(a, Tensor)]
        return results([r.clone() if any(map(r.is_set_to, given)) else r for r in found])

    def looked_at(*arguments):
        return results(fake(*arguments))

    def differentiated(*arguments):
        with enable_single_level_autograd_function():
            return results(function.record(call(*arguments[count:]), *arguments[:count]))

    def mapped(info, in_dims, *arguments):
        options, tensors = arguments[count:], arguments[:count]
        found = function.vmap(info, (None, *in_dims[:count]), call(*options), *tensors)
        return tuple(map(results, found))

    # torch.compile goes on to trace what runs between its graphs, and so would these.
    computed, differentiated, mapped = map(
        torch._disable_dynamo, (computed, differentiated, mapped)
    )
    kind = f"({', '.join(['Tensor'] * returns)})" if returns > 1 else "Tensor"
    _LIBRARY.define(f"{name}({arguments}) -> {kind}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, computed, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, differentiated, "Autograd")
    torch.library.register_fake(f"mamlpp::{name}", looked_at, lib=_LIBRARY)
    torch.library.register_vmap(f"mamlpp::{name}", mapped, lib=_LIBRARY)


class Traced(Call):
    """A call whose every part is an op."""

    def __init__(self, kind: type[Call], options: tuple) -> None:
        self.name, self.inputs, self.shared = kind.name, kind.inputs, kind.shared
        self.identity, self.unread = kind.identity, kind.unread
        self.options = options

    def fwd(self, *tensors):
        return below_autograd(self.name, *tensors, *self.options), ()

    def bwd(self, saved, tensors, dy):
        return below_autograd(f"{self.name}_grad", dy, *tensors, *self.options)

    def dot(self, saved, tensors, dots):
        return below_autograd(f"{self.name}_dot", *tensors, *dots, *self.options)[0]

    def grad_dot(self, saved, tensors, dots, dy, dy_dot):
        operands = dy, dy_dot, *tensors, *dots
        return below_autograd(f"{self.name}_grad_dot", *operands, *self.options)


def define_twice_differentiable(
    kind: type[Call],
    tensors: str,
    options: str,
    make: Callable[..., Call],  # of the tensors and options, where they are computed
    fake: Callable[..., tuple[Tensor, ...]],  # of the tensors and options
) -> None:
    """The four ops of `kind`."""
    names = [each.split()[-1] for each in tensors.split(", ")]
    count, inputs = len(names), kind.inputs
    dots = ", ".join(f"Tensor? {name}_dot" for name in names[:inputs])
    options = f", {options}" if options else ""

    def ran(*arguments):
        """The call, its results, and what it saved as autograd would have held it."""
        call, operands = make(*arguments), arguments[:count]
        outputs, saved = call.fwd(*operands)
        return call, outputs, saved

    def value(*arguments):
        return ran(*arguments)[1]

    def grad(dy, *arguments):
        made, _, saved = ran(*arguments)
        found = made.bwd(saved, arguments[:count], dy)
        return (dy.clone(), *found[1:]) if kind.identity else found

    def dot(*arguments):
        operands, directions = arguments[:count], arguments[count : count + inputs]
        made, outputs, saved = ran(*operands, *arguments[count + inputs :])
        return (_or_zero(made.dot(saved, operands, directions), outputs[0]),)

    def grad_dot(dy, dy_dot, *arguments):
        operands, directions = arguments[:count], arguments[count : count + inputs]
        made, _, saved = ran(*operands, *arguments[count + inputs :])
        found = made.grad_dot(saved, operands, directions, dy, dy_dot)
        if kind.identity:
            found = found[0], dy_dot, *found[2:]
        return tuple(map(_or_zero, found, (dy, *operands[:inputs])))

    def like_inputs(*operands):
        return tuple(map(unwritten, operands[:inputs]))

    def made(*values):
        return Traced(kind, values)

    name, outputs = kind.name, kind.outputs
    define(name, f"{tensors}{options}", outputs, value, fake, Value, made)
    define(
        f"{name}_grad",
        f"Tensor dy, {tensors}{options}",
        inputs,
        grad,
        lambda dy, *operands: like_inputs(*operands),
        Grad,
        made,
    )
    define(
        f"{name}_dot",
        f"{tensors}, {dots}{options}",
        1,
        dot,
        lambda *a: fake(*a[:count], *a[count + inputs :]),
        Dot,
        made,
    )
    define(
        f"{name}_grad_dot",
        f"Tensor dy, Tensor? dy_dot, {tensors}, {dots}{options}",
        1 + inputs,
        grad_dot,
        lambda dy, dy_dot, *operands: (unwritten(dy), *like_inputs(*operands)),
        GradDot,
        made,
    )


def _or_zero(result: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if result is None else result
