"""What an outer iteration costs a GPU at least: how it is counted, and what it must not exceed."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench.gpu.rows import GOALS

pytest.importorskip("triton", reason="reading kernels needs triton")

from tests import triton_aot, triton_floor  # noqa: E402

# Launches of an iteration; of them, those that it waits for. When they were 575 and 439, an H100
# counted 576 and 440 kernels. Of Omniglot the target passes of all steps are one.
MOST = {
    "mini MSL": dict(all=417, chain=219, convolution=150, stem=55, patches=9, merge=40)
    | dict(normalise=90, head=30, update=13, torch=30),
    "omniglot MSL": dict(all=303, chain=206, convolution=110, stem=39, patches=9, merge=16)
    | dict(normalise=66, head=11, update=13, torch=39),
    "last": dict(all=303, chain=219, convolution=110, stem=39, patches=9, merge=20)
    | dict(normalise=66, head=22, update=13, torch=24),
}

# Milliseconds of all launches of a kernel on an H100, of 4 tasks of mini-ImageNet with the
# multi-step loss: 0.69, 0.35 and 0.15 in TF32 and 0.16, 0.35 and 0.13 in bf16 by Triton 3.6; 0.69,
# 0.41 and 0.24, and 0.17, 0.42 and 0.15, by 3.9.
MILLISECONDS = {
    "tf32": {"conv_wgrad_kernel": 0.75, "stem_fwd_kernel": 0.45, "stem_outer_kernel": 0.26},
    "bf16": {"conv_wgrad_kernel": 0.19, "stem_fwd_kernel": 0.45, "dz_kernel": 0.17},
}


@pytest.mark.parametrize("row", GOALS, ids=str)
def test_an_iteration_launches_no_more_than_it_did(row) -> None:
    ones = triton_floor.iteration(row, "tf32")
    kinds = Counter(one.kind for one in ones)
    found = {"all": len(ones), "chain": sum(one.chain for one in ones)} | kinds
    most = MOST[f"{row.case.split()[0]} MSL" if row.loss == "MSL" else "last"]
    assert found.keys() == most.keys()
    assert {n: c for n, c in found.items() if c > most[n]} == {}
    wide = max(one.programs * one.warps for one in ones if one.launch is not None)
    assert wide > 2 * triton_floor.SCHEDULERS * triton_floor.SMS


@pytest.mark.parametrize("row", GOALS, ids=str)
def test_how_many_tasks_there_are_changes_no_launch(row) -> None:
    """A task would have other bits in other company: a sum's order is a launch's."""

    def launched(tasks: int) -> list[tuple[str, dict]]:
        ones = triton_floor.iteration(replace(row, tasks=tasks), "tf32")
        return [(one.name, one.launch.kwargs) for one in ones if one.launch is not None]

    assert launched(1) == launched(2 * row.tasks)


def made(opcodes: int, loops: tuple = (), registers: int = 32, shared: int = 0):
    return triton_aot.Code(registers, shared, Counter({"FFMA": opcodes}), set(), 0.0, loops)


def test_the_instructions_of_a_loop_count_as_often_as_it_goes_round() -> None:
    assert triton_floor.instructions(made(100), 7, 1) == 100
    assert triton_floor.instructions(made(100, ((10, 59),)), 3, 1) == 100 + 2 * 50
    nested = made(100, ((20, 39), (10, 59)))
    assert triton_floor.instructions(nested, 3, 4) == 50 + 3 * (30 + 4 * 20)
    assert triton_floor.instructions(made(100, ((10, 59), (70, 89))), 3, 1) == 30 + 3 * 70
    assert triton_floor.instructions(made(100, ((97, 99),)), 9, 1) == 100  # waits for something


def test_a_loop_is_a_branch_that_goes_back() -> None:
    code = [
        ("0000", "MOV", " R1, c[0x0][0x28]"),
        ("0010", "FFMA", " R0, R1, R2, R3"),
        ("0020", "BRA", " 0x50"),
        ("0030", "BRA", " 0x10"),
        ("0040", "BRA.U", " UP0, `(.L_x_1)  0x10"),
        ("0050", "EXIT", ""),
    ]
    assert [*triton_aot._loops(code)] == [(1, 4)]


def test_a_multiprocessor_holds_what_its_warps_registers_and_memory_allow() -> None:
    assert triton_floor.resident(made(1), 4) == 16
    assert triton_floor.resident(made(1), 1) == 32
    assert triton_floor.resident(made(1, registers=165), 4) == 3  # in eights: 168
    assert triton_floor.resident(made(1, shared=100 * 1024), 4) == 2


def test_the_trips_of_a_split_are_its_share() -> None:
    sizes = dict(images=20, side=16, dense=14, channels=64, filters=64, per_split=512)
    options = dict(STRIDE=1, BP=16, BK=32)

    def trips(name: str, **changes) -> tuple[float, float]:
        given = sizes | options | changes
        kernel = SimpleNamespace(params=[SimpleNamespace(name=n) for n in given])
        own = SimpleNamespace(kernel=kernel, args=tuple(given.values()), kwargs={})
        return triton_floor.trips(triton_floor.One(own, name, (10, 3, 8), True))

    assert trips("conv_fwd_kernel") == (9 * 2, 1)
    assert trips("conv_bwd_kernel", filters=48) == (9 * 2, 1)
    assert trips("conv_wgrad_kernel") == (20 * 16**2 / (10 * 16), 1)
    assert trips("dz_kernel", tiles=65, BT=32, MERGE=True) == (3, 1)
    assert trips("dz_kernel", tiles=650, BT=32, MERGE=False) == (1, 1)


@pytest.mark.parametrize("precision", MILLISECONDS)
def test_the_dearest_kernels_take_no_more_instructions_than_they_did(precision: str) -> None:
    if not (triton_aot.TOOLS / "cuobjdump").exists():
        pytest.skip(f"reading machine code needs cuobjdump, which is not in {triton_aot.TOOLS}")
    ones, limits = triton_floor.iteration(next(iter(GOALS)), precision), MILLISECONDS[precision]
    found = Counter()
    for cost in triton_floor.costs([one for one in ones if one.label in limits], {}):
        found[cost.one.label] += 1e3 * cost.seconds
    for label, most in limits.items():
        assert most / 2 < found[label] < most, label
