"""Finds the package's compiled modules, with the standard library alone.

The build writes its own reason beside this file when it fails, because installers hide what a build
prints.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

NEEDS = {"_native": "a C++17 compiler", "_cuda": "an nvcc"}


def load(name: str) -> tuple[ModuleType | None, str | None]:
    """`kernels.<name>`, or None and one line that says what is wrong."""
    try:
        return import_module(f"kernels.{name}"), None
    except ImportError as error:
        note = Path(__file__).with_name(f"{name}_missing.txt")
        if note.is_file():
            return None, note.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            return None, f"not built; `pip install -e .` builds it where there is {NEEDS[name]}"
        return None, f"built, but it does not load: {error}"
