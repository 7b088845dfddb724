"""Full context embeddings (Vinyals et al. 2016, A.1 and A.2): features of the images of a task as
the support set has them be.

    g(x_i, S) = h→_i + h←_i + g'(x_i),   h→, h← of an LSTM each over the support set
    ĥ_j, c_j = LSTM(f'(x), [h_{j-1}, r_{j-1}], c_{j-1}),   h_j = ĥ_j + f'(x),   f(x, S) = h_J
    r_j = Σ_i softmax_i(h_j·g(x_i, S)) g(x_i, S),   h_0 = 0, so that r_0 is their mean

Ordinary torch, which autograd differentiates. Weights are [T, R], of each task its own copy, so
that their gradients are, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def size(width: int) -> int:
    """R of features so wide."""
    return sum(_sizes(width))


def _sizes(width: int) -> list[int]:
    """Of each LSTM weights and biases: forward, backward, and that of attention."""
    gates = 4 * width
    return [gates * 2 * width, gates] * 2 + [gates * 3 * width, gates]


def initial(width: int, generator: torch.Generator) -> Tensor:  # [R]
    """Uniform within 1/√D, as torch's LSTM."""
    bound = width**-0.5
    return torch.empty(size(width), device="cpu").uniform_(-bound, bound, generator=generator)


def of_support(own: Tensor, h: Tensor) -> Tensor:  # [T, R], [T, n, D] → [T, n, D]
    """g(x_i, S), in the order that the support set has."""
    *both, _, _ = _weights(own, h.shape[2])
    forward = _over(*both[:2], h)
    return forward + _over(*both[2:], h.flip(1)).flip(1) + h


def of_targets(
    own: Tensor,  # [T, R]
    g: Tensor,  # [T, n, D]
    h: Tensor,  # f' [T, m, D]
    steps: int,  # J
) -> Tensor:  # [T, m, D]
    """f(x, S)."""
    *_, weight, bias = _weights(own, h.shape[2])
    state, cell = torch.zeros_like(h), torch.zeros_like(h)
    for _ in range(steps):
        read = (state @ g.mT).softmax(2) @ g
        new, cell = _cell(weight, bias, torch.cat([h, state, read], 2), cell)
        state = new + h
    return state


def _weights(own: Tensor, width: int) -> list[Tensor]:
    """[T, D', 4 D] and [T, 1, 4 D] each, the gates as torch has them: input, forget, candidate,
    output.
    """
    parts = own.split(_sizes(width), 1)
    return [part.unflatten(1, (-1, 4 * width)) for part in parts]


def _over(weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    """The states of an LSTM over the images of a set [T, n, D]."""
    state = cell = torch.zeros_like(h[:, :1])
    found = []
    for i in range(h.shape[1]):
        state, cell = _cell(weight, bias, torch.cat([h[:, i : i + 1], state], 2), cell)
        found.append(state)
    return torch.cat(found, 1)


def _cell(weight: Tensor, bias: Tensor, seen: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    gates = torch.baddbmm(bias, seen, weight)
    i, f, g, o = gates.chunk(4, 2)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


class InContext(NamedTuple):
    """Features of both sets in their context, and the way back."""

    support: Tensor  # [T, n, D]
    target: Tensor  # [T, m, D]
    leaves: list[Tensor]

    @classmethod
    @torch.inference_mode(False)
    @torch.enable_grad()
    def of(cls, own: Tensor, h_s: Tensor, h_q: Tensor, steps: int) -> InContext:  # own: [R]
        copies = own.clone().expand(len(h_s), -1), h_s.clone(), h_q.clone()
        leaves = [copy.detach().requires_grad_() for copy in copies]
        weights, h_s, h_q = leaves
        g = of_support(weights, h_s)
        return cls(g, of_targets(weights, g, h_q, steps), leaves)

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        return self.support.detach(), self.target.detach()

    @torch.inference_mode(False)
    def pullback(self, d_support: Tensor, d_target: Tensor) -> list[Tensor]:
        """The gradients in h_s and h_q, and in the numbers [T, R]."""
        given = [d_support.clone(), d_target.clone()]
        own, *of_features = torch.autograd.grad([self.support, self.target], self.leaves, given)
        return [*of_features, own]
