"""The build of the compiled modules from a copy of their sources: with compilers, without, with
errors.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pybind11", reason="building needs pybind11")

ROOT = Path(__file__).resolve().parents[1]
REPORT = "from kernels.extension import load; print(*load({!r}), sep='|')"

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(
    shutil.which(os.environ.get("CUDACXX", "nvcc")) is None, reason="no nvcc"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the build reads, and of the package `kernels` only what finds the modules."""
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    shutil.copy(ROOT / "kernels" / "extension.py", tmp_path / "kernels")
    return tmp_path


def python(checkout: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, "MAMLPP_CUDA": "OFF", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(checkout: Path, **environment: str) -> list[str]:
    """Lines in which the build speaks of itself."""
    log = python(checkout, "setup.py", "build_ext", "--inplace", **environment)
    return [line for line in log.splitlines() if line.startswith("mamlpp: ")]


def found(checkout: Path, module: str) -> tuple[bool, str]:
    """Whether the package finds a module, and the reason if not."""
    # -S: an installed editable copy would lend its compiled module to this one
    report = python(checkout, "-S", "-c", REPORT.format(module)).strip()
    is_there, reason = report.rsplit("|", 1)
    return is_there != "None", reason


def emptied(checkout: Path, pattern: str) -> None:
    """Sources that a test does not need: together they take a minute."""
    for source in (checkout / "csrc").rglob(pattern):
        source.write_text("")


def test_no_compiler_is_one_line_and_a_reason(checkout: Path):
    said = [line for line in build(checkout, CXX="/nonexistent") if "no native module" in line]
    is_there, reason = found(checkout, "_native")
    assert len(said) == 1 and not is_there and "/nonexistent" in reason


@needs_compiler
def test_source_that_does_not_compile_names_the_error(checkout: Path):
    emptied(checkout, "*.cpp")
    (checkout / "csrc" / "bindings.cpp").write_text("#error out of order\n")
    said = [line for line in build(checkout) if "no native module" in line]
    assert len(said) == 1 and "out of order" in said[0]
    is_there, reason = found(checkout, "_native")
    assert not is_there and "bindings.cpp:1" in reason


@needs_compiler
def test_builds_without_a_warning_and_replaces_a_failure(checkout: Path):
    note = checkout / "kernels" / "_native_missing.txt"
    note.write_text("an earlier failure\n")
    assert not any("native" in line for line in build(checkout, CXXFLAGS="-Werror"))
    assert not note.exists() and found(checkout, "_native") == (True, "None")


def test_a_failed_build_leaves_no_stale_module(checkout: Path):
    stale = python(
        checkout, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    ).strip()
    modules = [checkout / "kernels" / f"{name}{stale}" for name in ("_native", "_cuda")]
    for module in modules:
        module.touch()
    build(checkout, CXX="/nonexistent")
    assert not any(module.exists() for module in modules)


@needs_compiler
@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"MAMLPP_CUDA": "OFF"}, "MAMLPP_CUDA is OFF"),
        ({"MAMLPP_CUDA": "AUTO", "CUDACXX": "/nonexistent"}, "no nvcc was found"),
    ],
)
def test_no_nvcc_is_one_line_and_a_reason_and_leaves_the_native_module(
    checkout: Path, environment: dict[str, str], why: str
):
    emptied(checkout, "*.cpp")
    said = build(checkout, **environment)
    assert len(said) == 1 and "no CUDA module" in said[0] and why in said[0]
    assert found(checkout, "_cuda") == (False, f"not built: {why}")


@needs_compiler
@needs_nvcc
def test_a_cuda_source_that_does_not_compile_leaves_the_native_module(checkout: Path):
    emptied(checkout, "*.cpp")
    emptied(checkout, "*.cu")
    (checkout / "csrc" / "cuda" / "update.cu").write_text("#error out of order\n")
    said = build(checkout, MAMLPP_CUDA="AUTO")
    assert len(said) == 1 and "no CUDA module" in said[0] and "out of order" in said[0]
    is_there, reason = found(checkout, "_cuda")
    assert not is_there and "update.cu" in reason


@needs_compiler
@needs_nvcc
def test_builds_the_cuda_module_without_a_warning(checkout: Path):
    emptied(checkout, "bindings.cpp")
    emptied(checkout, "bindings_ops.cpp")
    emptied(checkout, "cpu/*.cpp")
    warnings = "-Werror all-warnings -Xcompiler=-Werror"
    assert build(checkout, MAMLPP_CUDA="ON", CXXFLAGS="-Werror", CUDAFLAGS=warnings) == []
    assert found(checkout, "_cuda") == (True, "None")
