"""Numbers of a method's own, which all tasks share: the end of the one row of `Params.norm`, so
that they are learned, saved and gathered of all ranks as what the inner loop leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.methods import METHODS
from engine.models.interface import Model, Params

if TYPE_CHECKING:
    from engine.config import Config


def width(cfg: Config, model: Model) -> int:
    """How many."""
    own = METHODS[cfg.method].own
    return own(cfg, model) if own else 0


def learned(cfg: Config, model: Model) -> int:
    """How many of them are parameters."""
    return 0 if METHODS[cfg.method].averaged else width(cfg, model)


def begun(cfg: Config, model: Model, norm: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of batch norm [K or 1, G] with initial numbers after them."""
    if not (count := width(cfg, model)):
        return norm
    begin = METHODS[cfg.method].begin
    own = begin(cfg, model, generator).to(norm) if begin else norm.new_zeros(count)
    return torch.cat([norm, own.unsqueeze(0)], 1)


def split(model: Model, params: Params) -> tuple[Params, Tensor]:
    """Those of the network, and the numbers beside them [R]."""
    end = 2 * model.stat_width
    return params._replace(norm=params.norm[:, :end]), params.norm[0, end:]


def learned_rows(cfg: Config, model: Model, norm: Tensor) -> Tensor:  # [K or 1, G + R]
    """A gradient with 0 for the numbers that are no parameters."""
    if not METHODS[cfg.method].averaged:
        return norm
    end = 2 * model.stat_width
    return torch.cat([norm[:, :end], torch.zeros_like(norm[:, end:])], 1)


def averaged(cfg: Config, model: Model, params: Params, gradient: Params) -> Params:
    """With the mean of what the tasks left, where that is no gradient but a state."""
    if not METHODS[cfg.method].averaged:
        return params
    end = 2 * model.stat_width
    of_tasks = gradient.norm[:, end:] / cfg.tasks
    return params._replace(norm=torch.cat([params.norm[:, :end], of_tasks], 1))
