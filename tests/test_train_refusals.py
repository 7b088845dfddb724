"""What ``python -m engine.train`` refuses before it trains: one line, exit code 2."""

import os

import pytest
import torch

from engine import train
from kernels import native
from tests.tiny import finish, flags, here, one_line, start, wait_for

TRAIN = "engine.train"


def test_a_damaged_checkpoint_is_named(images, capsys):
    folder = images.parent / "damaged"
    folder.mkdir()
    (folder / "latest.pt").write_bytes(b"PK")
    code, _, err = here(train, flags(images, folder), capsys)
    assert code == 2
    one_line(err, "latest.pt is damaged", "--fresh")


def test_two_processes_do_not_train_into_one_folder(images, capsys):
    folder = images.parent / "shared"
    long = flags(images, folder, "--iterations", 100000)
    first = start(TRAIN, *long)
    wait_for(first, "iteration 1/")
    code, _, err = here(train, long, capsys)
    assert code == 2
    one_line(err, "another process", "--run")
    first.kill()
    finish(first)


def test_too_few_classes_in_any_part_are_met_before_training(images, capsys):
    folder = images.parent / "few"
    code, _, err = here(train, flags(images, folder, "--ways", 7), capsys)
    assert code == 2
    one_line(err, "7", "6")
    assert not folder.exists()


@pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")
def test_a_backend_that_lacks_an_op_of_the_unroll_is_met_before_training(images, capsys):
    folder = images.parent / "headless"
    code, _, err = here(
        train, flags(images, folder, "--backend", "native", "--unroll", "autograd"), capsys
    )
    assert code == 2
    one_line(err, "--backend is native: native has no head", "auto")
    assert not folder.exists()


def test_a_backend_that_lacks_an_op_of_the_passes_is_met_before_training(images, capsys):
    folder = images.parent / "without"
    code, _, err = here(train, flags(images, folder, "--backend", "cuda"), capsys)
    assert code == 2
    one_line(err, "--backend is cuda: cuda has no conv", "auto")
    code, _, err = here(train, flags(images, folder, "--precision", "tf32"), capsys)
    assert code == 2
    one_line(err, "--precision is tf32: ")
    assert not folder.exists()


def test_missing_data(images, capsys):
    code, _, err = here(train, flags(images / "nowhere", images.parent / "none"), capsys)
    assert code == 2
    one_line(err, "nowhere", "--data")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(images, capsys):
    code, _, err = here(train, flags(images, images.parent / "none", "--device", "cuda"), capsys)
    assert code == 2
    one_line(err, "--device is cuda", "cpu")


def test_a_run_folder_that_cannot_be_written(images, capsys):
    # a file in its place: unlike permissions it stops the superuser, too
    (images.parent / "file").write_text("")
    file = images.parent / "file"
    for folder, why in [
        (file, "it is a file, no folder; give another --run"),
        (file / "run", f"{file} is a file, no folder; give another --run"),
    ]:
        code, _, err = here(train, flags(images, folder), capsys)
        assert code == 2
        one_line(err, f"error: cannot write run folder {folder}: {why}")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes none")
def test_a_run_folder_that_never_was_is_not_gone(images, capsys):
    code, _, err = here(train, flags(images, "/proc/x"), capsys)
    assert code == 2
    one_line(err, "cannot write run folder /proc/x: No such file", "or give another --run")
