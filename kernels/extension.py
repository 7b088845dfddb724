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
        lies = Path(getattr(module, "__file__", None) or "").parent.resolve()
        if lies != here:  # an editable install finds that of its checkout from any other
            raise ModuleNotFoundError(f"the one in {lies} is of another checkout")
        _look_at_sources(name)
        return module, None
    except ImportError as error:
        note = here / f"{name}_missing.txt"
        if note.is_file():
            return None, note.read_text(encoding="utf-8").strip()
        if isinstance(error, ModuleNotFoundError):
            other = "" if error.name else f", {error}"  # one that was found has no such name
            cure = f"`pip install -e .` builds it where there is {NEEDS[name]}"
            return None, f"not built{other}; {cure}"
        return None, f"built, but it does not load: {error}"


def sources_of(checkout: Path) -> str:
    """The C++ sources by their content."""
    digest, kinds = hashlib.sha256(), (".cpp", ".h", ".cu", ".cuh")
    sources = (path for path in (checkout / "csrc").rglob("*.*") if path.suffix in kinds)
    for path in [checkout / "CMakeLists.txt", *sorted(filter(Path.is_file, sources))]:
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
    try:
        same = stamp.read_text(encoding="utf-8").strip() == sources_of(CHECKOUT)
    except OSError:
        return
    if not same:
        warnings.warn(
            f"kernels.{name} was built from other sources than csrc/ has now: run "
            "`pip install -e .` again",
            RuntimeWarning,
            stacklevel=4,
        )
