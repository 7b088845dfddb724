"""How a command line ends: its exit code and its one line."""

import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from engine.errors import Diverged, UserError
from engine.runs.interrupt import SIGNALS, Stopped, _is_command, answered


class Exited(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def at_once(hangup, monkeypatch):
    def exit_at_once(code):
        raise Exited(code)

    monkeypatch.setattr("os._exit", exit_at_once)
    monkeypatch.setattr("engine.runs.interrupt._is_command", lambda: True)


def interrupted(*signals):
    def work(interrupt):
        interrupt.phase = "finish"
        for signum in signals:
            os.kill(os.getpid(), signum)
        interrupt.check()

    return work


def failing(error):
    def work(interrupt):
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "line"),
    [
        (lambda interrupt: None, 0, None),
        (lambda interrupt: 7, 7, None),
        (failing(UserError("a mistake")), 2, "error: a mistake"),
        (failing(Diverged("not finite")), 3, "error: not finite"),
        (interrupted(signal.SIGINT), 130, "Ctrl-C: stopped here"),
        (interrupted(signal.SIGTERM), 143, "SIGTERM: stopped here"),
        (interrupted(signal.SIGHUP), 129, "SIGHUP: stopped here"),
        (interrupted(signal.SIGHUP, signal.SIGHUP), 129, "SIGHUP: stopped here"),
        (interrupted(signal.SIGTERM, signal.SIGHUP), 143, "SIGTERM: stopped here"),
    ],
)
def test_each_end_has_its_code_and_line(work, code, line, capfd):
    handlers = [signal.getsignal(s) for s in SIGNALS]
    assert answered(work, stopped="stopped here") == code
    assert capfd.readouterr().err.splitlines()[-1:] == ([line] if line else [])
    assert [signal.getsignal(s) for s in SIGNALS] == handlers


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_exits_at_once_unless_it_is_a_hangup(first):
    with pytest.raises(Exited, match="130"):
        answered(interrupted(first, signal.SIGINT), stopped="stopped here")


@pytest.mark.parametrize("first", SIGNALS)
def test_another_program_is_not_ended(first, monkeypatch, capfd):
    monkeypatch.setattr("engine.runs.interrupt._is_command", lambda: False)
    handlers = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        answered(interrupted(first, signal.SIGINT), stopped="stopped here")
    assert "stopped at once, the last checkpoint is whole" in capfd.readouterr().err
    assert [signal.getsignal(s) for s in SIGNALS] == handlers

    def early(interrupt):
        assert interrupt.phase == "exit"
        os.kill(os.getpid(), first)

    assert answered(early, stopped="stopped here") == 128 + first
    assert capfd.readouterr().err.splitlines()[-1].endswith(": stopped here")


@pytest.mark.parametrize(
    ("name", "ours"),
    [("engine.train", True), ("bench.gpu.__main__", True), ("pytest", False), (None, False)],
)
def test_the_process_is_ours_when_python_m_began_it(name, ours, monkeypatch):
    monkeypatch.undo()
    spec = None if name is None else SimpleNamespace(name=name)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert _is_command() is ours


@pytest.mark.parametrize(
    ("argv", "ours"),
    [(["/x/bin/mamlpp"], True), (["mamlpp.py"], False), (["-c"], False), ([], False)],
)
def test_and_when_our_script_did(argv, ours, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    monkeypatch.setattr("sys.argv", argv)
    assert _is_command() is ours


def test_in_another_thread_the_handlers_stay_as_they_are():
    handlers, codes = [signal.getsignal(s) for s in SIGNALS], []

    def work(interrupt):
        interrupt.check()
        assert [signal.getsignal(s) for s in SIGNALS] == handlers

    thread = threading.Thread(target=lambda: codes.append(answered(work, stopped="stopped")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_nohup_is_respected():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert answered(interrupted(signal.SIGHUP), stopped="stopped here") == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_reader_that_is_gone_does_not_lose_the_signal(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)

        def work(interrupt):
            with pytest.raises(Stopped):
                interrupted(signal.SIGINT)(interrupt)

        assert answered(work, stopped="stopped here") == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory: you tried"), RuntimeError("x")]
)
def test_out_of_memory_is_a_line_and_other_errors_are_not_hidden(error, capsys):
    def work(_):
        raise error

    if str(error) == "x":
        with pytest.raises(RuntimeError, match="x"):
            answered(work, stopped="stopped")
    else:
        assert answered(work, stopped="stopped") == 2
        one_line = capsys.readouterr().err
        assert one_line.startswith("error: out of memory; lower --tasks")
        assert one_line.count("\n") == 1
