"""Linear classifier with mean cross-entropy, batched over tasks, differentiable twice."""

import torch
from torch import Tensor

from kernels import dispatch
from kernels.autograd import check_alike, keep, kept, last_derivative


def linear_cross_entropy(
    features: Tensor,  # [T, N, D]
    weight: Tensor,  # [T, ways, D]
    bias: Tensor,  # [T, ways]
    labels: Tensor,  # int64 [T, N], 0…ways − 1
) -> tuple[Tensor, Tensor]:  # loss [T], logits [T, N, ways]
    """Mean cross-entropy (natural logarithm) of each task's own linear classifier, and its logits.

    The same as `F.cross_entropy(F.linear(features[t], weight[t], bias[t]), labels[t])` for every
    task. The loss is differentiable twice in features, weight and bias, a third derivative raises;
    the logits carry no gradient.

    Raises ValueError for shapes, dtypes or devices that do not fit, and for labels outside the
    range where the look is free: on a GPU they are an error of the indexing underneath.
    """
    tasks, images, width = features.shape if features.dim() == 3 else (0, 0, 0)
    ways = weight.shape[1] if weight.dim() == 3 else 0
    if not tasks * images or weight.shape != (tasks, ways, width) or bias.shape != (tasks, ways):
        raise ValueError(
            "linear_cross_entropy: features, weight and bias must be non-empty [T, N, D], "
            f"[T, ways, D], [T, ways], got {list(features.shape)}, {list(weight.shape)}, "
            f"{list(bias.shape)}"
        )
    if labels.shape != (tasks, images) or labels.dtype != torch.int64:
        raise ValueError(
            f"linear_cross_entropy: labels must be int64 [{tasks}, {images}], "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    check_alike("linear_cross_entropy", features=features, weight=weight, bias=bias)
    if labels.device != features.device:
        raise ValueError(
            f"linear_cross_entropy: labels are on {labels.device}, features on {features.device}; "
            f"move one of them"
        )
    if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < ways:
        raise ValueError(
            f"linear_cross_entropy: labels must be in 0…{ways - 1}, one of {ways} ways, got "
            f"{int(labels.min())}…{int(labels.max())}; number the classes of a task from 0"
        )
    impl = dispatch.backend("head", features)
    return _Head.apply(features, weight, bias, labels, impl)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, w, c, labels, impl):
        loss, logits, saved = impl.fwd(h, w, c, labels)
        keep(ctx, (h, w, c), saved)
        ctx.impl = impl
        ctx.mark_non_differentiable(logits)
        return loss, logits

    @staticmethod
    def backward(ctx, d_loss, _logits):
        inputs, saved = kept(ctx)
        return *_HeadGrad.apply(d_loss, *inputs, ctx.impl, saved), None, None


class _HeadGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d_loss, h, w, c, impl, saved):
        keep(ctx, (d_loss, h, w, c), saved)
        ctx.impl = impl
        ctx.set_materialize_grads(False)
        return impl.bwd(saved, h, w, d_loss)

    @staticmethod
    def backward(ctx, h_dot, w_dot, c_dot):
        """The Hessian of ⟨d_loss, loss⟩ is symmetric: its product with the cotangents is the
        tangent along them.
        """
        (d_loss, h, w, c), saved = kept(ctx)
        with torch.no_grad():
            loss_dot, logits_dot = ctx.impl.tan_fwd(saved, h, w, h_dot, w_dot, c_dot)
            tangents = ctx.impl.tan_bwd(saved, logits_dot, h, w, h_dot, w_dot, d_loss)
        sources = d_loss, h, w, c, h_dot, w_dot, c_dot
        return *last_derivative("linear_cross_entropy", (loss_dot, *tangents), sources), None, None
