"""The update rule of the meta-learner LSTM, and its derivatives by hand: an LSTM and two gates for
every coordinate of the learner, with the same weights.

With x_t = LSTM(ρ(L_t), ρ(g_t)), for each coordinate of a task:

    F_t = w_F·(x_t, c_{t-1}, F_{t-1}) + b_F,   I_t = w_I·(x_t, c_{t-1}, I_{t-1}) + b_I
    c_t = σ(F_t) c_{t-1} − σ(I_t) g_t

Losses and gradients are constants. Coordinates lie last, so that each gate is one piece of memory,
and are taken some at a time: what the reverse sweep needs of them stays in the cache, and is
computed again, so that of a step only its loss and gradient are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WIDTH, INPUTS = 20, 4  # of the LSTM
_P = 10.0  # of ρ
_TOGETHER = 4096  # coordinates that a CPU takes at once
# Weights and biases of the four gates, then of F and of I: of x, c and the gate before, and a bias.
SIZES = (4 * WIDTH * (INPUTS + WIDTH), 4 * WIDTH, WIDTH + 3, WIDTH + 3)


def initial(rate: float, generator: torch.Generator) -> Tensor:  # [R], float32
    """Near gradient descent: σ(b_F) some 0.99, and σ(b_I) around a rate."""
    own = torch.empty(sum(SIZES), device="cpu").uniform_(-0.01, 0.01, generator=generator)
    own[-1].uniform_(-0.5, 0.5, generator=generator).add_(math.log(rate / (1 - rate)))
    own[-1 - SIZES[-1]].uniform_(4, 5, generator=generator)
    return own


class State(NamedTuple):
    """Of one task's coordinates."""

    c: Tensor  # [n]
    gates: Tensor  # [2, n] F and I, before the sigmoid
    h: Tensor  # [20, n]
    s: Tensor  # [20, n] the LSTM's cell

    @classmethod
    def first(cls, c: Tensor) -> State:
        return cls(c, *(c.new_zeros(rows, len(c)) for rows in (2, WIDTH, WIDTH)))


class _Made(NamedTuple):
    """What a step back needs of the step, beside the state before it."""

    seen: Tensor  # [24, n] inputs and h
    ifo: Tensor  # [60, n] the LSTM's gates after the sigmoid
    g: Tensor  # [20, n] its candidate
    tanh: Tensor  # [20, n] of the new cell
    h: Tensor  # [20, n] the new one
    open: Tensor  # [2, n] σ(F) and σ(I)


class Rule(NamedTuple):
    weight: Tensor  # [80, 24]: of input, forget and output gate and of the candidate
    bias: Tensor  # [80, 1]
    of_x: Tensor  # [2, 20] of F and I
    of_c: Tensor  # [2, 1]
    of_gates: Tensor  # [2, 1] of what they were before
    bias_gates: Tensor  # [2, 1]

    @classmethod
    def of(cls, own: Tensor) -> Rule:  # [R]
        weight, bias, *gates = own.split(SIZES)
        both = torch.stack(gates)
        parts = both.split([WIDTH, 1, 1, 1], 1)
        return cls(weight.view(4 * WIDTH, -1), bias.unsqueeze(1), *parts)

    def flat(self) -> Tensor:
        """The inverse of `of`."""
        gates = torch.cat(self[2:], 1)
        return torch.cat([self.weight.flatten(), self.bias.flatten(), gates.flatten()])

    def step(self, loss: Tensor, gradient: Tensor, before: State) -> tuple[State, _Made]:
        """Of the loss [] and the gradient [n] at c."""
        seen = torch.cat([_inputs(loss, gradient), before.h])
        gates = torch.addmm(self.bias, self.weight, seen)
        ifo, g = gates[: 3 * WIDTH].sigmoid_(), gates[3 * WIDTH :].tanh_()
        i, f, o = ifo.split(WIDTH)
        s = torch.addcmul(f * before.s, i, g)
        tanh = s.tanh()
        h = o * tanh
        last = self.of_c * before.c + self.of_gates * before.gates + self.bias_gates
        both = torch.addmm(last, self.of_x, h)
        opened = both.sigmoid()
        c = opened[0] * before.c - opened[1] * gradient
        return State(c, both, h, s), _Made(seen, ifo, g, tanh, h, opened)

    def back(self, gradient: Tensor, before: State, made: _Made, d: State) -> tuple[State, Rule]:
        """From the gradients of what a step gave to those of what it took, and the weights'."""
        value = torch.stack([before.c, -gradient])
        d_gates = d.gates + d.c * value * made.open * (1 - made.open)
        dh = torch.addmm(d.h, self.of_x.T, d_gates)
        i, f, o = made.ifo.split(WIDTH)
        ds = torch.addcmul(d.s, dh * o, 1 - made.tanh.square())
        d_ifo = torch.cat([ds * made.g, ds * before.s, dh * made.tanh])
        d_ifo *= made.ifo * (1 - made.ifo)
        d_all = torch.cat([d_ifo, ds * i * (1 - made.g.square())])
        d_c = d.c * made.open[0] + (self.of_c * d_gates).sum(0)
        d_h = self.weight[:, INPUTS:].T @ d_all
        weights = Rule(
            d_all @ made.seen.T,
            d_all.sum(1, keepdim=True),
            d_gates @ made.h.T,
            d_gates @ before.c.unsqueeze(1),
            (d_gates * before.gates).sum(1, keepdim=True),
            d_gates.sum(1, keepdim=True),
        )
        return State(d_c, self.of_gates * d_gates, d_h, ds * f), weights


def forward(
    rule: Rule,
    loss: Tensor,  # []
    gradient: Tensor,  # [N]
    before: State,  # of N coordinates
) -> State:
    """One step of a task."""
    parts = [
        rule.step(loss, gradient[some], State(*(v[..., some] for v in before)))[0]
        for some in _pieces(gradient)
    ]
    return State(*(torch.cat(of_parts, -1) for of_parts in zip(*parts, strict=True)))


def reverse(
    rule: Rule,
    losses: Sequence[Tensor],  # K of []
    gradients: Sequence[Tensor],  # K of [N]
    start: Tensor,  # c_0 [N]
    carry: Tensor,  # [N] the gradient of c_K
) -> tuple[Tensor, Tensor]:  # of c_0 [N], of the rule's numbers [R]
    """All steps of a task."""
    found, own = torch.empty_like(carry), torch.zeros_like(rule.flat())
    for some in _pieces(carry):
        states, made = [State.first(start[some])], []
        for loss, gradient in zip(losses, gradients, strict=True):
            state, one = rule.step(loss, gradient[some], states[-1])
            states.append(state)
            made.append(one)
        d = State.first(carry[some])
        for k in reversed(range(len(made))):
            d, weights = rule.back(gradients[k][some], states[k], made.pop(), d)
            own += weights.flat()
        found[some] = d.c
    return found, own


def _pieces(values: Tensor) -> list[slice]:
    count, size = len(values), _TOGETHER if values.device.type == "cpu" else len(values)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _inputs(loss: Tensor, gradient: Tensor) -> Tensor:  # [4, n]
    of_loss = preprocessed(loss).unsqueeze(1).expand(-1, len(gradient))
    return torch.cat([of_loss, preprocessed(gradient)])


def preprocessed(u: Tensor) -> Tensor:  # [2, *]
    """ρ(u): (log|u|/p, sign u) where |u| ≥ e^−p, else (−1, e^p u)."""
    size = u.abs()
    large = size >= math.exp(-_P)
    magnitude = torch.where(large, size.log() / _P, -1.0)
    return torch.stack([magnitude, torch.where(large, u.sign(), u * math.exp(_P))])
