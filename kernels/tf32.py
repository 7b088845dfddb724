"""Torch's own settings of TF32 on a GPU. From 2.9 on they have other names, and where somebody has
set these the old ones may raise when they are read, but not when they are set.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUDNN, _MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul
_OLD = [(_CUDNN, "allow_tf32"), (_MATMUL, "allow_tf32")]
_NEW = []
if hasattr(_CUDNN, "conv"):
    _NEW = [(of, "fp32_precision") for of in (_CUDNN.conv, _CUDNN.rnn, _MATMUL)]


def state() -> tuple:
    """Of its convolutions first."""
    return tuple(getattr(*setting) for setting in _NEW or _OLD)


def of_convolutions() -> bool:
    """Whether they round their float32 operands to TF32."""
    return state()[0] in (True, "tf32")


@contextmanager
def off() -> Iterator[None]:
    """Products are those of float32 inside the block."""
    before = [(*setting, getattr(*setting)) for setting in _NEW]
    try:
        before[:0] = [(*setting, getattr(*setting)) for setting in _OLD]
        turned = [(*setting, False) for setting in _OLD]
    except RuntimeError:  # somebody has set some of the new ones
        turned = [(*setting, "ieee") for setting in _NEW]
    for setting in turned:
        setattr(*setting)
    try:
        yield
    finally:
        for setting in before:
            setattr(*setting)
