"""The compiled module `kernels._native`, or the reason why there is none.

`module` is the extension or None; `reason` is None or one line that says what is wrong. The build
writes its own reason beside this file when it fails, because installers hide what a build prints.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

NOTE = Path(__file__).parents[1] / "_native_missing.txt"


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return import_module("kernels._native"), None
    except ImportError as error:
        if NOTE.is_file():
            return None, NOTE.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            return None, "not built; `pip install -e .` builds it where there is a C++17 compiler"
        return None, f"built, but it does not load: {error}"


module, reason = _load()
