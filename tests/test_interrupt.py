"""How a command line ends: its exit code and its one line."""

import os
import signal

import pytest

from engine.errors import Diverged, UserError
from engine.interrupt import answered


def interrupted(signum):
    def work(interrupt):
        interrupt.phase = "finish"
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
        (failing(UserError("a mistake")), 2, "error: a mistake"),
        (failing(Diverged("not finite")), 3, "error: not finite"),
        (interrupted(signal.SIGINT), 130, "Ctrl-C: stopped here"),
        (interrupted(signal.SIGTERM), 143, "SIGTERM: stopped here"),
    ],
)
def test_each_end_has_its_code_and_line(work, code, line, capfd):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert answered(work, stopped="stopped here") == code
    assert capfd.readouterr().err.splitlines()[-1:] == ([line] if line else [])
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


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
