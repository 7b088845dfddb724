"""Finds the package's compiled modules, with the standard library alone.

The build writes its own reason beside this file when it fails, because installers hide what a build
prints.
"""

import hashlib
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

NEEDS = {"_native": "a C++17 compiler", "_cuda": "an nvcc"}
CHECKOUT = Path(__file__).resolve().parents[1]  # where the sources are, too, or site-packages


def load(name: str) -> tuple[ModuleType | None, str | None]:
    """`kernels.<name>`, or None and one line that says what is wrong."""
    here = Path(__file__).resolve().parent
    try:
        module = import_module(f"kernels.{name}")
        if Path(module.__file__).resolve().parent != here:  # an editable install finds it anywhere
            raise ModuleNotFoundError(f"{module.__file__} is another checkout's")
        _look_at_sources(name)
        return module, None
    except ImportError as error:
        note = here / f"{name}_missing.txt"
        if note.is_file():
            return None, note.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            return None, f"not built; `pip install -e .` builds it where there is {NEEDS[name]}"
        return None, f"built, but it does not load: {error}"


def sources_of(checkout: Path) -> str:
    """The C++ sources by their content."""
    digest = hashlib.sha256()
    for path in [checkout / "CMakeLists.txt", *sorted((checkout / "csrc").rglob("*.*"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def stamp_of(module: Path) -> Path:
    """Beside a module that was built in a checkout: what `sources_of` it were then."""
    return module.with_name(f"{module.name.partition('.')[0]}_sources.txt")


def _look_at_sources(name: str) -> None:
    """A warning where the sources are others than the module was built of, as after a pull."""
    stamp = stamp_of(Path(__file__).resolve().with_name(name))
    if not stamp.is_file() or not (CHECKOUT / "csrc").is_dir():
        return
    if stamp.read_text(encoding="utf-8").strip() != sources_of(CHECKOUT):
        warnings.warn(
            f"kernels.{name} was built from other sources than csrc/ has now: run "
            "`pip install -e .` again",
            RuntimeWarning,
            stacklevel=4,
        )
