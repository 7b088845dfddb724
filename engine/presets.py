"""The published protocols: what each preset sets, per data set.

``maml++`` and ``maml`` follow arXiv 1810.09502 (its protocol; where the paper is silent, its
authors' code of April 2019); ``htym-2019`` and ``htym-head`` follow that code
(HowToTrainYourMAMLPytorch) of April 2019 and of today. ``finn-2017`` is the code of MAML itself
(`engine.methods.maml` says where they differ).
"""

from __future__ import annotations

from typing import Any

from engine.methods import METHODS
from engine.methods.base import NEUTRAL

METHOD = "maml++"  # unless a preset or a flag says otherwise
PRESETS = ("maml++", "maml", "htym-2019", "htym-head", "finn-2017")
RESNET12_SLOPE = 0.1  # as everybody's (Lee et al. 2019, and its code)

_OMNIGLOT = {
    "image_size": 28,
    "channels": 1,
    "targets": 1,
    "filters": 64,
    "clamp": 0.0,
    "msl_epochs": 10,
}
_NATURAL = {
    "image_size": 84,
    "channels": 3,
    "targets": 15,
    "filters": 48,
    "clamp": 10.0,
    "msl_epochs": 15,
}
_COMMON = {
    "split": "paper",
    "ways": 5,
    "shots": 1,
    "stages": 4,
    "downsample": "pool",
    "negative_slope": 0.01,
    "steps": 5,
    "eval_steps": 0,
    "rates": "learned",
    "norm_weights": "per-step",
    "norm_stats": "per-step",
    "norm_momentum": 0.1,
    "norm_eps": 1e-5,
    "train_norm_statistics": "batch",
    "iterations": 500,
    "lr": 1e-3,
    "beta1": 0.9,
    "seed": 0,
    "norm_statistics": "batch",
    "protocol": "transductive",
    "eval_tasks": 600,
    "ensemble": 5,
}


def preset_fields(preset: str, dataset: str, explicit: dict[str, Any]) -> dict[str, Any]:
    """Every field that a preset and a method decide, given the explicit ones that others depend
    on."""
    omniglot = dataset == "omniglot"
    chosen = _COMMON | (_OMNIGLOT if omniglot else _NATURAL)
    ways, shots = ({**chosen, **explicit}[name] for name in ("ways", "shots"))
    chosen |= _PROTOCOLS[preset](omniglot, ways, shots)
    if preset == "finn-2017":
        chosen |= _finn(omniglot, {**chosen, **explicit})
    if explicit.get("network") == "resnet12":
        chosen["negative_slope"] = RESNET12_SLOPE
    if preset == "maml":
        chosen |= NEUTRAL  # min_lr is absent: no annealing
        del chosen["min_lr"]
    if "epochs" in explicit:
        scale_epochs(chosen, explicit["epochs"], chosen["epochs"])
    chosen.setdefault("min_lr", {**chosen, **explicit}["lr"])
    return chosen | of_method({"dataset": dataset, **chosen, **explicit})


def of_method(settings: dict[str, Any]) -> dict[str, Any]:
    """What the method of these settings says of others."""
    method = METHODS.get(settings.get("method", METHOD))  # one that is not known is refused later
    return method.settings(settings) if method else {}


def _paper(omniglot: bool, ways: int, shots: int) -> dict[str, Any]:
    return {
        "rotations": "classes" if omniglot else "none",
        "tasks": 16 if omniglot else 4 if shots == 1 else 2,
        "inner_rate": 0.1 if omniglot else 0.01,
        "epochs": 150,
        "min_lr": 1e-5,
        "beta2": 0.99,
        "first_order_epochs": 50,
        "task_reduction": "sum",
    }


def _2019(omniglot: bool, ways: int, shots: int) -> dict[str, Any]:
    few = 8 if (ways, shots) == (20, 5) else 16
    return _reference(omniglot) | {
        "tasks": few if omniglot else 4 if shots == 1 else 2,
        "inner_rate": 0.1 if omniglot else 0.01,
        # second order when the zero-based epoch exceeds 10: eleven epochs without
        "first_order_epochs": 0 if omniglot else 11,
        "task_reduction": "sum",
    }


def _head(omniglot: bool, ways: int, shots: int) -> dict[str, Any]:
    return _reference(omniglot) | {
        "tasks": 8 if omniglot else 2,
        "inner_rate": 0.1,
        "first_order_epochs": 0,
        "task_reduction": "mean",
    }


def _reference(omniglot: bool) -> dict[str, Any]:
    annealing = {"min_lr": 1e-5} if omniglot else {}
    return annealing | {
        "rotations": "augment" if omniglot else "none",
        "epochs": 100,
        "beta2": 0.999,
    }


def _original(omniglot: bool, ways: int, shots: int) -> dict[str, Any]:
    return {
        "method": "maml",
        "rotations": "augment" if omniglot else "none",
        "filters": 64 if omniglot else 32,
        "downsample": "stride" if omniglot else "pool",
        "negative_slope": 0.0,
        "norm_eps": 1e-3,
        "tasks": 4 if not omniglot else 32 if ways == 5 else 16,
        "targets": shots if omniglot else 15,
        "eval_targets": shots,
        "steps": 1 if omniglot and ways == 5 else 5,
        "eval_steps": 10 if not omniglot else 3 if ways == 5 else 5,
        "epochs": 120,
        "beta2": 0.999,
        "first_order_epochs": 0,
        "task_reduction": "mean",
        "ensemble": 1,
    }


def _finn(omniglot: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Its rate and its bound, of sums over a set divided by S, for losses that are means."""
    ways, shots, targets = (settings[name] for name in ("ways", "shots", "targets"))
    alpha = 0.01 if not omniglot else 0.4 if ways == 5 else 0.1
    clamp = 0.0 if omniglot else 10.0 * shots / (ways * targets)
    return {"inner_rate": ways * alpha, "clamp": clamp}


_PROTOCOLS = {
    "maml++": _paper,
    "maml": _paper,
    "htym-2019": _2019,
    "htym-head": _head,
    "finn-2017": _original,
}


def scale_epochs(chosen: dict[str, Any], epochs: int, usual: int) -> None:
    """Keeps the shape of a protocol of `usual` epochs, as far as it says it, when its length
    changes, so that a short run is not first order to its end by accident."""
    if "msl_epochs" in chosen:
        chosen["msl_epochs"] = -(-chosen["msl_epochs"] * epochs // usual)
    if "first_order_epochs" in chosen:
        chosen["first_order_epochs"] = chosen["first_order_epochs"] * epochs // usual
