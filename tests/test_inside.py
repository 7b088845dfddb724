"""The engine inside other programs, on other systems, and beside files of our packages' names."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from engine import train
from engine.config import Config
from engine.runs.checkpoint import LATEST, load
from engine.runs.interrupt import Interrupt
from tests.tiny import ROOT, environment, finish, flags, wait_for


def python(code: str, *argv: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)]
    options = {"capture_output": True, "text": True, "env": environment(), "timeout": 60} | options
    return subprocess.run(command, **options)


def test_a_training_in_a_thread(images):
    folder, codes = images.parent / "thread", []
    argv = flags(images, folder, "--epochs", 1)

    def work():
        codes.append(train.main(argv))
        train.train(Config.resolve(argv), Interrupt())  # shows that it has finished

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0] and (folder / "result.json").exists()


TRAINING = """
    import sys
    from engine import train
    try:
        print("returned", train.main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted")
    print("the program goes on")
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_another_program_leaves_it_its_life(images, times):
    folder = images.parent / f"program{times}"
    argv = flags(images, folder, "--epochs", 500, "--iterations", 50, "--log-every", 1)
    command = [sys.executable, "-c", textwrap.dedent(TRAINING), *argv]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    process = subprocess.Popen(command, **pipes)
    wait_for(process, "iteration 2/")
    if times == 2:
        process.send_signal(signal.SIGTERM)  # noted, unless an iteration has just ended
    process.send_signal(signal.SIGINT)
    returned, out, err = finish(process)
    assert returned == 0 and "Traceback" not in err and out.endswith("the program goes on\n")
    assert load(folder / LATEST).epoch >= 0  # whole
    assert "returned 130" in out if times == 1 else "returned 143" in out or "interrupted" in out


WINDOWS = """
    import sys
    import torch, tqdm, PIL.Image  # which look for these themselves
    import os, signal, types

    held = set()
    def locking(descriptor, mode, size):
        assert (mode, size) == ("now", 1)
        held.add(descriptor)
    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK="now")
    sys.modules["fcntl"] = None
    for module, name in (
        (signal, "SIGHUP"), (os, "register_at_fork"), (os, "sched_getaffinity"), (os, "O_DIRECTORY")
    ):
        delattr(module, name)
    sys.platform = "win32"
    opened = os.open
    def files_alone(path, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)
    os.open = files_alone

    from engine import evaluate, train
    run = sys.argv[sys.argv.index("--run") + 1]
    assert train.main(sys.argv[1:]) == 0
    assert evaluate.main([run]) == 0
    assert held
"""


def test_a_system_without_what_windows_lacks(images):
    done = python(WINDOWS, *flags(images, images.parent / "windows", "--epochs", 1))
    assert done.returncode == 0 and done.stdout.count("ensemble of 1") == 2, done.stderr


def stranger(place: Path, kind: str) -> str:
    """Lays something of the name `kernels` there; what a message has to name."""
    if kind == "kernels.py":
        (place / kind).write_text("")
        return kind
    (place / "kernels").mkdir()
    if kind == "package":
        (place / "kernels" / "__init__.py").write_text("")
    return "kernels/__init__.py" if kind == "package" else "kernels"


@pytest.mark.parametrize("module", ["engine", "engine.train", "engine.evaluate", "engine.data"])
@pytest.mark.parametrize("kind", ["kernels.py", "package"])
def test_a_file_of_the_name_of_our_package_is_named(kind, module, tmp_path):
    found = stranger(tmp_path, kind)
    command = [sys.executable, "-m", module, "--help"]
    options = dict(capture_output=True, text=True, env=environment(), cwd=tmp_path)
    done = subprocess.run(command, **options)
    ours = f"is in the way of {ROOT / 'kernels'}: rename it, or start in another folder\n"
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path / found} {ours}"


# As an editable install finds our packages: after all the places of sys.path.
EDITABLE = """
    import importlib.util, pathlib, runpy, sys
    root = pathlib.Path(sys.argv.pop(1))
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name in ("engine", "kernels"):
                return importlib.util.spec_from_file_location(name, root / name / "__init__.py")
    sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder) + 1, Finder)
"""


def test_nor_does_a_mere_folder_take_its_place(tmp_path):
    stranger(tmp_path, "folder")
    alone = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    options = dict(cwd=tmp_path, env=alone)
    as_command = EDITABLE + "    sys.argv = ['-m']\n    runpy.run_module('engine.train')\n"
    done = python(as_command, ROOT, **options)
    line = f"{tmp_path / 'kernels'} is in the way of {ROOT / 'kernels'}: rename it, or start in"
    assert done.returncode == 2 and done.stderr == f"error: {line} another folder\n"
    done = python(EDITABLE + "    import engine.runs.run\n", ROOT, **options)
    assert done.returncode == 1 and f"ImportError: {line}" in done.stderr
