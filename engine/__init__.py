"""MAML++: the algorithm, from images to a tested model. It knows nothing of kernel backends."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The public names, each imported when it is first asked for: torch takes seconds.
_PUBLIC = {
    "Backbone": "engine.models.backbone",
    "Episode": "engine.episodes",
    "FewShotClassifier": "engine.classifier",
    "Learner": "engine.learner",
    "ResNet12": "engine.models.resnet12",
    "Tasks": "engine.tasks",
    "UserError": "engine.errors",
    "fit": "engine.fitting",
    "keep_freed_memory": "engine.runtime.workers",
    "msl_weights": "engine.schedules",
    "second_order": "engine.schedules",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _stranger() -> str | None:
    """What is in the way of our package `kernels`, as a folder of that name where the program was
    started: Python looks there first. In one line, or None.
    """
    spec = find_spec("kernels")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    if any((place / "norm_act.py").is_file() for place in places):
        return None
    ours = Path(__file__).resolve().parents[1] / "kernels"
    if spec is None:
        return f"the package `kernels` of {ours.parent} is not found; install mamlpp again"
    found = spec.origin or places[0]
    return f"{found} is in the way of {ours}: rename it, or start in another folder"


if _problem := _stranger():
    # By `python -m engine.train`, or `mamlpp`, this runs before any line of the command's own.
    if [Path(name).name for name in sys.argv[:1]] in (["-m"], ["mamlpp"]):
        from engine.errors import complain

        complain(f"error: {_problem}")
        raise SystemExit(2)
    raise ImportError(_problem)
