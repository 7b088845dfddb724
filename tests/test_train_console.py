"""The console of ``python -m engine.train``: a terminal, a pipe, and streams that fail."""

import contextlib
import fcntl
import os
import pty
import struct
import termios
import threading
from pathlib import Path

import pytest

from tests.tiny import call, finish, flags, one_line, start

TRAIN = "engine.train"


def test_on_a_terminal_a_bar_shows_loss_accuracy_speed_and_time_left(images):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))  # rows, columns
    shown = []

    def read():
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    process = start(TRAIN, *flags(images, images.parent / "bar"), stderr=theirs)
    os.close(theirs)
    code, out, _ = finish(process)
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode()
    assert code == 0
    assert all(words in text for words in ("loss ", "accuracy ", "s/iteration", "left", "12/12"))
    assert "iteration 3/12" not in out and "validation" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_console_that_cannot_be_written_is_a_line(images):
    with open("/dev/full", "w") as full:
        process = start(TRAIN, *flags(images, images.parent / "mute"), stdout=full)
        code, _, err = finish(process)
    assert code == 2
    one_line(err, "standard output", "No space left")


def test_a_closed_pipe_is_a_line_and_the_same_command_continues(images):
    folder = images.parent / "piped"
    process = start(TRAIN, *flags(images, folder))
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert process.wait(60) == 2
    one_line(err, "standard output", "Broken pipe")
    assert call(TRAIN, *flags(images, folder))[0] == 0


def test_a_console_without_the_characters_shows_others(images, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, out, err = call(TRAIN, *flags(images, images.parent / "ascii"))
    assert (code, err) == (0, "") and " ? is the 95 % interval" in out
