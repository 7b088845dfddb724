"""The table of launch configurations; it needs neither Triton nor a GPU."""

import json
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from kernels.triton import launch
from kernels.triton.launch import Geometry

CPU = torch.device("cpu")
MINI = Geometry("conv_fwd", 5, 42, 48, 48, "tf32")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Gives a function that puts a table in the place of the committed one."""

    def put(content: dict) -> None:
        path = tmp_path / "tuned.json"
        path.write_text(json.dumps(content))
        monkeypatch.setattr(launch, "TUNED", path)
        launch._tuned.cache_clear()

    yield put
    monkeypatch.undo()
    launch._tuned.cache_clear()


def test_key_names_the_class_of_a_launch():
    assert launch.key(MINI) == "conv_fwd 48x48 side 42 rows 2^14 single tf32"
    assert launch.key(MINI._replace(images=6)) == launch.key(MINI)
    assert launch.key(MINI._replace(images=10)) != launch.key(MINI)
    assert launch.key(MINI._replace(dual=True)) != launch.key(MINI)


def test_tuned_values_override_defaults_of_their_device_alone(table):
    table({"cpu": {launch.key(MINI): {"num_warps": 8}}, "other": {launch.key(MINI): {"BM": 16}}})
    assert launch.config(MINI, CPU) == launch.default(MINI) | {"num_warps": 8}
    assert launch.config(MINI._replace(side=21), CPU) == launch.default(MINI._replace(side=21))


def test_trial_comes_before_the_table_and_ends_with_its_block(table):
    table({"cpu": {launch.key(MINI): {"num_warps": 8}}})
    with launch.trying({launch.key(MINI): {"BM": 32}}):
        assert launch.config(MINI, CPU) == launch.default(MINI) | {"BM": 32}
    assert launch.config(MINI, CPU)["num_warps"] == 8


def test_without_a_table_defaults_hold(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "TUNED", tmp_path / "none.json")
    launch._tuned.cache_clear()
    assert launch.config(MINI, CPU) == launch.default(MINI)
    launch._tuned.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_tasks_of_a_batch_change_no_shape_of_a_launch(precision: str) -> None:
    """A sum's parts are its bits, which a task has alone, among others and on another rank."""
    pytest.importorskip("triton", reason="recording launches needs triton")
    from tests import triton_aot

    for case in triton_aot.CASES:
        alone, among = (
            triton_aot.recorded(case._replace(tasks=tasks), precision) for tasks in (1, 16)
        )
        assert [a.label for a in alone] == [a.label for a in among]
        assert [a.kwargs for a in alone] == [a.kwargs for a in among]


def test_asked_collects_each_geometry_once():
    with launch.asked() as geometries:
        for g in (MINI, MINI._replace(dual=True), MINI):
            launch.config(g, CPU)
    assert list(geometries) == [MINI, MINI._replace(dual=True)]


@pytest.mark.parametrize("kernel", launch.KERNELS)
@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3", "bf16"])
@pytest.mark.parametrize("channels", [1, 48, 64])
def test_candidates_begin_with_the_default_and_are_powers_of_two(kernel, precision, channels):
    g = MINI._replace(kernel=kernel, precision=precision, channels=channels)
    found = launch.candidates(g)
    assert found[0] == launch.default(g)
    assert 1 < len(found) == len({tuple(c.items()) for c in found}) < 2000
    others = "per_split", "num_stages", "maxnreg"
    for made in found:
        assert made.keys() == found[0].keys()
        powers = [v for name, v in made.items() if name not in others]
        assert all(v & (v - 1) == 0 for v in powers)


@pytest.mark.parametrize("kernel", launch.KERNELS)
def test_no_candidate_but_the_default_pads_filters(kernel):
    g = MINI._replace(kernel=kernel, filters=16)
    most = max(16, launch.default(g).get("BF", 0))
    assert all(made.get("BF", 0) <= most for made in launch.candidates(g))


def test_committed_table_names_known_kernels_and_parameters():
    for entries in launch._tuned().values():
        for name, values in entries.items():
            kernel = name.split()[0]
            assert kernel in launch.KERNELS
            assert values.keys() <= launch.default(MINI._replace(kernel=kernel)).keys()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("dual", [False, True])
def test_what_a_convolution_holds_fits_into_shared_memory(dual: bool, precision: str) -> None:
    for kernel, images, side, width in product(
        ("conv_fwd", "conv_bwd"), (1, 5, 20, 75, 300), (5, 21, 42, 84, 160), (16, 48, 64, 256)
    ):
        g = Geometry(kernel, images, side, width, width, precision, dual=dual)
        made = launch.default(g)
        held = (1 + dual) * (made["BM"] + made["BN"]) * made["BK"] * 4 * made["num_stages"]
        assert held <= launch.SHARED and made["num_stages"] >= 2, g


def test_what_kernels_cannot_count_or_launch_is_refused_or_taken_step_by_step(monkeypatch) -> None:
    passes = pytest.importorskip("kernels.triton.passes")
    from kernels.net import Net
    from kernels.triton.patches import patches
    from kernels.triton.plan import Plan

    small, wide = (Net(1, 28, filters, 4, 5, True, 0.0, 1e-5) for filters in (64, 512))
    for net, tasks in ((small, 8), (wide, 64)):
        images = SimpleNamespace(plan=Plan.of(net, tasks, 5), patches=None, x=torch.zeros(tasks, 1))
        monkeypatch.setattr(passes.Images, "of", lambda plan, *_: plan)
        found = passes.repeated(images, 5)
        assert (found is None) == (net is wide)
    monkeypatch.setattr(passes, "expect", lambda *a, **k: None)
    with pytest.raises(ValueError, match="triton passes take up to 65535 images a task and pixels"):
        passes.prepare(
            Net(1, 514, 4, 1, 5, True, 0.0, 1e-5), torch.empty(1, 1, 1, 514, 514, device="meta")
        )
    with pytest.raises(ValueError, match="70000 tasks, its launches take up to 65535"):
        passes.prepare(small, torch.empty(70_000, 1, 1, 28, 28, device="meta"))
    with pytest.raises(ValueError, match="patches: .* values, its kernels count to"):
        patches(torch.empty(30_000, 50, 28, 28, 2, device="meta"), "tf32")
