"""Networks that the unroll can train, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.models.backbone import Backbone
from engine.models.resnet12 import ResNet12

if TYPE_CHECKING:
    from engine.config import Config


def network(cfg: Config) -> Backbone | ResNet12:
    """The engine's own network of a configuration."""
    return ResNet12.of(cfg) if cfg.network == "resnet12" else Backbone.of(cfg)
