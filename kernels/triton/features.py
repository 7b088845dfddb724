"""The features behind the last stage, and from their gradient to δ: by torch's own operations,
which are few and small beside the stages' launches.
"""

import torch
from torch import Tensor

from kernels.plain.layout import whole
from kernels.triton.plan import Call, StageKept


def fwd(call: Call, last: StageKept) -> Tensor:  # [T, N, D]
    """Filter by filter all pixels, or with stride-2 stages each filter's mean."""
    value = _unbent(call, last)
    y = torch.where(value > 0, value, call.plan.net.negative_slope * value).flatten(2, 3)
    return y.mT.flatten(2) if call.plan.net.pool else y.mean(2)


def bwd(call: Call, last: StageKept, dh: Tensor) -> tuple[Tensor, Tensor]:
    """δ of the last stage, and Σδ and Σδx̂ over the images at each pixel [T, pixels, 2, F]."""
    (t, n, f, _), pixels, net = call.sizes, call.plan.last_pixels, call.plan.net
    if net.pool:
        dy = dh.reshape(t, n, f, pixels).mT
    else:
        dy = (dh / pixels).unsqueeze(2).expand(t, n, pixels, f)
    dy = dy.reshape(last.x_hat.shape)
    delta = whole(torch.where(_unbent(call, last) > 0, dy, net.negative_slope * dy))
    each, x_hat = (v.view(t, n, pixels, f) for v in (delta, last.x_hat))
    return delta, torch.stack((each.sum(1), (each * x_hat).sum(1)), 2)


def _unbent(call: Call, last: StageKept) -> Tensor:  # [T, N, h, w, F]
    """What the activation got."""
    net = call.plan.net
    row = call.row.view(-1, 1, 1, 1, net.stages, 2, net.filters)  # of each task, or one for all
    return last.x_hat * row[..., -1, 0, :] + row[..., -1, 1, :]
