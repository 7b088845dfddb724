"""``python -m engine`` and the script ``mamlpp`` list and run the commands."""

import importlib
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from engine import __main__ as commands
from tests.tiny import ROOT, call, environment, finish, flags

# As an install writes it beside Python.
SCRIPT = "import sys\nfrom engine.__main__ import main\nsys.exit(main())\n"


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "mamlpp"
    path.write_text(SCRIPT)
    return path


def begin(script: Path, *argv: object, **options) -> subprocess.Popen:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    command = [sys.executable, str(script), *map(str, argv)]
    return subprocess.Popen(command, **(pipes | options))


def test_the_script_is_this_module():
    assert 'mamlpp = "engine.__main__:main"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_the_commands_are_listed_with_a_line_each(argv, capsys):
    assert commands.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (module, what) in commands.COMMANDS.items():
        assert f"  {name:<10} {what}" in lines
        assert callable(importlib.import_module(module).main)
    assert max(map(len, lines)) <= 100


MODULES = [["train"], ["sweep"], ["evaluate"], ["report"], ["data"], ["data", "fetch"]]


@pytest.mark.parametrize("argv", MODULES)
def test_a_command_is_the_module_of_its_name(argv):
    with_help = [*argv[1:], "--help"]
    assert call("engine", *argv, "--help") == call(f"engine.{argv[0]}", *with_help)


def test_arguments_and_exit_codes_are_passed_on(images, capsys):
    argv = flags(images, images.parent / "run", "--epochs", 1, "--iterations", 1)
    assert commands.main(["train", *argv]) == 0
    assert commands.main(["evaluate", str(images.parent / "run")]) == 0
    assert "ensemble of 1" in capsys.readouterr().out
    assert commands.main(["evaluate", str(images.parent / "none")]) == 2
    assert commands.main(["train", "--stpes", "5"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_command_that_there_is_not(capsys):
    for word, words in [("tarin", "did you mean train? "), ("x\n", ""), ("--verison", "")]:
        assert commands.main([word]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: there is no command {word.strip()}") and err.count("\n") == 1
        choices = ", ".join(commands.COMMANDS)
        assert f": {words}choose one of {choices}; see python -m engine" in err


def test_the_version(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", {"mamlpp": "1.2.3"}.get)
    assert commands.main(["--version"]) == 0

    def lost(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", lost)
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == "mamlpp 1.2.3\nmamlpp (not installed)\n"


def test_the_script_answers_ctrl_c_as_the_modules_do(script, images):
    folder = images.parent / "twice"
    slow = ("--image-size", 64, "--filters", 64, "--targets", 5, "--tasks", 16, "--steps", 5)
    process = begin(script, "train", *flags(images, folder, *slow))
    while not (folder / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "finishing this iteration" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, timeout=10)
    assert code == 130 and "stopped at once" in err and "Traceback" not in err


def test_the_script_beside_a_package_of_another(script, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    code, out, err = finish(begin(script, "train", "--help"))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'kernels'}") and err.count("\n") == 1
