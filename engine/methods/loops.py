"""Which code runs the inner loop of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import unroll
from engine.methods import METHODS, once
from engine.models.backbone import Backbone
from engine.models.interface import Model

if TYPE_CHECKING:
    from engine.config import Config
    from engine.methods.base import Loop


def loop(cfg: Config, model: Model) -> Loop:
    """The method's own; else the unroll, or `once` where features are the same in all steps."""
    if own := METHODS[cfg.method].loop:
        return own(cfg, model)
    shared = (cfg.norm_weights, cfg.norm_stats) == ("shared", "shared")
    return once if cfg.adapt == "head" and shared and isinstance(model, Backbone) else unroll
