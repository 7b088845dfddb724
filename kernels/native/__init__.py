"""The compiled module `kernels._native`, or the reason why there is none.

`module` is the extension or None; `reason` is None or one line that says what is wrong.
"""

import torch

from kernels import extension
from kernels.tensors import refuses as refuses_at

OPS = ("passes", "conv", "norm_act", "update", "lstm")

module, reason = extension.load("_native")


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why nothing of this runs there, in one line; `None` if it does."""
    if module is None:
        return f"native: {reason}"
    return refuses_at("native", "cpu", device, dtype)


from kernels.native import conv, lstm, norm_act, passes, update  # noqa: E402

__all__ = ["conv", "lstm", "norm_act", "passes", "update"]
