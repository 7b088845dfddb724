"""The LSLR inner update over a flat parameter buffer, batched over tasks, differentiable twice."""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.autograd import check_alike, last_derivative


def lslr_update(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L], the row of this step
    sizes: tuple[int, ...],  # parameters a segment, L of them, P in all
) -> Tensor:  # [T, P]
    """θ' = θ − α_l·g on each segment l: per-layer, per-step learned rates (LSLR, paper §4).

    The same as `theta - rates.repeat_interleave(torch.tensor(sizes)) * grad`. Differentiable twice
    in theta, grad and rates; a third derivative raises.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    sizes = tuple(sizes)
    if min(sizes, default=0) < 0:
        raise ValueError(f"lslr_update: sizes must be 0 or more, got {list(sizes)}")
    if theta.dim() != 2 or theta.shape != grad.shape or theta.shape[1] != sum(sizes):
        raise ValueError(
            f"lslr_update: theta and grad must both be [T, {sum(sizes)}], the sum of sizes, "
            f"got {list(theta.shape)} and {list(grad.shape)}"
        )
    if not theta.numel():
        raise ValueError(
            f"lslr_update: theta is empty, {list(theta.shape)}; it needs a task and a parameter"
        )
    if rates.shape != (len(sizes),):
        raise ValueError(
            f"lslr_update: rates must be [{len(sizes)}], one a segment, got {list(rates.shape)}"
        )
    check_alike("lslr_update", theta=theta, grad=grad, rates=rates)
    return _Update.apply(theta, grad, rates, sizes, dispatch.backend("update", theta))


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx, theta, grad, rates, sizes, impl):
        ctx.save_for_backward(grad, rates)
        ctx.cache = sizes, impl
        return impl.fwd(theta, grad, rates, sizes)

    @staticmethod
    def backward(ctx, d_theta):
        return d_theta, *_UpdateGrad.apply(d_theta, *ctx.saved_tensors, *ctx.cache), None, None


class _UpdateGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d_theta, grad, rates, sizes, impl):
        ctx.save_for_backward(d_theta, grad, rates)
        ctx.cache = sizes, impl
        ctx.set_materialize_grads(False)
        d_grad, d_rates = impl.bwd(d_theta, grad, rates, sizes)
        return d_grad, d_rates.sum(0)

    @staticmethod
    def backward(ctx, grad_dot, rates_dot):
        d_theta, grad, rates = ctx.saved_tensors
        sizes, impl = ctx.cache
        with torch.no_grad():
            theta_dot = impl.tan_fwd(grad, rates, None, grad_dot, rates_dot, sizes)
            d_grad_dot, d_rates_dot = impl.tan_bwd(d_theta, grad_dot, rates_dot, sizes)
        d_rates_dot = None if d_rates_dot is None else d_rates_dot.sum(0)
        tangents = theta_dot, d_grad_dot, d_rates_dot
        sources = *ctx.saved_tensors, grad_dot, rates_dot
        return *last_derivative("lslr_update", tangents, sources), None, None
