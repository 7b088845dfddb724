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
    here = Path(__file__).resolve().parent
    try:
        module = import_module(f"kernels.{name}")
        if Path(module.__file__).resolve().parent != here:  # an editable install finds it anywhere
            raise ModuleNotFoundError(f"{module.__file__} is another checkout's")
        return module, None
    except ImportError as error:
        note = here / f"{name}_missing.txt"
        if note.is_file():
            return None, note.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            return None, f"not built; `pip install -e .` builds it where there is {NEEDS[name]}"
        return None, f"built, but it does not load: {error}"
