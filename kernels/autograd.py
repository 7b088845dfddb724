"""What the ops' autograd Functions share.

An op has a Function whose backward is a second Function, over the backend's `bwd`, whose backward
is the backend's tangent. That is as far as the closed forms go: a third derivative raises.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def keep(ctx, inputs: tuple[Tensor, ...], saved: NamedTuple) -> None:
    """Save inputs and what a backend's `fwd` saved where autograd frees it after the last use and
    sees whether somebody wrote to it since.
    """
    tensors = {name: v for name, v in saved._asdict().items() if isinstance(v, Tensor)}
    ctx.save_for_backward(*inputs, *tensors.values())
    ctx.names, ctx.rest = tuple(tensors), saved._replace(**dict.fromkeys(tensors))


def kept(ctx) -> tuple[tuple[Tensor, ...], NamedTuple]:
    """The inputs and `saved` of `keep`."""
    inputs = len(ctx.saved_tensors) - len(ctx.names)
    tensors = (t.detach() for t in ctx.saved_tensors[inputs:])
    return ctx.saved_tensors[:inputs], ctx.rest._replace(
        **dict(zip(ctx.names, tensors, strict=True))
    )


def last_derivative(op: str, results: tuple, sources: tuple) -> tuple:
    """Second derivatives, through which a third one raises if any of `sources` wants it."""
    wanted = [t for t in sources if t is not None and t.requires_grad]
    if not (torch.is_grad_enabled() and wanted):
        return results
    present = [r for r in results if r is not None]
    guarded = iter(_Refuse.apply(op, len(present), *present, *wanted))
    return tuple(None if r is None else next(guarded) for r in results)


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, count, *tensors):
        ctx.op = op
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.op}: the third derivative is not implemented; use kernels.reference.{ctx.op}, "
            "which has every order"
        )


def check_alike(op: str, **tensors: Tensor) -> None:
    """ValueError unless all are dense and have one dtype and device."""
    for name, t in tensors.items():
        if t.layout != torch.strided:
            raise ValueError(f"{op}: {name} must be dense, got {t.layout}; use to_dense()")
    kinds = {name: (t.dtype, t.device) for name, t in tensors.items()}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{name} {dtype} on {device}" for name, (dtype, device) in kinds.items())
        raise ValueError(
            f"{op}: all inputs must have one dtype and device, got {each}; convert them"
        )
