"""Linear classifier with mean cross-entropy, batched over tasks, differentiable twice."""

import torch
from torch import Tensor

from kernels import autocast, checks, dispatch, library
from kernels.autograd import Call, Value
from kernels.tensors import check_alike


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
    checks.tensors(
        "linear_cross_entropy", features=features, weight=weight, bias=bias, labels=labels
    )
    if autocast.anywhere():
        features, weight, bias = autocast.widened(features, weight, bias)
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
    checks.dense("linear_cross_entropy", "labels", labels)
    if labels.device != features.device:
        raise ValueError(
            f"linear_cross_entropy: labels are on {labels.device}, features on {features.device}; "
            f"move one of them"
        )
    operands = features, weight, bias, labels
    if library.traced(*operands):
        return library.op(_Call.name)(*operands)
    loss, logits, *_ = Value.start(_call(*operands), *operands)
    return loss, logits


class _Call(Call):
    name, inputs, outputs = "linear_cross_entropy", 3, 2

    def __init__(self, impl) -> None:
        self.impl = impl

    def fwd(self, h, w, c, labels):
        _check_labels(labels, w.shape[1])
        loss, logits, saved = self.impl.fwd(h, w, c, labels)
        return (loss, logits), saved

    def bwd(self, saved, tensors, d_loss):
        return self.impl.bwd(saved, *tensors[:2], d_loss)

    def dot(self, saved, tensors, dots):
        return self.impl.tan_fwd(saved, *tensors[:2], *dots)[0]

    def grad_dot(self, saved, tensors, dots, d_loss, d_loss_dot):
        h, w = tensors[:2]
        loss_dot, logits_dot = self.impl.tan_fwd(saved, h, w, *dots)
        tangents = self.impl.tan_bwd(saved, logits_dot, h, w, *dots[:2], d_loss)
        if d_loss_dot is not None:
            along = self.impl.bwd(saved, h, w, d_loss_dot)
            tangents = map(torch.add, tangents, along)
        return loss_dot, *tangents


def _check_labels(labels: Tensor, ways: int) -> None:
    if labels.device.type != "cpu" or 0 <= int(labels.min()) <= int(labels.max()) < ways:
        return
    raise ValueError(
        f"linear_cross_entropy: labels must be in 0…{ways - 1}, one of {ways} ways, got "
        f"{int(labels.min())}…{int(labels.max())}; number the classes of a task from 0"
    )


def _call(features, weight, bias, labels) -> _Call:
    return _Call(dispatch.backend("head", features))


def _shapes(features, weight, bias, labels) -> tuple[Tensor, Tensor]:
    tasks, images, _ = features.shape
    return features.new_empty((tasks,)), features.new_empty((tasks, images, weight.shape[1]))


library.define_twice_differentiable(
    _Call,
    "Tensor features, Tensor weight, Tensor bias, Tensor labels",
    "",
    _call,
    _shapes,
)
