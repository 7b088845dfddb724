"""The one inner loop, and the meta-gradient through it.

`adjoint` is the engine: a support sweep, the target passes beside it or as one batch after it, and
a reverse sweep with one Hessian-vector product a step (Antoniou et al. 2018, eq. 1–4). It keeps the
support passes of the steps; of a target pass, its results alone. `autograd` differentiates the same
loop by `torch.autograd` and is its oracle.

It knows neither the network nor its inputs: a model is what `engine.models.interface` says, a step
what `engine.methods` does with a gradient. Dtype and device are those of theta.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from engine import averages
from engine.by_step import ByStep, Record, at_step, running_at
from engine.episodes import Episode, Values, count
from engine.methods.base import Adapted
from engine.methods.rates import rule
from engine.models.interface import Inputs, Model, Moments, Params, Pass
from engine.models.rows import repeated
from kernels.branch import Branch, Mark


class MetaGradient(NamedTuple):
    loss: Tensor  # [T] weighted over steps; [] once summed
    logits: Values  # [T, N, ways] of the target set after the last step
    gradient: Params  # [T, …] each; […] once summed
    per_step: tuple[Tensor | None, ...]  # [T] the target loss after each step, if it has a weight
    rows: tuple[int, ...]  # step of each column of `moments`
    moments: (
        Moments  # [T, columns, S]: in order of the steps, support then target; unbiased variance
    )


def total(blocks: Sequence[MetaGradient]) -> MetaGradient:
    """Blocks of tasks put together, their losses and gradients summed; the same bits whatever the
    blocks.
    """
    found = together(blocks)
    # contiguous: torch's order of summation depends on the strides, and these on the blocks
    gradient = Params(*(g.contiguous() for g in found.gradient))
    with Branch(gradient.theta.device).on() as small:
        loss, norm, rates = (of.sum(0) for of in (found.loss, gradient.norm, gradient.rates))
    theta = gradient.theta.sum(0)
    small.wait()
    return found._replace(loss=loss, gradient=Params(theta, norm, rates))


def together(blocks: Sequence[MetaGradient]) -> MetaGradient:
    """Blocks of tasks put together, each task still by itself."""
    losses, logits, gradients, steps, rows, moments = zip(*blocks, strict=True)
    return MetaGradient(
        joined(losses),
        joined(logits),
        Params(*(joined(g) for g in zip(*gradients, strict=True))),
        tuple(None if s[0] is None else joined(s) for s in zip(*steps, strict=True)),
        rows[0],
        Moments(*(joined(m) for m in zip(*moments, strict=True))),
    )


def joined(blocks: Sequence[Values]) -> Values:
    if len(blocks) == 1:
        return blocks[0]
    if isinstance(blocks[0], list):
        return [of_task for block in blocks for of_task in block]
    return torch.cat(blocks)


class _Step(NamedTuple):
    index: int
    row: Tensor  # [G]
    rates: Tensor  # [L]
    support: Pass
    adapted: Tensor  # [T, P] after the update


def inner_loop(
    model: Model,
    params: Params,
    x: Values,  # support set, [T, N, C, H, W] of images
    labels: Values,  # [T, N]
    steps: int,
    running: Moments | None = None,  # [K or 1, S] normalise instead of the batch's statistics
    keep: bool = False,
) -> Iterator[_Step]:
    """Adapt each task's copy of theta to its support set, one gradient step at a time."""
    update = rule(params.rates, model.sizes)
    theta, inputs = params.theta.expand(count(x), -1), model.prepare(x, steps)
    for k in range(steps):
        row, rates = at_step(params.norm, k), at_step(params.rates, k)
        support = inputs.loss_and_gradient(theta, row, labels, running_at(running, k), keep)
        adapted = update.fwd(theta, support.gradient, rates)
        yield _Step(k, row, rates, support, adapted)
        theta = adapted


def _in_turn(
    params: Params,
    labels: Tensor,  # [T, N]
    running: Moments | None,
    wanted: Sequence[int],  # steps
) -> tuple[Tensor, Tensor, Moments | None]:
    """Row, labels and statistics of the passes of these steps' networks, as of one batch of as many
    times T tasks.
    """
    by_step = params.norm, *(running or ())
    rows = (torch.stack([at_step(of, k) for k in wanted]) for of in by_step)
    row, *given = (each.repeat_interleave(len(labels), 0) for each in rows)
    return row, labels.repeat(len(wanted), 1), Moments(*given) if given else None


def _by_step(batch: Pass, tasks: int) -> list[Pass]:
    """Of a pass over the tasks of all steps in turn."""
    tensors = *batch[:4], *batch.moments
    parts = zip(*(tensor.split(tasks) for tensor in tensors), strict=True)
    return [Pass(*of[:4], Moments(*of[4:]), None) for of in parts]


def _weight(weight: float | Tensor, like: Tensor) -> Tensor:
    """Made on the device: a copy to it would be waited for."""
    return weight.to(like) if isinstance(weight, Tensor) else like.new_full((), weight)


def _wanted(weight: float | Tensor) -> bool:
    """A tensor is not looked at: a device would be waited for."""
    return isinstance(weight, Tensor) or weight != 0


def _plus(sum: Tensor | None, weight: Tensor, of: Tensor) -> Tensor:
    return weight * of if sum is None else sum.addcmul_(weight, of)


@torch.inference_mode()
def adjoint(
    model: Model,
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
    weights = {k: _weight(w, params.theta) for k, w in enumerate(loss_weights) if _wanted(w)}
    branch, count = Branch(params.theta.device, later=True), len(loss_weights)
    steps, targets = _forward(model, params, episode, count, weights, branch, second_order, running)
    record = Record(model)  # what it has seen is held until the sweep back has waited for it
    with branch.on():
        told = _told(record, episode, steps, targets, weights)
        rows, moments = record.result()
    gradient = _reverse(model, params, steps, targets, weights, branch, second_order)
    loss, logits, per_step = told
    return MetaGradient(loss, logits, gradient, per_step, rows, moments)


_Targets = dict[int, tuple[Pass, Mark]]  # of steps whose target loss has a weight, and its end


def _forward(
    model: Model,
    params: Params,
    episode: Episode,
    count: int,  # K
    wanted: Collection[int],  # steps
    branch: Branch,
    keep: bool,
    running: Moments | None,
) -> tuple[list[_Step], _Targets]:
    """The support sweep, and the target passes beside it, unless they are to come in order, or as
    one batch after it.
    """
    labels, wanted, steps, targets = episode.target_y, [*wanted], [], {}
    in_order = getattr(model, "in_order", False)
    with branch.on() as prepared:
        inputs = model.prepare(episode.target_x, len(wanted))
        together = repeated(inputs, len(wanted))
        in_turn = _in_turn(params, labels, running, wanted) if together else ()
    support = episode.support_x, episode.support_y
    for step in inner_loop(model, params, *support, count, running, keep):
        k = step.index
        if k in wanted and not together:
            operands = step.adapted, step.row, labels, running_at(running, k)
            # The reverse sweep begins with the last one, the others may come later.
            if in_order or k == wanted[-1]:
                done = prepared
                done.wait()
                target = inputs.loss_and_gradient(*operands)
            else:
                with branch.on() as done:
                    target = inputs.loss_and_gradient(*operands)
            targets[k] = target, done
        steps.append(step)
    prepared.wait()
    if together:
        adapted = torch.cat([steps[k].adapted for k in wanted])
        found = _by_step(together.loss_and_gradient(adapted, *in_turn), episode.tasks)
        targets = {k: (target, prepared) for k, target in zip(wanted, found, strict=True)}
    return steps, targets


def _told(
    record: Record,
    episode: Episode,
    steps: list[_Step],
    targets: _Targets,
    weights: Mapping[int, Tensor],
) -> tuple[Tensor, Values, tuple[Tensor | None, ...]]:
    """Loss, logits and the target losses; all passes' moments into the record."""
    loss, logits, per_step = None, None, [None] * len(steps)
    for step in steps:
        k = step.index
        record.add(k, step.support.moments, episode.support_x)
        if k in targets:
            target, _ = targets[k]
            logits, per_step[k] = target.logits, target.loss
            loss = _plus(loss, weights[k], target.loss)
            record.add(k, target.moments, episode.target_x)
    return loss, logits, tuple(per_step)


def _reverse(
    model: Model,
    params: Params,
    steps: list[_Step],  # taken from its end: what a step has kept is given up behind it
    targets: _Targets,  # likewise
    weights: Mapping[int, Tensor],
    branch: Branch,
    second_order: bool,
) -> Params:
    """The sweep back through the steps: each task's gradient in every parameter. What is begun on
    the branch ends with it.
    """
    norm, rates = (ByStep(p, len(steps[-1].adapted)) for p in params[1:])
    update, held = rule(params.rates, model.sizes), []  # what the branch reads
    carry = product = None  # [T, P] gradient of the loss in the parameters after a step
    while steps:
        step = steps.pop()
        target, done = targets.pop(step.index, (None, None))
        weight = weights.get(step.index)
        if target:
            done.wait()
        elif carry is None:
            carry = torch.zeros_like(step.adapted)
        # Only the second derivatives need d_support.
        carry, d_support, of_rates = update.reverse(
            carry,
            product,
            (weight, target.gradient) if target else None,
            step.support.gradient,
            step.rates if second_order else None,
        )
        product, of_norm = step.support.kept.tangent(d_support) if second_order else (None, None)
        with branch.on():
            rates.add(step.index, update.of_rates(of_rates))
            held += [of_rates, of_norm, target and target.norm_gradient]
            if target and of_norm is not None:
                of_norm = torch.addcmul(of_norm, weight, target.norm_gradient)
            elif target:
                of_norm = weight * target.norm_gradient
            if of_norm is not None:
                norm.add(step.index, of_norm)
    with branch.on() as made:
        rows = norm.result(), rates.result()
    theta = carry if product is None else carry.add_(product)
    made.wait()
    return Params(theta, *rows)


@torch.inference_mode(False)
@torch.enable_grad()
def autograd(
    model: Model,
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
    episode = episode.map(_plain)
    running = None if running is None else Moments(*map(_plain, running))
    theta, record = leaves.theta.expand(episode.tasks, -1), Record(model)
    outer, logits = leaves.theta.new_zeros(1), None
    per_step: list[Tensor | None] = [None] * len(loss_weights)
    for k, weight in enumerate(loss_weights):
        row, given = at_step(leaves.norm, k), running_at(running, k)
        loss, _, moments = model.loss(theta, row, episode.support_x, episode.support_y, given, ops)
        record.add(k, moments, episode.support_x)
        (step_gradient,) = torch.autograd.grad(loss.sum(), theta, create_graph=second_order)
        rates = at_step(leaves.rates, k)
        if len(rates) == len(model.sizes):
            theta = ops.lslr_update(theta, step_gradient, rates, model.sizes)
        else:
            theta = ops.elementwise_update(theta, step_gradient, rates)
        if _wanted(weight):
            loss, logits, moments = model.loss(
                theta, row, episode.target_x, episode.target_y, given, ops
            )
            record.add(k, moments, episode.target_x)
            outer, per_step[k] = outer + weight * loss.sum(), loss.detach()
    gradient = torch.autograd.grad(outer, leaves, materialize_grads=True)
    gradient = Params(*(g.unsqueeze(0) for g in gradient))
    return MetaGradient(outer.detach(), logits, gradient, tuple(per_step), *record.result())


def _plain(values: Values) -> Values:
    """Such that autograd may keep: what was made in inference mode is copied."""
    if isinstance(values, dict):
        return {name: _plain(tensor) for name, tensor in values.items()}
    if isinstance(values, list):
        return [_plain(of_task) for of_task in values]
    return values.clone() if values.is_inference() else values


@torch.inference_mode()
def adapt_and_predict(
    model: Model,
    params: Params,
    running: Moments,  # [K or 1, S]
    episode: Episode,
    *,
    steps: int,
    norm_statistics: str = "batch",
    protocol: str = "transductive",
    every: bool = False,
) -> Values:  # target logits [T, N, ways], with `every` of each step [steps, T, N, ways]
    """Adapt to the support sets, then classify the target sets; with `every`, after each step.

    What normalises is the batch's own statistics or the running ones. With the batch's,
    `transductive` lets the target images of a task normalise each other; `inductive` uses the
    adapted network's statistics on the support set.
    """
    given = running if norm_statistics == "running" else None
    support = episode.support_x, episode.support_y
    adapted = inner_loop(model, params, *support, steps, given)
    otherwise = running if getattr(model, "skips", False) else None
    return predictions(model.prepare, adapted, episode, given, protocol, every, otherwise)


def predictions(
    prepare: Callable[[Values, int], Inputs],  # for the rows of the steps
    adapted: Iterator[Adapted],
    episode: Episode,
    given: Moments | None,  # [K or 1, S]
    protocol: str,
    every: bool,
    otherwise: Moments | None = None,  # [K or 1, S] of norms that a support set's pass leaves out
) -> Values:
    """Of the last step, or of every one: see `adapt_and_predict`."""
    shown = deque(adapted, None if every else 1)
    inputs, logits = prepare(episode.target_x, len(shown)), []
    for step in shown:
        theta, row, statistics = step.adapted, step.row, running_at(given, step.index)
        if statistics is None and protocol == "inductive":
            _, statistics = prepare(episode.support_x, 1).predict(theta, row)
            if otherwise is not None:
                statistics = averages.called(statistics, running_at(otherwise, step.index))
        logits.append(inputs.predict(theta, row, statistics)[0])
    return logits[0] if not every else stacked(logits)


def stacked(logits: list[Values]) -> Values:
    return torch.stack(logits) if isinstance(logits[0], Tensor) else logits
