"""Builds the compiled modules by CMake, Ninja and pybind11. Everything else is in pyproject.toml.

Each of them is optional: where it cannot be built the install succeeds, says so in one line, and
leaves the reason beside the package for `kernels.extension` to report. MAMLPP_CUDA=OFF in the
environment leaves the CUDA module out.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
WITHOUT = {
    "_native": "no native module, a CPU runs everything in plain PyTorch",
    "_cuda": "no CUDA module, a GPU runs everything by Triton or in plain PyTorch",
}


class BuildFailed(Exception):
    pass


def find_tool(name: str) -> str | None:
    """First `name` that runs, beside this Python or on PATH.

    It has to be tried: in an isolated build the launchers that a virtual environment has on PATH
    are found but cannot import their own package.
    """
    for folder in [str(Path(sys.executable).parent), *os.get_exec_path()]:
        path = shutil.which(name, path=folder)
        try:
            if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
                return path
        except OSError:
            continue
    return None


def summary(output: str) -> str:
    """The first error in what CMake or the compiler printed, on one line."""
    cmake_error = re.search(r"^CMake Error[^\n]*\n+((?:(?: +[^\n]*)?\n)+)", output, re.MULTILINE)
    if cmake_error:
        return " ".join(cmake_error[1].split())
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = (line for line in lines if re.search(r"\berror\b[^:]*:", line, re.IGNORECASE))
    return next(errors, lines[-1] if lines else "")


def run(*command: str) -> None:
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(result.stdout)
    if result.returncode:
        raise BuildFailed(summary(result.stdout) or f"{command[0]} exited {result.returncode}")


def build(module: str, folder: str, output: Path) -> None:
    """Configure and build one module in `folder`; it is written to the folder `output`."""
    try:
        import pybind11
    except ImportError:
        raise BuildFailed("pybind11 is not installed") from None
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    if cmake is None:
        raise BuildFailed("cmake was not found")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    run(
        cmake, "-S", str(ROOT), "-B", folder, *generator,
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DMAMLPP_OUTPUT_DIR={output}",
        f"-DMAMLPP_CUDA={os.environ.get('MAMLPP_CUDA', 'AUTO')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )  # fmt: skip
    left_out = Path(folder, f"{module}_left_out.txt")
    if left_out.is_file():
        raise BuildFailed(left_out.read_text(encoding="utf-8"))
    run(cmake, "--build", folder, "--target", module, "--parallel", "--config", "Release")


class BuildModules(build_ext):
    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="mamlpp-") as folder:
            for ext in self.extensions:
                self.build_module(ext, folder)

    def build_module(self, ext: Extension, folder: str) -> None:
        name, file = ext.name.rpartition(".")[2], Path(self.get_ext_fullpath(ext.name)).resolve()
        note = file.with_name(f"{name}_missing.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        try:
            build(name, folder, file.parent)
            if not file.is_file():
                raise BuildFailed(f"the build did not make {file.name}")
        except BuildFailed as error:
            note.write_text(f"not built: {error}\n", encoding="utf-8")
            print(f"mamlpp: {WITHOUT[name]} ({error})")


SOURCES = ["CMakeLists.txt", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*"))]

setup(
    ext_modules=[
        Extension(f"kernels.{name}", sources=[], depends=SOURCES, optional=True) for name in WITHOUT
    ],
    cmdclass={"build_ext": BuildModules},
    # needed for the build alone, and only where the machine has none that works
    setup_requires=[name for name in ("cmake", "ninja") if find_tool(name) is None],
)
