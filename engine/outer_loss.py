"""The outer loss of a learner as one node of autograd's: its gradient is there with it."""

import torch
from torch import Tensor

import kernels


class OuterLoss(torch.autograd.Function):
    """The outer loss, with its gradient."""

    @staticmethod
    def forward(ctx, learner, episode, weights, order, norm, rates, *outer):
        tasks = episode.tasks
        found = learner.meta_gradient(episode, weights, order)
        with kernels.only_kernels():
            return OuterLoss._outputs(ctx, learner, found, tasks, norm)

    @staticmethod
    def _outputs(ctx, learner, found, tasks, norm):
        if learner.training:
            learner.track(found)
        theta, rows, rate = (g / tasks for g in found.gradient)
        if learner._fused:
            parts = [theta]
        else:
            inner, shared = learner.model.shapes, learner.model.shared
            widths = [norm.shape[1], *(shape.numel() for shape in shared.values())]
            rows, *others = rows.split(widths, 1)
            parts = [*theta.split(learner.model.sizes), *(o.sum(0) for o in others)]
            parts = [p.view(s) for p, s in zip(parts, (inner | shared).values(), strict=True)]
        ctx.save_for_backward(rows, rate, *parts)
        nothing = found.loss.new_full((tasks,), torch.nan)
        per_step = torch.stack([nothing if s is None else s for s in found.per_step], 1)
        predictions = found.logits
        if isinstance(predictions, Tensor):
            predictions = predictions.clone()
            ctx.mark_non_differentiable(per_step, predictions)  # a second call would replace this
        else:
            ctx.mark_non_differentiable(per_step)
        return found.loss / tasks, predictions, per_step

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale, *_):
        with kernels.only_kernels():
            return None, None, None, None, *(scale * g for g in ctx.saved_tensors)
