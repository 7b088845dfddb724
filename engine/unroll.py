"""The one inner loop, and the meta-gradient through it.

`adjoint` is the engine: a support sweep, the target passes beside it, and a reverse sweep with one
Hessian-vector product a step (Antoniou et al. 2018, eq. 1–4). It keeps the
support passes of the steps, and one target pass at a time. `autograd` differentiates the same loop
by `torch.autograd` and is its oracle.

A model is anything with `sizes`, `bessel`, `prepare` and `loss`, as
`engine.models.backbone.Backbone` has; `prepare` gives images that have the passes of
`engine.models.passes.Images`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine.episodes import Episode
from engine.models.backbone import Params
from engine.models.passes import Moments, Pass
from engine.runtime.branch import Branch


class MetaGradient(NamedTuple):
    loss: Tensor  # [T] weighted over steps; [] once summed
    logits: Tensor  # [T, N, ways] of the target set after the last step
    gradient: Params  # [T, …] each; […] once summed
    rows: tuple[int, ...]  # step of each column of `moments`
    moments: (
        Moments  # [T, columns, S]: in order of the steps, support then target; unbiased variance
    )


def total(blocks: Sequence[MetaGradient]) -> MetaGradient:
    """Blocks of tasks put together, their losses and gradients summed; the same bits whatever the
    blocks.
    """
    losses, logits, gradients, rows, moments = zip(*blocks, strict=True)
    return MetaGradient(
        _joined(losses).sum(),
        _joined(logits),
        Params(*(_joined(g).sum(0) for g in zip(*gradients, strict=True))),
        rows[0],
        Moments(*(_joined(m) for m in zip(*moments, strict=True))),
    )


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


class _Step(NamedTuple):
    index: int
    row: Tensor  # [G]
    rates: Tensor  # [L]
    support: Pass
    adapted: Tensor  # [T, P] after the update


class _Record:
    """Batch moments in the order in which the reference implementation's running statistics see
    them.
    """

    def __init__(self, model):
        self.model, self.rows, self.columns, self.factors = model, [], [], []

    def add(self, step: int, moments: Moments, images: int) -> None:
        self.rows.append(step)
        self.columns.append(moments)
        self.factors.append(self.model.bessel(images, moments.var))

    def result(self) -> tuple[tuple[int, ...], Moments]:
        mean, var = (torch.stack(m, 1) for m in zip(*self.columns, strict=True))
        return tuple(self.rows), Moments(mean, var * torch.stack(self.factors))


def at_step(rows: Tensor, step: int) -> Tensor:
    """The row of a step; the last one serves every later step, and a single one all of them."""
    return rows[min(step, len(rows) - 1)]


def _running_at(running: Moments | None, step: int) -> Moments | None:
    return None if running is None else Moments(*(at_step(m, step) for m in running))


def inner_loop(
    model,
    params: Params,
    x: Tensor,  # [T, N, C, H, W] support images
    labels: Tensor,  # [T, N]
    steps: int,
    running: Moments | None = None,  # [K or 1, S] normalise instead of the batch's statistics
    keep: bool = False,
) -> Iterator[_Step]:
    """Adapt each task's copy of theta to its support set, one gradient step at a time."""
    update = kernels.backend("update", x)
    theta, images = params.theta.expand(len(x), -1), model.prepare(x, steps)
    for k in range(steps):
        row, rates = at_step(params.norm, k), at_step(params.rates, k)
        support = images.loss_and_gradient(theta, row, labels, _running_at(running, k), keep)
        adapted = update.fwd(theta, support.gradient, rates, model.sizes)
        yield _Step(k, row, rates, support, adapted)
        theta = adapted


def _wanted(weight: float | Tensor) -> bool:
    """A tensor is not looked at: a device would be waited for."""
    return isinstance(weight, Tensor) or weight != 0


@torch.inference_mode()
def adjoint(
    model,
    params: Params,
    episode: Episode,
    loss_weights: Sequence[
        float | Tensor
    ],  # K, of the target loss after each step; the number 0 skips that target pass
    second_order: bool,
    running: Moments | None = None,  # [K or 1, S]
) -> MetaGradient:
    """Of each task: Σ_k loss_weights[k] · target loss after step k, and its gradient in every
    parameter.
    """
    labels, (tasks, targets) = episode.target_y, episode.target_x.shape[:2]
    wanted = [_wanted(weight) for weight in loss_weights]
    images = model.prepare(episode.target_x, sum(wanted))
    norm, rates = (p.new_zeros((len(p), tasks, p.shape[1])) for p in params[1:])  # steps first
    loss, logits, record = norm.new_zeros(tasks), None, _Record(model)
    steps, direct, branch = [], {}, Branch(episode.target_x.device)
    for step in inner_loop(
        model,
        params,
        episode.support_x,
        episode.support_y,
        len(loss_weights),
        running,
        second_order,
    ):
        k = step.index
        record.add(k, step.support.moments, episode.support_x.shape[1])
        if wanted[k]:
            weight = torch.as_tensor(loss_weights[k], dtype=loss.dtype, device=loss.device)
            with branch.on():
                target = images.loss_and_gradient(
                    step.adapted, step.row, labels, _running_at(running, k)
                )
                logits = target.logits
                # In place: what the branch reads is not freed before it is joined.
                loss.addcmul_(weight, target.loss)
                at_step(norm, k).addcmul_(weight, target.norm_gradient)
                direct[k] = weight, target.gradient
            record.add(k, target.moments, targets)
        steps.append(step)

    branch.join()
    update = kernels.backend("update", episode.target_x)
    carry = torch.zeros_like(step.adapted)  # gradient of the loss in the parameters after a step
    while steps:
        step = steps.pop()
        if step.index in direct:
            carry.addcmul_(*direct[step.index])
        # Only the second derivatives need d_support.
        d_support, rates[step.index] = update.bwd(
            carry, step.support.gradient, step.rates if second_order else None, model.sizes
        )
        if second_order:
            product, norm_product = step.support.kept.tangent(d_support)
            carry += product
            at_step(norm, step.index).add_(norm_product)
    gradient = Params(carry, norm.transpose(0, 1), rates.transpose(0, 1))
    return MetaGradient(loss, logits, gradient, *record.result())


@torch.inference_mode(False)
@torch.enable_grad()
def autograd(
    model,
    params: Params,
    episode: Episode,
    loss_weights: Sequence[float],
    second_order: bool,
    running: Moments | None = None,
    ops=kernels,
) -> MetaGradient:
    """The same as `adjoint` for one task, and for more of them their sum as if they were one, by
    differentiating the unrolled loop. Its memory grows with steps and targets.
    """
    leaves = Params(*(_plain(p).detach().requires_grad_() for p in params))
    episode = Episode(*(_plain(getattr(episode, f.name)) for f in fields(episode)))
    running = None if running is None else Moments(*map(_plain, running))
    theta, record = leaves.theta.expand(len(episode.support_x), -1), _Record(model)
    outer, logits = leaves.theta.new_zeros(1), None
    for k, weight in enumerate(loss_weights):
        row, given = at_step(leaves.norm, k), _running_at(running, k)
        loss, _, moments = model.loss(theta, row, episode.support_x, episode.support_y, given, ops)
        record.add(k, moments, episode.support_x.shape[1])
        (step_gradient,) = torch.autograd.grad(loss.sum(), theta, create_graph=second_order)
        theta = ops.lslr_update(theta, step_gradient, at_step(leaves.rates, k), model.sizes)
        if _wanted(weight):
            loss, logits, moments = model.loss(
                theta, row, episode.target_x, episode.target_y, given, ops
            )
            record.add(k, moments, episode.target_x.shape[1])
            outer = outer + weight * loss.sum()
    gradient = torch.autograd.grad(outer, leaves, materialize_grads=True)
    gradient = Params(*(g.unsqueeze(0) for g in gradient))
    return MetaGradient(outer.detach(), logits, gradient, *record.result())


def _plain(tensor: Tensor) -> Tensor:
    """One that autograd may keep: what was made in inference mode is copied."""
    return tensor.clone() if tensor.is_inference() else tensor


@torch.inference_mode()
def adapt_and_predict(
    model,
    params: Params,
    running: Moments,  # [K or 1, S]
    episode: Episode,
    *,
    steps: int,
    norm_statistics: str = "batch",
    protocol: str = "transductive",
    every: bool = False,
) -> Tensor:  # target logits [T, N, ways], with `every` of each step [steps, T, N, ways]
    """Adapt to the support sets, then classify the target sets; with `every`, after each step.

    What normalises is the batch's own statistics or the running ones. With the batch's,
    `transductive` lets the target images of a task normalise each other; `inductive` uses the
    adapted network's statistics on the support set.
    """
    given = running if norm_statistics == "running" else None
    support = episode.support_x, episode.support_y
    shown = deque(inner_loop(model, params, *support, steps, given), None if every else 1)
    images, logits = model.prepare(episode.target_x, len(shown)), []
    for step in shown:
        theta, row, statistics = step.adapted, step.row, _running_at(given, step.index)
        if statistics is None and protocol == "inductive":
            _, statistics = model.prepare(episode.support_x, 1).predict(theta, row)
        logits.append(images.predict(theta, row, statistics)[0])
    return torch.stack(logits) if every else logits[0]
