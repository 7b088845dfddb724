"""The update rule of the meta-learner LSTM (Ravi & Larochelle 2017), and its derivatives by hand:
an LSTM and two gates for every coordinate of the learner, with the same weights.

With x_t = LSTM(ρ(L_t), ρ(g_t)), for each coordinate of a task:

    F_t = w_F·(x_t, c_{t-1}, F_{t-1}) + b_F,   I_t = w_I·(x_t, c_{t-1}, I_{t-1}) + b_I
    c_t = σ(F_t) c_{t-1} − σ(I_t) g_t

ρ(u) is (log|u|/p, sign u) where |u| ≥ e^−p, else (−1, e^p u). Losses and gradients are constants.
Coordinates lie last, so that each gate is one piece of memory, and are taken some at a time: what
the reverse sweep needs of them stays in the cache, and is computed again, so that of a step only
its loss and gradient are kept.
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
MEMORY = (2, WIDTH, WIDTH)  # rows of what is remembered beside c: F and I, s, h


def fwd(
    own: Tensor,  # [R] the rule's numbers
    loss: Tensor,  # [T]
    gradient: Tensor,  # [T, N]
    c: Tensor,  # [T, N]
    memory: Tensor | None,  # as the step before gave it; None: this is the first one
    spent: bool = False,  # the new memory may take the place of the old one
) -> tuple[Tensor, Tensor]:  # c after it, and the memory, in an order of the backend's own
    """One step."""
    rule, found = Rule.of(own), []
    for t in range(len(c)):
        before = State.first(c[t]) if memory is None else State(c[t], *memory[t].split(MEMORY))
        after = _step(rule, loss[t], gradient[t], before)
        found.append((after.c, torch.cat(after[1:])))
    of_c, of_memory = map(torch.stack, zip(*found, strict=True))
    return of_c, of_memory


def bwd(
    own: Tensor,  # [R]
    losses: Sequence[Tensor],  # K of [T]
    gradients: Sequence[Tensor],  # K of [T, N]
    start: Tensor,  # [N] c before the first step
    carry: Tensor,  # [T, N] gradient of c after the last one
) -> tuple[Tensor, Tensor]:  # gradients of start [T, N], and of the rule's numbers [T, R]
    """Back through all steps."""
    rule = Rule.of(own)
    found = [
        _reverse(rule, [loss[t] for loss in losses], [g[t] for g in gradients], start, carry[t])
        for t in range(len(carry))
    ]
    of_start, of_own = map(torch.stack, zip(*found, strict=True))
    return of_start, of_own


class State(NamedTuple):
    """Of one task's coordinates."""

    c: Tensor  # [n]
    gates: Tensor  # [2, n] F and I, before the sigmoid
    s: Tensor  # [20, n] the LSTM's cell
    h: Tensor  # [20, n]

    @classmethod
    def first(cls, c: Tensor) -> State:
        return cls(c, *(c.new_zeros(rows, len(c)) for rows in MEMORY))


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
        return State(c, both, s, h), _Made(seen, ifo, g, tanh, h, opened)

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
        return State(d_c, self.of_gates * d_gates, ds * f, d_h), weights


def _step(rule: Rule, loss: Tensor, gradient: Tensor, before: State) -> State:
    """One step of a task."""
    parts = [
        rule.step(loss, gradient[some], State(*(v[..., some] for v in before)))[0]
        for some in _pieces(gradient)
    ]
    return State(*(torch.cat(of_parts, -1) for of_parts in zip(*parts, strict=True)))


def _reverse(
    rule: Rule,
    losses: Sequence[Tensor],  # K of []
    gradients: Sequence[Tensor],  # K of [N]
    start: Tensor,  # [N]
    carry: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:
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
