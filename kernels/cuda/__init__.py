"""The compiled module `kernels._cuda`, for GPUs, or the reason why there is none.

`module` is the extension or None; `reason` is None or one line that says what is wrong. It loads on
a machine without a GPU. Calls run on the current stream and wait for nothing, so that a graph can
capture them; not the first one of each kind, which loads the kernels and makes tables.
"""

import torch

from kernels import extension
from kernels.tensors import refuses as refuses_at

OPS = ("norm_act", "update")

module, reason = extension.load("_cuda")


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why nothing of this runs there, in one line; `None` if it does."""
    if module is None:
        return f"cuda: {reason}"
    return refuses_at("cuda", tensors.DEVICE, device, dtype) or tensors.refusal(device)


from kernels.cuda import norm_act, tensors, update  # noqa: E402

__all__ = ["norm_act", "update"]
