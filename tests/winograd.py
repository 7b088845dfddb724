"""Convolutions as native takes them in bfloat16: Winograd's F(2×2, 3×3), whose operands are rounded
when they are transformed (csrc/cpu/winograd.h), differentiable twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.check import products

B = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]).float()  # Bᵀ
G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]]).float()  # Aᵀ
LEAST = 6  # pixels a side of maps that are transformed; native leaves others in float32


def convolution(x: Tensor, w: Tensor, stride: int, precision: str) -> Tensor:
    """As `kernels.check.products.convolution`, of one task."""
    if precision == "fp32" or x.shape[-1] < LEAST:
        return products.convolution(x, w, stride, "fp32")
    return _Forward.apply(x, w, precision)


def _product(equation: str, a: Tensor, b: Tensor, precision: str) -> Tensor:
    a, b = products.parts(a, precision), products.parts(b, precision)
    pairs = [(a[0], b[0])] + ([(a[0], b[1]), (a[1], b[0])] if len(a) > 1 else [])
    return sum(torch.einsum(equation, *pair) for pair in pairs)


def _cells(x: Tensor) -> Tensor:
    odd = x.shape[-1] % 2
    return B @ F.pad(x, (1, 1 + odd, 1, 1 + odd)).unfold(2, 4, 2).unfold(3, 4, 2) @ B.T


def _value(x: Tensor, w: Tensor, precision: str) -> Tensor:
    sums = _product("fcij,nchwij->nfhwij", G @ w @ G.T, _cells(x), precision)
    tiles = (A @ sums @ A.T).permute(0, 1, 2, 4, 3, 5)
    whole = tiles.reshape(*tiles.shape[:2], 2 * tiles.shape[2], -1)
    return whole[..., : x.shape[2], : x.shape[3]]


def _of_input(dz: Tensor, w: Tensor, precision: str) -> Tensor:
    return _value(dz, w.flip(2, 3).transpose(0, 1), precision)


def _of_weight(x: Tensor, dz: Tensor, precision: str) -> Tensor:
    odd = dz.shape[-1] % 2
    tiles = F.pad(dz, (0, odd, 0, odd)).unfold(2, 2, 2).unfold(3, 2, 2)
    sums = _product("nfhwij,nchwij->fcij", A.T @ tiles @ A, _cells(x), precision)
    return G.T @ sums @ G


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, precision):
        ctx.save_for_backward(x, w)
        ctx.precision = precision
        return _value(x.detach(), w.detach(), precision)

    @staticmethod
    def backward(ctx, dz):
        x, w = ctx.saved_tensors
        return _Input.apply(dz, w, ctx.precision), _Weight.apply(x, dz, ctx.precision), None


class _Input(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dz, w, precision):
        ctx.save_for_backward(dz, w)
        ctx.precision = precision
        return _of_input(dz.detach(), w.detach(), precision)

    @staticmethod
    def backward(ctx, dot):
        dz, w = ctx.saved_tensors
        return _Forward.apply(dot, w, ctx.precision), _Weight.apply(dot, dz, ctx.precision), None


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dz, precision):
        ctx.save_for_backward(x, dz)
        ctx.precision = precision
        return _of_weight(x.detach(), dz.detach(), precision)

    @staticmethod
    def backward(ctx, dot):
        x, dz = ctx.saved_tensors
        return _Input.apply(dz, dot, ctx.precision), _Forward.apply(x, dot, ctx.precision), None
