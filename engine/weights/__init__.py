"""Trained networks that come with the package; README.md says of what, how, and how good they are.

Each is a checkpoint whose Adam moments are zero: what takes a run takes its name.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def named(path: Path) -> Path:
    """The file of the network of that name, unless something else lies there; else the path."""
    if not os.path.lexists(path) and str(path) in names():
        return FOLDER / f"{path}.pt"
    return path
