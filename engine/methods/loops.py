"""Which code runs the inner loop of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine import unroll
from engine.methods import EMBEDDING, heads, once, prototypical
from engine.methods.embedding import ClosedForm
from engine.models.backbone import Backbone
from engine.models.interface import Model

if TYPE_CHECKING:
    from engine.config import Config


def loop(cfg: Config, model: Model) -> Any:
    """What has its `adjoint` and `adapt_and_predict`: the unroll; the unroll from prototypes; none
    but a classifier in closed form; or `once`, where features are the same in all steps.
    """
    if cfg.method in EMBEDDING:
        matching = cfg.method == "matching"
        head = heads.Matching(cfg.temperature) if matching else heads.Prototypes()
        return ClosedForm(head, cfg.train_ways or cfg.ways, cfg.ways)
    if cfg.method == "protomaml":
        return prototypical
    shared = (cfg.norm_weights, cfg.norm_stats) == ("shared", "shared")
    return once if cfg.adapt == "head" and shared and isinstance(model, Backbone) else unroll
