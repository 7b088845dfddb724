"""The CUDA backend on a CPU: its Python and its bindings as they are, over a module whose kernels
run one thread after the other (tests/native/emulated.cpp).
"""

import ctypes
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from kernels import cuda
from kernels.cuda import norm_act, tensors, update

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("tests/native/emulated.cpp", "csrc/bindings_cuda.cpp")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden")
NAMES = ('-DMAMLPP_VERSION="0"', '-DMAMLPP_CUDA_ARCHITECTURES="none: emulated"')
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")


def build(folder: Path) -> Path:
    pybind11 = pytest.importorskip("pybind11", reason="building needs pybind11")
    import sysconfig

    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    file = folder / "_cuda.so"
    command = [compiler, *FLAGS, *NAMES, *WARNINGS]
    command += [word for path in includes for word in ("-isystem", path)]
    command += ["-x", "c++", *SOURCES, "-o", str(file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return file


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def in_place(file: Path) -> Iterator[None]:
    """`kernels.cuda` runs on CPU tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "module", load(file))
        patch.setattr(cuda, "reason", None)
        patch.setattr(tensors, "DEVICE", "cpu")
        patch.setattr(tensors, "stream", lambda like: (0, 0))
        for user in (norm_act, update):
            patch.setattr(user, "stream", tensors.stream)
        patch.setattr(tensors, "refusal", lambda device: None)
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    """What the functions made of another module."""
    norm_act._shape.cache_clear()


@contextmanager
def backwards(file: Path) -> Iterator[None]:
    """Blocks and threads run in the opposite order."""
    library = ctypes.CDLL(str(file))
    library.emulate_backwards(1)
    try:
        yield
    finally:
        library.emulate_backwards(0)
