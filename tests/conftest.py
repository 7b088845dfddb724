"""Fixtures: files that the repository does not hold, and what a test gets back as it was."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from engine import train
from kernels import native
from kernels.check import verdict
from tests.golden import Golden, files, shared_folder
from tests.tiny import flags, make_images


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Iterator[None]:
    """Has what the tests decode and find out of the machine lie where it is removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAMLPP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=files() or [None], ids=lambda f: f.stem if f else "none")
def golden(request) -> Golden:
    """Runs a test on each file of the reference implementation."""
    if request.param is None:
        folder = shared_folder("GOLDEN_DIR")
        pytest.skip(f"no golden files in {folder}; set GOLDEN_DIR to their folder")
    return Golden(request.param)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = shared_folder("DATA_DIR")
    if not folder.is_dir():
        pytest.skip(f"no Omniglot and Caltech archives in {folder}; set DATA_DIR to their folder")
    return folder


@pytest.fixture(scope="session")
def checked(cache, tmp_path_factory) -> Path:
    """A cache that holds the check of the machine, which takes seconds, and nothing else."""
    folder = tmp_path_factory.mktemp("checked")
    verdict.of(torch.device("cpu"), "auto", folder)
    return folder


@pytest.fixture(scope="module")
def images(checked, tmp_path_factory) -> Path:
    """A data set in a folder; what runs leave beside it is the module's."""
    return _made(tmp_path_factory.mktemp("images"), checked)


def _made(place: Path, checked: Path) -> Path:
    shutil.copytree(checked, place / "cache")
    return make_images(place / "tiny")


@pytest.fixture(scope="session")
def finished(checked, tmp_path_factory) -> Iterator[Path]:
    """The folder of a finished run, for all that only read it: what changes one takes a copy."""
    images = _made(tmp_path_factory.mktemp("finished"), checked)
    folder = images.parent / "finished"
    assert train.main(flags(images, folder)) == 0
    files = {path: path.read_bytes() for path in sorted(folder.glob("*.*"))}
    yield folder
    assert {path: path.read_bytes() for path in sorted(folder.glob("*.*"))} == files


@pytest.fixture(params=["native", "plain"])
def backend(request) -> Iterator[str]:
    """Runs a test on each backend: whole passes natively, and composed of plain ops."""
    if request.param == "native" and native.module is None:
        pytest.skip(f"native module: {native.reason}")
    with kernels.use("auto" if request.param == "native" else "plain"):
        yield request.param


@pytest.fixture
def only_fp32() -> Iterator[None]:
    """Native runs passes in no other precision, as on processors without bfloat16."""
    native.module.limit_isa(native.module.Isa.avx512)
    yield
    native.module.limit_isa(native.module.Isa.amx)


@pytest.fixture(params=["portable", "neon", "avx2", "avx512"])
def isa(request) -> Iterator[str]:
    """Runs a test on every instruction set of the native module that this machine grants."""
    wanted = getattr(native.module.Isa, request.param)
    try:
        if native.module.limit_isa(wanted) != wanted:
            pytest.skip(f"this machine has no {request.param}")
        yield request.param
    finally:
        native.module.limit_isa(native.module.Isa.amx)


@pytest.fixture
def hangup() -> Iterator[None]:
    """Has SIGHUP mean what it does by default: the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def one_thread(threads) -> None:
    """Of torch: others only wait where a test is thousands of calls for a few numbers each."""
    torch.set_num_threads(1)


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives a test that changes torch's number of threads the old one back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
