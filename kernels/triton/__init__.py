"""The backend of Triton kernels, for GPUs, and on a CPU by Triton's interpreter for tests.

`reason` is None, or one line that says why there is no Triton here.
"""

import os

import torch

OPS = ("passes", "conv", "norm_act", "update", "gather")

try:
    import triton  # noqa: F401
except ImportError as error:
    reason: str | None = f"Triton does not load: {error}; `pip install triton` where there is a GPU"
else:
    reason = None

interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why nothing of this runs there, in one line; `None` if it does."""
    if reason:
        return f"triton: {reason}"
    if device.type != ("cpu" if interpreted else "cuda"):
        where = "a CPU, as TRITON_INTERPRET=1 is set" if interpreted else "a GPU"
        return f"triton runs on {where}, not on {device.type}"
    # Launches go there, wherever their tensors are.
    if device.index is not None and not interpreted and device.index != torch.cuda.current_device():
        return f"triton runs on the current GPU, not on {device}; use torch.cuda.device"
    if dtype != torch.float32:
        return f"triton takes float32, not {str(dtype)[6:]}"
    return None


if reason is None:
    from kernels.triton import conv, gather, norm_act, passes, update

    __all__ = ["conv", "gather", "norm_act", "passes", "update"]
