"""What ``python -m engine.train`` refuses before it trains: one line, exit code 2."""

import pytest
import torch

from kernels import native
from tests.tiny import call, finish, flags, one_line, start, wait_for

TRAIN = "engine.train"


def test_a_damaged_checkpoint_is_named(images):
    folder = images.parent / "damaged"
    folder.mkdir()
    (folder / "latest.pt").write_bytes(b"PK")
    code, _, err = call(TRAIN, *flags(images, folder))
    assert code == 2
    one_line(err, "latest.pt is damaged", "--fresh")


def test_two_processes_do_not_train_into_one_folder(images):
    folder = images.parent / "shared"
    long = flags(images, folder, "--iterations", 100000)
    first = start(TRAIN, *long)
    wait_for(first, "iteration 1/")
    code, _, err = call(TRAIN, *long)
    assert code == 2
    one_line(err, "another process", "--run")
    first.kill()
    finish(first)


def test_too_few_classes_in_any_part_are_met_before_training(images):
    folder = images.parent / "few"
    code, _, err = call(TRAIN, *flags(images, folder, "--ways", 7))
    assert code == 2
    one_line(err, "7", "6")
    assert not folder.exists()


@pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")
def test_a_backend_that_lacks_an_op_of_the_unroll_is_met_before_training(images):
    folder = images.parent / "headless"
    code, _, err = call(
        TRAIN, *flags(images, folder, "--backend", "native", "--unroll", "autograd")
    )
    assert code == 2
    one_line(err, "native has no head", "auto")
    assert not folder.exists()


def test_a_backend_that_lacks_an_op_of_the_passes_is_met_before_training(images):
    folder = images.parent / "without"
    code, _, err = call(TRAIN, *flags(images, folder, "--backend", "cuda"))
    assert code == 2
    one_line(err, "cuda has no conv", "auto")
    assert not folder.exists()


def test_missing_data(images):
    code, _, err = call(TRAIN, *flags(images / "nowhere", images.parent / "none"))
    assert code == 2
    one_line(err, "nowhere", "--data")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(images):
    code, _, err = call(TRAIN, *flags(images, images.parent / "none", "--device", "cuda"))
    assert code == 2
    one_line(err, "--device is cuda", "cpu")


def test_a_run_folder_that_cannot_be_written(images):
    # a file in its place: unlike permissions it stops the superuser, too
    (images.parent / "file").write_text("")
    code, _, err = call(TRAIN, *flags(images, images.parent / "file" / "run"))
    assert code == 2
    one_line(err, "cannot write run folder", "--run")
