"""The build of the compiled modules from a copy of their sources: with compilers, without, with
errors; what it keeps, and what it says. Whole modules: MAMLPP_SLOW=1 python -m pytest
tests/test_install.py
"""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slow import slow

pytest.importorskip("pybind11", reason="building needs pybind11")

ROOT = Path(__file__).resolve().parents[1]
REPORT = "from kernels.extension import load; print(*load({!r}), sep='|')"
# A module of nothing, for tests of the build alone.
STUB = """#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr,
                             nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module); }
"""

# .ci/run installs with the same flags
IN_FULL = slow("builds a module in full")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(
    shutil.which(os.environ.get("CUDACXX", "nvcc")) is None, reason="no nvcc"
)


def checked_out(place: Path) -> Path:
    """What the build reads, and of the package `kernels` only what finds the modules."""
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    shutil.copytree(ROOT / "csrc", place / "csrc")
    (place / "kernels").mkdir()
    (place / "kernels" / "__init__.py").touch()
    shutil.copy(ROOT / "kernels" / "extension.py", place / "kernels")
    return place


def stubbed(checkout: Path) -> Path:
    """So that it compiles in seconds."""
    emptied(checkout, "*.cpp", "*.h")
    (checkout / "csrc" / "bindings.cpp").write_text(STUB)
    return checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return checked_out(tmp_path)


@pytest.fixture
def stub(checkout: Path) -> Path:
    return stubbed(checkout)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory) -> Path:
    stub = stubbed(checked_out(tmp_path_factory.mktemp("built")))
    assert compiled(stub) >= {"bindings", "update.cpp"}
    return stub


@pytest.fixture
def built(built_once: Path) -> Iterator[Path]:
    """A stub whose native module was built, for tests that go on from there by its own flags."""
    yield built_once
    (built_once / "csrc" / "cpu" / "update.cpp").write_text("")


def with_defaults(environment: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "CI": "1", "MAMLPP_CUDA": "OFF", **environment}


def python(checkout: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=with_defaults(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


BUILD = ("setup.py", "build_ext", "--inplace")
PASSING = re.compile("mamlpp: (building|built|waiting|kernels)")


def spoken(log: str) -> list[str]:
    """Lines in which the build speaks of itself."""
    return [line for line in log.splitlines() if line.startswith("mamlpp: ")]


def build(checkout: Path, **environment: str) -> list[str]:
    """Those of them that say what there will not be."""
    said = spoken(python(checkout, *BUILD, **environment))
    return [line for line in said if not PASSING.match(line)]


def compiled(checkout: Path, **environment: str) -> set[str] | None:
    """The sources that the build compiled; `None` if it took what there was."""
    said = spoken(python(checkout, *BUILD, **environment))
    if "mamlpp: kernels._native was built from these sources before" in said:
        return None
    steps = (re.search(r"\d of \d+ \(([\w.]+)", line) for line in said)
    return {step[1] for step in steps if step}


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def found(checkout: Path, module: str) -> tuple[bool, str]:
    """Whether the package finds a module, and the reason if not."""
    # -S: an installed editable copy would lend its compiled module to this one
    report = python(checkout, "-S", "-c", REPORT.format(module)).strip()
    is_there, reason = report.rsplit("|", 1)
    return is_there != "None", reason


def emptied(checkout: Path, *patterns: str) -> None:
    """Sources that a test does not need: together they take a minute."""
    for pattern in patterns:
        for source in (checkout / "csrc").rglob(pattern):
            source.write_text("")


def test_no_compiler_is_one_line_and_a_reason(checkout: Path):
    said = [line for line in build(checkout, CXX="/nonexistent") if "no native module" in line]
    is_there, reason = found(checkout, "_native")
    assert len(said) == 1 and not is_there and "/nonexistent" in reason


@needs_compiler
def test_source_that_does_not_compile_names_the_error(checkout: Path):
    emptied(checkout, "*.cpp", "*.h")
    (checkout / "csrc" / "bindings.cpp").write_text("#error out of order\n")
    said = [line for line in build(checkout) if "no native module" in line]
    assert len(said) == 1 and "out of order" in said[0]
    is_there, reason = found(checkout, "_native")
    assert not is_there and "bindings.cpp:1" in reason


@needs_compiler
@pytest.mark.parametrize("kind", ["stub", pytest.param("checkout", marks=IN_FULL)])
def test_builds_without_a_warning_and_replaces_a_failure(kind: str, request):
    checkout = request.getfixturevalue(kind)
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
        ({"MAMLPP_CUDA": "ON", "CUDACXX": "/nonexistent"}, "no nvcc was found"),
        ({"MAMLPP_CUDA": "yes"}, "MAMLPP_CUDA is yes; set it to ON, OFF or AUTO"),
    ],
)
def test_no_nvcc_is_one_line_and_a_reason_and_leaves_the_native_module(
    built: Path, environment: dict[str, str], why: str
):
    said = build(built, **environment)
    assert len(said) == 1 and "no CUDA module" in said[0] and why in said[0]
    assert found(built, "_cuda") == (False, f"not built: {why}")
    assert found(built, "_native") == (True, "None")


@needs_compiler
def test_no_visible_gpu_leaves_the_cuda_module_out(built: Path, tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    environment = {
        "MAMLPP_CUDA": "AUTO",
        "CUDACXX": program(tools, "nvcc", "echo release 13"),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }
    program(tools, "nvidia-smi", "echo No devices were found; exit 6")
    said = build(built, **environment)
    why = "no GPU is visible; MAMLPP_CUDA=ON builds it without one"
    assert len(said) == 1 and why in said[0]
    assert found(built, "_cuda") == (False, f"not built: {why}")
    program(tools, "nvidia-smi", "echo 'GPU 0: a card (UUID: GPU-0)'")
    assert why not in build(built, **environment)[0]  # that nvcc compiles nothing, but it is asked


@slow("compiles all CUDA sources")
@needs_compiler
@needs_nvcc
def test_a_cuda_source_that_does_not_compile_leaves_the_native_module(checkout: Path):
    emptied(checkout, "*.cpp", "*.h", "*.cu", "*.cuh")
    (checkout / "csrc" / "cuda" / "update.cu").write_text("#error out of order\n")
    said = build(checkout, MAMLPP_CUDA="ON", CUDAARCHS="80")
    assert len(said) == 1 and "no CUDA module" in said[0] and "out of order" in said[0]
    is_there, reason = found(checkout, "_cuda")
    assert not is_there and "update.cu" in reason


@IN_FULL
@needs_compiler
@needs_nvcc
def test_builds_the_cuda_module_without_a_warning(checkout: Path):
    emptied(checkout, "bindings.cpp", "bindings_ops.cpp", "cpu/*.cpp")
    warnings = "-Werror all-warnings -Xcompiler=-Werror"
    assert build(checkout, MAMLPP_CUDA="ON", CXXFLAGS="-Werror", CUDAFLAGS=warnings) == []
    assert found(checkout, "_cuda") == (True, "None")


@needs_compiler
def test_an_unchanged_checkout_compiles_nothing(built: Path):
    compiled(built)
    for path in built.rglob("*"):  # as a new checkout has them
        if path.is_file() and "build" not in path.parts:
            path.touch()
    for module in (built / "kernels").glob("_native*"):
        module.unlink()
    assert compiled(built) is None
    assert found(built, "_native") == (True, "None")


@needs_compiler
def test_a_changed_source_is_compiled_alone(built: Path):
    compiled(built)
    update = built / "csrc" / "cpu" / "update.cpp"
    update.write_text("// changed")
    assert compiled(built) == {"update.cpp"}
    update.write_text("")
    assert compiled(built) == {"update.cpp"}
    update.write_text("#error out of order")
    assert "out of order" in build(built)[0] and not found(built, "_native")[0]
    update.write_text("")
    assert compiled(built) == {"update.cpp"} and found(built, "_native")[0]


@slow("compiles three times")
@needs_compiler
def test_other_flags_and_compilers_compile_again_and_each_is_kept(stub: Path, tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    environments = {}, {"CXXFLAGS": "-DX"}, {"CXX": program(tools, "cxx", 'exec c++ "$@"')}
    for environment in environments:
        assert compiled(stub, **environment) >= {"bindings", "update.cpp"}
    for environment in environments:
        assert compiled(stub, **environment) is None


@needs_compiler
def test_a_damaged_module_is_built_again(built: Path):
    compiled(built)
    (kept,) = (built / "build").glob("native-*/out/_native*")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert compiled(built) is not None and found(built, "_native") == (True, "None")


@needs_compiler
def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(stub: Path, tmp_path_factory):
    tools = tmp_path_factory.mktemp("tools")
    slow, started = tools / "slow", tools / "started"
    script = f"""case "$*" in *update.cpp*) if [ -e {slow} ]; then
        while [ $# -gt 0 ]; do [ "$1" = -o ] && echo half > "$2"; shift; done
        touch {started}; sleep 3
    fi;; esac
    exec c++ "$@" """
    environment = {"CXX": program(tools, "cxx", script)}
    compiled(stub, **environment)
    (stub / "csrc" / "cpu" / "update.cpp").write_text("// changed")
    slow.touch()
    process = subprocess.Popen(
        [sys.executable, *BUILD],
        cwd=stub,
        env=with_defaults(environment),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not found(stub, "_native")[0]
    slow.unlink()
    assert "update.cpp" in compiled(stub, **environment)
    assert found(stub, "_native") == (True, "None")


@needs_compiler
def test_two_builds_at_once_take_turns(stub: Path):
    builds = [
        subprocess.Popen(
            [sys.executable, *BUILD],
            cwd=stub,
            env=with_defaults({}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    logs = [process.communicate(timeout=900)[0] for process in builds]
    assert [process.returncode for process in builds] == [0, 0]
    assert sorted("was built from these sources before" in log for log in logs) == [False, True]
    assert found(stub, "_native") == (True, "None")


@needs_compiler
@pytest.mark.parametrize("in_ci", [False, True])
def test_progress_is_on_stdout_and_unless_in_ci_on_the_terminal(
    built: Path, tmp_path: Path, in_ci: bool
):
    (built / "csrc" / "cpu" / "update.cpp").write_text(f"// {in_ci}")
    log = tmp_path / "log"
    environment = {**os.environ, "MAMLPP_CUDA": "OFF", "TERM": "xterm"}
    environment.pop("CI", None)
    if in_ci:
        environment["CI"] = "true"
    process, terminal = pty.fork()
    if not process:
        os.chdir(built)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
        os.execve(sys.executable, [sys.executable, *BUILD], environment)
    shown = b""
    try:
        while block := os.read(terminal, 1 << 16):
            shown += block
    except OSError:  # the other end is closed
        pass
    assert os.waitpid(process, 0)[1] == 0
    step = r"mamlpp: building kernels\._native, \d+ of \d+ \(update\.cpp, portable\), \d+ s"
    assert re.search(step, log.read_text())
    assert bool(re.search(step, shown.decode())) is not in_ci


def test_an_older_cmake_is_none():
    read = "import sys, runpy; sys.argv = ['setup.py', '--name']; f = runpy.run_path('setup.py')"
    ask = "print([f['is_new_enough'](*a) for a in ("
    told = "('cmake', 'cmake version 3.16.3'), ('cmake', 'cmake version 3.18.0'), "
    told += "('cmake', 'cmake version 4.1.0'), ('ninja', '1.8'), ('cmake', ''), ('ninja', None))])"
    assert python(ROOT, "-c", f"{read}; {ask}{told}").splitlines()[-1] == (
        "[False, True, True, True, False, False]"
    )


def test_the_module_of_another_checkout_is_none(tmp_path: Path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "extension.py").write_bytes((ROOT / "kernels" / "extension.py").read_bytes())
    elsewhere = tmp_path / "elsewhere" / "_native.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text("")
    load = f"import kernels; kernels.__path__.append({str(elsewhere.parent)!r}); "
    load += "from kernels.extension import load; print(load('_native'))"
    found = python(tmp_path, "-c", load)
    assert f"not built, the one in {elsewhere.parent} is of another checkout; `pip" in found


@needs_compiler
def test_a_module_of_older_sources_is_told(built: Path):
    load = "import warnings; warnings.simplefilter('error'); import runpy; "
    load += "run = runpy.run_path('kernels/extension.py'); run['_look_at_sources']('_native')"
    assert build(built) == build(built) and python(built, "-c", load) == ""
    (built / "csrc" / "cpu" / "update.cpp").write_text("// other\n")
    asks = f"try:\n  {load}\nexcept RuntimeWarning as w: print(w)"
    told = "kernels._native was built from other sources than csrc/ has now: run `pip install -e .`"
    assert python(built, "-c", asks).startswith(told)
    build(built)
    assert python(built, "-c", load) == ""
