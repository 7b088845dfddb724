"""The backend that runs anywhere: every op's derivatives as closed forms in plain torch, any float
dtype, any device.

Each op supplies pure functions over the task axis; inputs are never written:

* `fwd`      the value, and what the others need;
* `bwd`      the gradient;
* `tan_fwd`  the derivative of `fwd` along a direction of its inputs;
* `tan_bwd`  the derivative of `bwd` along the same direction.

The tangent has two halves because a chain of layers needs every forward half before the first
backward one. A direction that is zero may be `None`. Images are logically [T, N, C, H, W] and NHWC
in memory, which is what makes the convolutions and the per-channel passes fast; other layouts are
converted.
"""

import torch

from kernels.plain import conv, gather, head, lstm, norm_act, stem, update

__all__ = ["conv", "gather", "head", "lstm", "norm_act", "stem", "update"]
OPS = tuple(__all__)


def refuses(device: torch.device, dtype: torch.dtype) -> None:
    """It runs anywhere."""
