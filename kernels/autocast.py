"""What the ops do under torch.autocast: what torch's own ops that they stand for do."""

import torch
from torch import Tensor

anywhere = torch._C._is_any_autocast_enabled  # whether it is worth while to look where


def enabled(like: Tensor) -> bool:
    kind = like.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In autocast's dtype, as for `F.conv2d`."""
    if not enabled(tensors[0]):
        return tensors
    return _cast(tensors, torch.get_autocast_dtype(tensors[0].device.type))


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In float32, as for `F.cross_entropy`."""
    return _cast(tensors, torch.float32) if enabled(tensors[0]) else tensors


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the widest dtype among them, as for `torch.addcmul`."""
    if not enabled(tensors[0]):
        return tensors
    floating = [t.dtype for t in tensors if t.is_floating_point()]
    if not floating:
        return tensors
    return _cast(tensors, max(floating, key=lambda dtype: torch.finfo(dtype).bits))


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All but float64, which autocast leaves alone, as what has no floating point."""
    return tuple(
        t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )
