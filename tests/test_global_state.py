"""What the user's own program has set in torch changes no bit of a training, and is as it was."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from engine import meta, train
from kernels import native
from tests.passes import native_pass, problem
from tests.test_meta import config, random_episode
from tests.test_native_calls import MODEL
from tests.tiny import flags, same

pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device().type == name
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
        assert not torch.is_grad_enabled()


@contextlib.contextmanager
def matmul() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "inference": torch.inference_mode,
    "no-grad": without_gradients,
    "deterministic": deterministic,
    "anomalies": torch.autograd.detect_anomaly,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "matmul": matmul,
}


def trained(images: Path, name: str, *more: object) -> list[dict]:
    """The checkpoints that a training leaves."""
    folder = images.parent / name
    assert train.main(flags(images, folder, "--epochs", 2, *more)) == 0
    assert train.main(flags(images, folder, "--epochs", 2, *more)) == 0  # shows what it found
    found = [torch.load(path, map_location="cpu") for path in sorted(folder.glob("*.pt"))]
    return [{name: each[name] for name in ("state", "best", "rng")} for each in found]


WAYS = {
    "native": ("--backend", "native"),
    "plain": ("--backend", "plain", "--threads", 2),
    "autograd": ("--unroll", "autograd"),
}


@pytest.fixture(scope="module")
def expected(images) -> dict[str, list[dict]]:
    return {name: trained(images, name, *way) for name, way in WAYS.items() if runs(name)}


def runs(way: str) -> bool:
    return way != "native" or native.module is not None


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("way", WAYS)
def test_a_training_is_the_same_to_the_bit(way, setting, images, expected) -> None:
    if not runs(way):
        pytest.skip(f"native module: {native.reason}")
    with SETTINGS[setting]():
        found = trained(images, f"{setting}-{way}", *WAYS[way])
    assert same(found, expected[way])
    assert [each["best"] for each in found] == [each["best"] for each in expected[way]]


@pytest.mark.parametrize("setting", SETTINGS)
def test_passes_and_ops_are_the_same_to_the_bit(setting: str, backend: str) -> None:
    """Of tensors that were made outside."""
    made = problem(MODEL, 6, 3)
    cfg = config()
    state, episode = meta.init_state(cfg), random_episode(cfg)
    sizes = made.model.sizes
    theta, rates = made.theta, torch.rand(len(sizes), dtype=torch.float64)

    def results() -> list:
        update = kernels.backend("update", theta)
        passes = native_pass(made) if backend == "native" else ()
        step = meta.meta_step(state, episode, cfg)[0]
        return [
            *passes,
            update.fwd(theta, made.direction, rates, sizes),
            *update.bwd(theta, made.direction, rates, sizes),
            *(tensor for group in step[:-1] for tensor in group),
        ]

    expected = results()
    with SETTINGS[setting]():
        assert all(map(torch.equal, results(), expected))


@pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")
def test_every_thread_flushes_denormals_or_none_does(threads) -> None:
    torch.set_num_threads(3)
    tiny = torch.full((8, 400_000), 1e-40)
    rates = torch.ones(1)

    def kept() -> set[int]:
        """The bits, since who flushes takes denormals for 0."""
        found = native.update.fwd(tiny, torch.zeros_like(tiny), rates, (400_000,))
        return {*found.view(torch.int32).unique().tolist()}

    try:
        first = kept()  # with threads that do not flush
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush denormals")
        assert len(first) == 1 and 0 not in first and kept() == {0}
        torch.set_flush_denormal(False)
        assert kept() == first
    finally:
        torch.set_flush_denormal(False)
