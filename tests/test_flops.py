"""The counts of operations: those of the design's table, and what torch counts of the loop."""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bench import flops, ops
from bench.cases import Row, reduced
from bench.flops import PARTS, Work
from bench.implementations import TheLoop
from engine.config import Config
from kernels import native
from kernels.cases import Case


def config(case: str, **changes) -> Config:
    row = Row.of(case, order=changes.pop("order", "second"), loss=changes.pop("loss", "MSL"))
    return replace(row.config(), **changes)


@pytest.mark.parametrize(
    "case, convolutions, passes",
    [
        ("mini 5w1s", (9.14, 36.58, 9.14, 2.07), (56.95, 161.7, 305.1)),
        ("omniglot 20w1s", (0.45, 7.23, 1.81, 0.33), (9.82, 29.0, 57.1)),
    ],
)
def test_multiply_adds_of_one_image(case: str, convolutions, passes):
    cfg = config(case)
    *layers, linear = (count / 1e6 for count in flops.layers(cfg))
    assert layers == pytest.approx(convolutions, abs=0.006)
    assert linear * 1e6 == {"mini 5w1s": 1200 * 5, "omniglot 20w1s": 64 * 20}[case]
    assert [count / 1e6 for count in flops.per_image(cfg)] == pytest.approx(passes, abs=0.06)


@pytest.mark.parametrize(
    "case, changes, support, tangent, target, total",
    [
        ("mini 5w1s", dict(tasks=4), 32, 61, 485, 578),
        ("mini 5w1s", dict(tasks=4, loss="last"), 32, 61, 97, 190),
        ("mini 5w1s", dict(tasks=4, order="first"), 32, 0, 485, 517),
        ("mini 5w1s", dict(tasks=4, order="first", loss="last"), 32, 0, 97, 129),
        ("mini 5w5s", {}, 81, 153, 243, 476),
        ("mini 5w5s", dict(loss="last"), 81, 153, 49, 282),
        ("mini 5w5s", dict(order="first"), 81, 0, 243, 323),
        ("omniglot 20w1s", {}, 46, 91, 46, 184),
        ("omniglot 20w1s", dict(tasks=16, loss="last"), 93, 183, 19, 294),
        ("omniglot 20w1s", dict(targets=15), 46, 91, 696, 834),
        ("omniglot 5w1s", {}, 12, 23, 12, 46),
        ("omniglot 5w1s", dict(loss="last"), 12, 23, 2, 37),
    ],
)
def test_gigaflops_of_an_iteration(case: str, changes: dict, support, tangent, target, total):
    count = flops.iteration(config(case, **changes))
    assert [round(part / 1e9) for part in (*count, count.all)] == [support, tangent, target, total]


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_torch_counts_the_same_in_the_loop_of_first_order(downsample: str):
    cfg = reduced(Row.of("mini 5w1s", order="first", steps=2).config())
    cfg = replace(cfg, image_size=20, downsample=downsample)
    loop = TheLoop(cfg)
    with FlopCounterMode(display=False) as counter:
        loop.iteration()
    assert counter.get_total_flops() == flops.iteration(cfg).all


def test_torch_counts_one_product_more_in_the_loop_of_second_order():
    """Its double backward of a convolution also makes the gradient of the images, which nobody
    asked for.
    """
    cfg = replace(reduced(Row.of("mini 5w1s", "MAML", steps=2).config()), image_size=20)
    loop = TheLoop(cfg)
    with FlopCounterMode(display=False) as counter:
        loop.iteration()
    images = cfg.tasks * cfg.steps * cfg.ways * cfg.shots
    unused = 2 * images * flops.layers(cfg)[0]
    assert counter.get_total_flops() == flops.iteration(cfg).all + unused


def test_torch_counts_the_same_in_an_evaluation():
    cfg = replace(reduced(Row.of("mini 5w1s", order="first").config()), image_size=20)
    loop = TheLoop(cfg)
    with FlopCounterMode(display=False) as counter:
        loop.evaluation()
    assert counter.get_total_flops() == flops.evaluation(cfg).all


@pytest.mark.skipif(native.module is None, reason="no native module to take products")
def test_products_taken_directly_are_those_counted_and_by_winograd_fewer():
    for order in ("first", "second"):
        cfg = config("omniglot 20w1s", order=order, downsample="stride", filters=32)
        passes = cfg.tasks * cfg.steps * cfg.ways * (3 + 6 * (order == "second") + 3)
        assert cfg.targets == cfg.shots == 1
        linear = 2 * passes * flops.layers(cfg)[-1]
        assert flops.performed(cfg) == flops.iteration(cfg).all - linear
    for case in ("mini 5w1s", "omniglot 20w1s"):
        cfg = config(case)
        assert 0.3 < flops.performed(cfg) / flops.iteration(cfg).all < 0.75


def test_work_of_a_stage():
    later, first = Case("later", 2, 3, 4, 4, 6), Case("first", 2, 3, 1, 4, 6)
    x = z = 2 * 3 * 36 * 4
    w = 2 * 9 * 4 * 4
    assert flops.conv(later, "fwd") == Work(2 * z * 9 * 4, 4 * (x + w + z))
    assert flops.conv(later, "bwd") == Work(4 * z * 9 * 4, 4 * (z + 2 * x + 2 * w))
    assert flops.conv(later, "tan") == Work(12 * z * 9 * 4, 4 * 3 * (z + x + w))
    x, w = x // 4, w // 4
    assert flops.conv(first, "bwd") == Work(2 * z * 9, 4 * (z + x + 2 * w))
    assert flops.conv(first, "tan") == Work(4 * z * 9, 4 * (3 * z + x + 3 * w))
    y = z // 4
    assert [flops.norm_act(later, part).bytes for part in PARTS] == [
        4 * (z + y),
        4 * (y + 2 * z),
        4 * 3 * (z + y),
    ]


@pytest.mark.parametrize("data", ops.DATA)
def test_work_of_passes_is_that_of_their_images(data: str):
    op = ops.Op("passes", data, "plain")
    cfg = ops.config(op)
    images = 2 * cfg.tasks * cfg.ways * cfg.shots
    counts = [ops.work(op, part).flops for part in PARTS]
    assert counts == [images * macs for macs in flops.per_image(cfg)]
