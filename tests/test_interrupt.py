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
