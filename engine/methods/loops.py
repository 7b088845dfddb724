"""Which code runs the inner loop of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import unroll
from engine.methods import once
from engine.models.backbone import Backbone
from engine.models.interface import Model

if TYPE_CHECKING:
    from types import ModuleType

    from engine.config import Config


def loop(cfg: Config, model: Model) -> ModuleType:
    """What has its `adjoint` and `adapt_and_predict`: the unroll, or `once` where the network has
    features that are the same in all steps.
    """
    shared = (cfg.norm_weights, cfg.norm_stats) == ("shared", "shared")
    return once if cfg.adapt == "head" and shared and isinstance(model, Backbone) else unroll
