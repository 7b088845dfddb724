"""The native build from a copy of its sources: with a compiler, without one, with an error."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pybind11", reason="building needs pybind11")

ROOT = Path(__file__).resolve().parents[1]
REPORT = "from kernels import native; print(native.module is not None, native.reason, sep='|')"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the build reads, and of the package `kernels` only what finds the module."""
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "kernels" / "native").mkdir(parents=True)
    (tmp_path / "kernels" / "__init__.py").touch()
    shutil.copy(ROOT / "kernels" / "native" / "__init__.py", tmp_path / "kernels" / "native")
    return tmp_path


def python(checkout: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(checkout: Path, **environment: str) -> tuple[list[str], list[str]]:
    """Lines in which the build speaks of itself, and what `kernels.native` then says."""
    log = python(checkout, "setup.py", "build_ext", "--inplace", **environment)
    said = [line for line in log.splitlines() if line.startswith("mamlpp: ")]
    # -S: an installed editable copy would lend its compiled module to this one
    return said, python(checkout, "-S", "-c", REPORT).strip().split("|")


def test_no_compiler_is_one_line_and_a_reason(checkout: Path):
    said, (found, reason) = build(checkout, CXX="/nonexistent")
    assert len(said) == 1 and "no native module" in said[0]
    assert found == "False" and "/nonexistent" in reason


def test_source_that_does_not_compile_names_the_error(checkout: Path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    for source in (checkout / "csrc").rglob("*.cpp"):
        source.write_text("")  # together they take a minute
    (checkout / "csrc" / "bindings.cpp").write_text("#error out of order\n")
    said, (found, reason) = build(checkout)
    assert len(said) == 1 and "out of order" in said[0]
    assert found == "False" and "bindings.cpp:1" in reason


def test_builds_without_a_warning_and_replaces_a_failure(checkout: Path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    note = checkout / "kernels" / "_native_missing.txt"
    note.write_text("an earlier failure\n")
    said, (found, reason) = build(checkout, CXXFLAGS="-Werror")
    assert said == [] and not note.exists()
    assert (found, reason) == ("True", "None")


def test_a_failed_build_leaves_no_stale_module(checkout: Path):
    stale = python(
        checkout, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    ).strip()
    module = checkout / "kernels" / f"_native{stale}"
    module.touch()
    build(checkout, CXX="/nonexistent")
    assert not module.exists()
