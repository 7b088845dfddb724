"""Networks that the unroll can train, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.methods import METHODS
from engine.models.backbone import Backbone
from engine.models.resnet12 import ResNet12

if TYPE_CHECKING:
    from engine.config import Config
    from engine.models.interface import Model


def network(cfg: Config) -> Model:
    """The network of a configuration: its method's own, or one of the engine's."""
    if own := METHODS[cfg.method].model:
        return own(cfg)
    return ResNet12.of(cfg) if cfg.network == "resnet12" else Backbone.of(cfg)
