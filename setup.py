"""Builds the compiled modules by CMake, Ninja and pybind11. Everything else is in pyproject.toml.

Each of them is optional: where it cannot be built the install succeeds, says so in one line, and
leaves the reason beside the package for `kernels.extension` to report. MAMLPP_CUDA in the
environment is OFF, ON, or AUTO: the CUDA module where there is an nvcc and a GPU is visible.

What was built stays in build/, in a folder for each compiler, its flags and Python. There the
sources are a copy that changes where their content does, so that Ninja's times mean content: an
unchanged checkout compiles nothing, whenever its files were written, and a changed one what
changed.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import fcntl
except ImportError:  # not on Linux or macOS
    fcntl = None

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
WITHOUT = {
    "_native": "no native module, a CPU runs everything in plain PyTorch",
    "_cuda": "no CUDA module, a GPU runs everything by Triton or in plain PyTorch",
}
# What a build depends on beside its sources and programs, and every variable of CMake's.
VARIABLES = """CC CXX CPPFLAGS CFLAGS CXXFLAGS LDFLAGS CPATH CPLUS_INCLUDE_PATH LIBRARY_PATH
    ARCHFLAGS MACOSX_DEPLOYMENT_TARGET SDKROOT SYSROOT""".split()
CUDA_VARIABLES = "CUDACXX CUDAFLAGS CUDAARCHS CUDAHOSTCXX NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS"
KEPT_FOLDERS = 4  # of different compilers, flags and Pythons: about 20 MB each
LEAST = {"cmake": (3, 18)}  # versions; an older one is none


class BuildFailed(Exception):
    pass


class LeftOut(BuildFailed):
    """Nothing went wrong: it was not asked for."""


def find_tool(name: str) -> str | None:
    """First `name` that runs, beside this Python or on PATH.

    It has to be tried: in an isolated build the launchers that a virtual environment has on PATH
    are found but cannot import their own package.
    """
    for folder in [str(Path(sys.executable).parent), *os.get_exec_path()]:
        path = shutil.which(name, path=folder)
        if path and is_new_enough(name, version(path)):
            return path
    return None


def is_new_enough(name: str, told: str | None) -> bool:
    if told is None or name not in LEAST:
        return told is not None
    found = re.search(r"(\d+)\.(\d+)", told)
    return found is not None and (int(found[1]), int(found[2])) >= LEAST[name]


def version(*command: str) -> str | None:
    """What a program says that it is; `None` if it does not run."""
    try:
        result = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return None
    return None if result.returncode else result.stdout


def identity(variable: str, *names: str) -> list[str | None]:
    """The program that a variable or else the first of the names stands for, and its version."""
    default = next(filter(None, map(shutil.which, names)), names[0])
    given = os.environ.get(variable, "")
    try:
        command = shlex.split(given) or [default]
    except ValueError as error:
        raise BuildFailed(f"{variable} is {given}: {error}; give a command") from None
    return [*command, shutil.which(command[0]), version(*command)]


def nvcc() -> list[str | None]:
    return identity("CUDACXX", "nvcc", str(Path(os.environ.get("CUDA_PATH", ""), "bin", "nvcc")))


def gpu_is_visible() -> bool:
    """By the driver's own tool, which counts what a program of this process's rights will get; the
    files in /dev and /proc may be there without a driver that works, or not at all (WSL).
    """
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return False
    return any(line.startswith("GPU ") for line in found.splitlines())


def check_wanted(module: str) -> None:
    """LeftOut or BuildFailed with the reason if a module is not to be built here."""
    if module != "_cuda":
        return
    wanted = os.environ.get("MAMLPP_CUDA") or "AUTO"
    if wanted not in ("ON", "OFF", "AUTO"):
        raise BuildFailed(f"MAMLPP_CUDA is {wanted}; set it to ON, OFF or AUTO")
    if wanted == "OFF":
        raise LeftOut("MAMLPP_CUDA is OFF")
    if nvcc()[-1] is None:
        raise (LeftOut if wanted == "AUTO" else BuildFailed)("no nvcc was found")
    if wanted == "AUTO" and not gpu_is_visible():
        raise LeftOut("no GPU is visible; MAMLPP_CUDA=ON builds it without one")


def summary(output: str) -> str:
    """The first error in what CMake or the compiler printed, on one line."""
    cmake_error = re.search(r"^CMake Error[^\n]*\n+((?:(?: +[^\n]*)?\n)+)", output, re.MULTILINE)
    if cmake_error:
        return " ".join(cmake_error[1].split())
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = (line for line in lines if re.search(r"\berror\b[^:]*:", line, re.IGNORECASE))
    return next(errors, lines[-1] if lines else "")


class Console:
    """Says how far the build is: on stdout, which pip shows with -v alone, and on the terminal.

    Without -v pip keeps what a build prints until it fails, and minutes of silence look like a
    hang. So there is one line straight to the terminal, each over the one before; the blanks at its
    end are for pip's own spinner. Not where there is no terminal, nor in CI, whose logs would keep
    every line.
    """

    def __init__(self) -> None:
        self.terminal = None
        if "CI" not in os.environ and os.environ.get("TERM", "dumb") != "dumb":
            try:
                self.terminal = open("/dev/tty", "w", encoding="utf-8")
            except OSError:
                pass
        if sys.stdout.isatty():
            self.terminal = None  # it is read there

    def say(self, text: str, passing: bool = False, to_terminal: bool = True) -> None:
        print(f"mamlpp: {text}", flush=True)
        if self.terminal and to_terminal:
            print(f"\r\033[Kmamlpp: {text}", end="  " if passing else "\n", file=self.terminal)
            self.terminal.flush()


# Ninja's and Make's progress: how many of how many, or a percentage; the set; the source.
STEP = re.compile(r"\[ *(\d+)(?:/(\d+)|%)\] Building .*?(?:/cpu_(\w+)|/\w+)\.dir/(?:\S*/)?(\S+)\.o")


def progress(line: str) -> str | None:
    """What a line of the build's says of its progress: `12 of 34 (conv.cpp, avx2)`"""
    step = STEP.match(line)
    if not step:
        return None
    done, total, name, source = step.groups()
    source = "bindings" if source.startswith("unity_") else source
    far = f"{done} of {total}" if total else f"{done} %"
    return f"{far} ({source}, {name})" if name else f"{far} ({source})"


def run(console: Console, what: str, lock: int | None, *command: str) -> None:
    """A step of the build; its output is printed, its progress told."""
    start, output = time.monotonic(), []
    # The compilers hold the lock as well: they may outlive this process.
    held = () if lock is None else (lock,)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=held,
    ) as process:
        for line in process.stdout:
            output.append(line)
            far = progress(line)
            if far:
                seconds = time.monotonic() - start
                console.say(f"building {what}, {far}, {seconds:.0f} s", passing=True)
            else:
                print(line, end="")
    if process.returncode:
        raise BuildFailed(summary("".join(output)) or f"{command[0]} exited {process.returncode}")


def read_sources() -> dict[str, bytes]:
    files = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *ROOT.glob("csrc/**/*.*")]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(files)}


def write_sources(sources: dict[str, bytes], folder: Path) -> None:
    """Makes a folder hold these files, and writes none that it holds already."""
    for path in [path for path in folder.glob("**/*.*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in sources:
            path.unlink()
    for name, content in sources.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(
        b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    ).hexdigest()


class Tree:
    """What one module is built in, with one compiler, its flags, and one Python."""

    def __init__(self, module: str) -> None:
        try:
            import pybind11
        except ImportError:
            raise BuildFailed("pybind11 is not installed") from None
        self.module, self.pybind11 = module, Path(pybind11.__file__).parent
        self.name = module + sysconfig.get_config_var("EXT_SUFFIX")
        names = VARIABLES + (CUDA_VARIABLES.split() if module == "_cuda" else [])
        names += sorted(name for name in os.environ if name.startswith("CMAKE_"))
        names = [name for name in names if name != "CMAKE_BUILD_PARALLEL_LEVEL"]
        facts = [
            str(ROOT),  # which CMake writes everywhere
            [(name, os.environ[name]) for name in names if name in os.environ],
            identity("CXX", "c++", "g++", "clang++"),
            nvcc() if module == "_cuda" else None,
            [self.name, sys.version, sysconfig.get_path("include"), pybind11.__version__],
        ]
        self.folder = BUILD / f"{module[1:]}-{digest(json.dumps(facts).encode())[:16]}"
        self.sources = read_sources()
        self.state = digest(*(part for n, c in self.sources.items() for part in (n.encode(), c)))

    def built(self) -> Path | None:
        """The module, if these sources made it and nothing happened to it since."""
        try:
            state, content = json.loads((self.folder / "built.json").read_text(encoding="utf-8"))
            path = self.folder / "out" / self.name
            whole = state == self.state and content == digest(path.read_bytes())
        except (OSError, ValueError):
            return None
        return path if whole else None

    def build(self, console: Console, lock: int | None) -> Path:
        """Compiles what changed."""
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            least = ".".join(map(str, LEAST["cmake"]))
            raise BuildFailed(f"cmake {least} or newer was not found")
        unfinished = self.folder / "unfinished"
        if unfinished.exists():  # it was killed, and may have left a file half written
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "built.json").unlink(missing_ok=True)
        unfinished.touch()
        try:
            path = self.compile(console, lock, cmake, ninja)
        finally:
            unfinished.unlink()
        record = json.dumps([self.state, digest(path.read_bytes())])
        (self.folder / "built.json").write_text(record, encoding="utf-8")
        return path

    def compile(self, console: Console, lock: int | None, cmake: str, ninja: str | None) -> Path:
        start, what = time.monotonic(), f"kernels.{self.module}"
        objects = self.folder / ("ninja" if ninja else "make")
        path = self.folder / "out" / self.name
        path.unlink(missing_ok=True)
        # An isolated build has pybind11 and Ninja in a new place each time.
        headers = self.folder / "pybind11"
        if not headers.is_dir():
            shutil.copytree(self.pybind11, headers, ignore=shutil.ignore_patterns("*.py*"))
        write_sources(self.sources, self.folder / "sources")
        console.say(f"building {what}, configuring", passing=True)
        try:
            run(
                console, what, lock,
                cmake, "-S", str(self.folder / "sources"), "-B", str(objects),
                *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DMAMLPP_OUTPUT_DIR={path.parent}",
                f"-DMAMLPP_CUDA={'ON' if self.module == '_cuda' else 'OFF'}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={headers / 'share' / 'cmake' / 'pybind11'}",
            )  # fmt: skip
        except BuildFailed:
            # CMake would remember what it did not find
            shutil.rmtree(objects, ignore_errors=True)
            raise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(cores)
        target = ["--build", str(objects), "--target", self.module, "--config", "Release"]
        run(console, what, lock, cmake, *target, "--parallel", jobs)
        if not path.is_file():
            raise BuildFailed(f"the build did not make {path.name}")
        console.say(f"built {what} in {time.monotonic() - start:.0f} s", passing=True)
        return path


@contextmanager
def locked(console: Console) -> Iterator[int | None]:
    """One build of this checkout at a time."""
    BUILD.mkdir(exist_ok=True)
    if fcntl is None:
        yield None
        return
    with open(BUILD / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            console.say("waiting for another build of this checkout", passing=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def modules_loader() -> ModuleType:
    """`kernels.extension`, whose package needs torch."""
    spec = importlib.util.spec_from_file_location("extension", ROOT / "kernels" / "extension.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget_old_trees() -> None:
    records = sorted(BUILD.glob("*/built.json"), key=lambda path: path.stat().st_mtime)
    for record in records[:-KEPT_FOLDERS]:
        shutil.rmtree(record.parent, ignore_errors=True)


class BuildModules(build_ext):
    def run(self) -> None:
        console = Console()
        with locked(console) as lock:
            for ext in self.extensions:
                self.build_module(ext, console, lock)
            forget_old_trees()

    def build_module(self, ext: Extension, console: Console, lock: int | None) -> None:
        name, file = ext.name.rpartition(".")[2], Path(self.get_ext_fullpath(ext.name)).resolve()
        note = file.with_name(f"{name}_missing.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        extension = modules_loader()
        stamp, sources = extension.stamp_of(file), extension.sources_of(ROOT)
        for old in (file, note, stamp):
            old.unlink(missing_ok=True)
        try:
            check_wanted(name)
            tree = Tree(name)
            built = tree.built()
            if built:
                console.say(f"kernels.{name} was built from these sources before", passing=True)
            part = file.with_suffix(".part")  # renamed when it is whole
            shutil.copy(built or tree.build(console, lock), part)
            os.replace(part, file)
            stamp.write_text(sources + "\n", encoding="utf-8")
        except BuildFailed as error:
            note.write_text(f"not built: {error}\n", encoding="utf-8")
            console.say(f"{WITHOUT[name]} ({error})", to_terminal=not isinstance(error, LeftOut))


def is_built() -> bool:
    """Whether there is nothing to compile, so that CMake and Ninja need not be there."""
    for name in WITHOUT:
        try:
            check_wanted(name)
            if not Tree(name).built():
                return False
        except BuildFailed:
            continue
    return True


SOURCES = sorted(read_sources())

setup(
    ext_modules=[
        Extension(f"kernels.{name}", sources=[], depends=SOURCES, optional=True) for name in WITHOUT
    ],
    cmdclass={"build_ext": BuildModules},
    # needed for the build alone, and only where the machine has none that works
    setup_requires=[]
    if is_built()
    else [name for name in ("cmake", "ninja") if find_tool(name) is None],
)
