"""Modules and losses that cannot be learned to adapt, each refused in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from engine.errors import UserError, listed
from kernels.nn import PerStepBatchNorm1d, PerStepBatchNorm2d


def require_whole(module: nn.Module, criterion: Callable) -> None:
    """Raises UserError of what would be learned by halves."""
    if lazy := [name for name, p in module.named_parameters() if is_lazy(p)]:
        raise UserError(
            f"the module's {listed(lazy, 5)} have no shape yet: call it once on some inputs before"
        )
    for name, part in module.named_modules():
        compiled = type(part).__name__ == "OptimizedModule"
        if compiled or isinstance(part, torch.jit.ScriptModule):
            raise UserError(
                f"the module is compiled ({name or 'itself'}), which has no second derivatives and "
                "takes no other parameters: give what it was made of"
            )
        if isinstance(part, DistributedDataParallel):
            raise UserError(
                f"the module has DistributedDataParallel ({name or 'itself'}), which does not see "
                "gradients of an inner loop: give what it wraps, and wrap the Learner"
            )
        if isinstance(part, PerStepBatchNorm1d | PerStepBatchNorm2d):
            raise UserError(
                f"the module has PerStepBatchNorm ({name or 'itself'}), whose rows a Learner has "
                "itself: give torch's BatchNorm"
            )
    own = [*criterion.named_parameters()] if isinstance(criterion, nn.Module) else []
    if learned := [name for name, p in own if p.requires_grad]:
        raise UserError(
            f"the loss has parameters of its own ({listed(learned, 5)}), which nothing learns: "
            "freeze them by requires_grad_(False), or make them the module's"
        )


def require_unhooked(learner: nn.Module) -> None:
    """In `engine.fit`, whose gradients no autograd brings to the parameters."""
    hooks = "_backward_hooks", "_post_accumulate_grad_hooks"
    parameters = learner.named_parameters()
    if hooked := [n for n, p in parameters if any(getattr(p, h, None) for h in hooks)]:
        names = (name.removeprefix("module.") for name in hooked)
        raise UserError(
            f"{listed([*names], 5)} have a hook on the gradient, which engine.fit does not call: "
            "do in the module's forward what it does, and remove it"
        )
    if is_parametrized(learner):
        raise UserError(
            f"{listed([*learner.parametrizations], 5)} of the learner itself are parametrized, "
            "which engine.fit would not see: train it in a loop of your own"
        )


def require_reached(strangers: list[Tensor]) -> None:
    """Raises UserError of tensors that would have no gradient and not adapt, without a word."""
    if strangers:
        shapes = sorted({str(list(p.shape)) for p in strangers})
        raise UserError(
            f"the module or its loss reaches tensors to learn, of shape {listed(shapes, 5)}, past "
            "the names that the module has for them, where they neither adapt nor learn: reach "
            "them by these names, make them the module's, or freeze them by requires_grad_(False)"
        )


def require_untouched(inputs_stay: bool) -> None:
    if not inputs_stay:
        raise UserError(
            "the module or its loss changes its inputs in place, which every inner step reads: "
            "write x = x - m, and not x -= m"
        )


def require_unwritten(written: list[str]) -> None:
    if written:
        raise UserError(
            f"a pass writes to parameters that are learned ({listed(sorted(written), 5)}), where "
            "an inner step has values of its own: constrain them by torch.nn.utils.parametrize or "
            "after the optimizer's step; what a first call initialises, call once before the "
            "Learner is made"
        )


def require_some(adapted: dict, module: nn.Module, adapt: Any) -> None:
    if adapted:
        return
    names = [name for name, _ in module.named_parameters()]
    learned = [name for name, p in module.named_parameters() if p.requires_grad]
    kind = type(module).__name__
    if not names:
        why = "it has none"
    elif not learned:
        why = f"each of {listed(names, 5)} is frozen (requires_grad=False)"
    else:
        why = f"adapt={adapt!r} leaves {listed(learned, 5)} to the outer loop"
    raise UserError(f"no parameter of {kind} is adapted by the inner loop: {why}; adapt some")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Raises UserError where torch has no second derivative of an operation."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if "is not implemented" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise UserError(
            f"torch says: {first}; second derivatives need it: give order=1, or another operation"
        ) from None


def require_derivative(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise UserError(
            f"the loss of a task, {loss[0].item():.4g}, does not depend on the parameters for "
            "autograd: give one without argmax, detach, item or no_grad in it or in the network"
        )


def require_apart(parameters: dict[str, Tensor]) -> None:
    """Raises UserError of two that share memory and are not one, so that each would be learned."""
    names: dict[int, str] = {}
    for name, p in parameters.items():
        place = p.data_ptr()  # 0 of what has no memory
        if place and (other := names.setdefault(place, name)) != name:
            raise UserError(
                f"{other} and {name} share memory, and each would be learned: make one of them the "
                "other (b.weight = a.weight), or a copy"
            )


def require_alike(parameters: list[Tensor]) -> None:
    if complex_ := sorted({str(p.dtype) for p in parameters if p.is_complex()}):
        raise UserError(
            f"parameters are {', '.join(complex_)}: give real ones, as torch.view_as_real does"
        )
    kinds = sorted({f"{p.dtype} on {p.device}" for p in parameters})
    if len(kinds) > 1:
        raise UserError(
            f"the parameters are {' and '.join(kinds)}: they lie in one buffer, of one dtype and "
            "device; move the module, or freeze those that differ"
        )
