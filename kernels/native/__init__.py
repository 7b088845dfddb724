"""The compiled module `kernels._native`, or the reason why there is none.

`module` is the extension or None; `reason` is None or one line that says what is wrong. The build
writes its own reason beside this file when it fails, because installers hide what a build prints.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

OPS = ("passes", "conv", "norm_act", "update")
NOTE = Path(__file__).parents[1] / "_native_missing.txt"


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return import_module("kernels._native"), None
    except ImportError as error:
        if NOTE.is_file():
            return None, NOTE.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            return None, "not built; `pip install -e .` builds it where there is a C++17 compiler"
        return None, f"built, but it does not load: {error}"


module, reason = _load()


def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why nothing of this runs there, in one line; `None` if it does."""
    if module is None:
        return f"native: {reason}"
    if device.type != "cpu":
        return f"native runs on a CPU, not on {device.type}"
    if dtype not in tensors.DTYPES:
        return f"native takes float32 and float64, not {str(dtype)[6:]}"
    return None


from kernels.native import conv, norm_act, passes, tensors, update  # noqa: E402

__all__ = ["conv", "norm_act", "passes", "update"]
