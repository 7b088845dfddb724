"""Attention composed of products: fused attention has no second derivative, and no rule of vmap's.

Torch's switches for it are the process's. So they are turned by the first thread that comes in, and
turned back by the last one that leaves, in whatever order these come and go.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_lock = threading.Lock()
_restore = ExitStack()  # what the last one does
_inside = 0


@contextmanager
def composed_attention() -> Iterator[None]:
    """Inside, for the whole process. Results depend on who else is inside, unless all of what they
    are made of is.
    """
    global _inside
    with _lock:
        if not _inside:
            _turn()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore.close()


def _turn() -> None:
    mha = torch.backends.mha
    _restore.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
    mha.set_fastpath_enabled(False)  # whole layers at once, in evaluation mode
    _restore.enter_context(sdpa_kernel(SDPBackend.MATH))
