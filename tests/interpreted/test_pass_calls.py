"""What every pass keeps to: the same bits whatever runs beside it, winners, and input that does not
fit.
"""

import math

import pytest
import torch
from torch import Tensor

import kernels
from engine.models.backbone import Backbone
from engine.models.interface import Moments
from kernels import triton
from kernels.triton import launch, passes, stem, stem_launches, sums
from kernels.triton.plan import Head
from tests.passes import Problem, Results, composed, error, fused, named, often_equal, problem


class Counted:
    """A kernel that tells of its launches."""

    def __init__(self, kernel, launched: list[str], name: str):
        self.kernel, self.launched, self.name = kernel, launched, name

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]


MODEL = Backbone(1, 7, 3, 2, 3)
MODELS = {"pool": MODEL, "stride": Backbone(2, 5, 3, 2, 3, "stride")}


def triton_pass(made: Problem) -> Results:
    return fused(triton.passes, made)


def features(p: Problem) -> tuple[Tensor, ...]:
    return passes.embed(passes.prepare(p.model.net, p.x), p.theta, p.row, p.statistics)[:3]


def small(model: Backbone = MODEL, images: int = 2, tasks: int = 1, given=None) -> Problem:
    return problem(model, images, tasks, given).to(torch.float32)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_outputs_are_written_in_full_and_have_the_same_bits_again(model, request) -> None:
    made = small(model)
    expected, unwritten = triton_pass(made), request.getfixturevalue("unwritten")
    assert all(map(torch.equal, triton_pass(made), expected)) and unwritten


def test_a_task_does_not_depend_on_its_batch() -> None:
    made = small(tasks=3, given="each")
    together, part = triton_pass(made), slice(1, 2)
    statistics = Moments(*(s[part] for s in made.statistics))
    alone = triton_pass(made.of(part)._replace(statistics=statistics))
    assert all(torch.equal(a, b[part]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("model", "merged"), [(MODEL, True), (MODELS["stride"], False)])
def test_a_row_of_each_task_gives_the_bits_of_its_task_alone(model, merged, monkeypatch) -> None:
    if not merged:
        monkeypatch.setattr(launch, "OWN_TILES", 0)
    made = small(model, 1, tasks=2)
    rows = made.row * torch.tensor([[-0.5], [2.0]])
    for run in triton_pass, features:
        together = run(made._replace(row=rows))
        for t, row in enumerate(rows):
            part = slice(t, t + 1)
            alone = run(made.of(part)._replace(row=row))
            assert all(torch.equal(a, b[part]) for a, b in zip(alone, together, strict=True))


def test_repeated_images_are_those_of_as_many_tasks(monkeypatch) -> None:
    made = small(images=1, tasks=2)
    images, many = passes.prepare(MODEL.net, made.x), [made.theta, made.theta.flip(0)]
    found = passes.run(
        passes.repeated(images, 2), torch.cat(many), made.row, made.labels.repeat(2, 1)
    )
    for t, theta in enumerate(many):
        alone = passes.run(images, theta, made.row, made.labels)
        pairs = zip(alone[:-1], found[:-1], strict=True)
        assert all(torch.equal(a, b[2 * t : 2 * t + 2]) for a, b in pairs)
    monkeypatch.setattr(passes, "MOST_REPEATED", 4 * MODEL.net.side**2 - 1)
    assert passes.repeated(images, 2) is None


def test_any_layout_gives_the_same_bits() -> None:
    made = small(tasks=2, given="each")
    made = made._replace(theta=made.theta[:1].expand(2, -1))

    def spread(values: Tensor) -> Tensor:
        return torch.stack([values, -values], -1)[..., 0]

    moved = made._replace(
        **{name: spread(getattr(made, name)) for name in ("x", "theta", "row", "direction")},
        labels=spread(made.labels),
        statistics=Moments(*map(spread, made.statistics)),
    )
    assert all(map(torch.equal, triton_pass(moved), triton_pass(made)))


@pytest.mark.parametrize(("model", "given"), [(MODEL, "each"), (MODELS["stride"], None)])
def test_sums_of_tiles_are_the_same_whoever_adds_them_up(model, given, monkeypatch) -> None:
    made = small(model, given=given)
    found = triton_pass(made)
    launched = []
    for kernel in ("moments", "bwd_sums", "tan_fwd_sums", "tan_bwd_sums"):
        own = getattr(sums, f"{kernel}_kernel")
        fake = Counted(own, launched, kernel)
        monkeypatch.setattr(sums, f"{kernel}_kernel", fake)
    triton_pass(made)
    assert not launched  # of few tiles each program of the next launch does
    monkeypatch.setattr(launch, "OWN_TILES", 0)
    assert all(map(torch.equal, triton_pass(made), found))
    assert len(set(launched)) == 4


@pytest.mark.parametrize("given", ["each", None])
def test_the_statistics_of_a_stem_are_the_same_whoever_takes_them(given, monkeypatch) -> None:
    made = small(given=given)
    found = triton_pass(made)
    launched = []
    fake = Counted(stem.stem_moments_kernel, launched, "moments")
    monkeypatch.setattr(stem, "stem_moments_kernel", fake)
    triton_pass(made)
    assert not launched
    monkeypatch.setattr(stem_launches, "OWN_STEM_PROGRAMS", 0)
    assert all(map(torch.equal, triton_pass(made), found))
    assert launched


def test_what_is_not_asked_for_changes_nothing_else() -> None:
    made = small()
    images = passes.prepare(MODEL.net, made.x)
    kept = passes.run(images, made.theta, made.row, made.labels, None, True)
    lost = passes.run(images, made.theta, made.row, made.labels)
    alone = passes.run(images, made.theta, made.row)
    assert kept.kept is not None and lost.kept is None
    assert all(map(torch.equal, lost[:-1], kept[:-1]))
    assert alone.loss is alone.gradient is alone.norm_gradient is None
    for name in ("logits", "mean", "var"):
        assert torch.equal(getattr(alone, name), getattr(kept, name))


def test_the_first_of_equal_values_wins() -> None:
    made = often_equal(Backbone(1, 8, 6, 3, 4, "pool", 0.5, norm_eps=2.0**-17), 3)
    exact, ours = composed(made), triton_pass(made.to(torch.float32))
    for name, value in named(made.model, ours).items():
        assert error(value, named(made.model, exact)[name]) < 1e-6, name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for what is not a number
@pytest.mark.parametrize("where", ["image", "first", "last"])
def test_what_is_not_a_number_wins_its_window(where: str) -> None:
    made = small(Backbone(1, 8, 3, 2, 3), given="shared" if where == "last" else None)
    if where == "image":
        made.x[0, 1, 0, 3, 4] = torch.nan
    else:
        made.theta[0, 0 if where == "first" else made.model.sizes[0]] = torch.nan
    ours, expected = triton_pass(made), composed(made)
    for name, a, e in zip(Results._fields, ours, expected, strict=True):
        assert torch.equal(a.isnan(), e.isnan()), name
    assert expected.loss.isnan().all()


@pytest.mark.parametrize("label", [3, -1])
def test_the_loss_of_a_label_that_is_no_class_is_not_a_number(label: int) -> None:
    made = small(tasks=2)
    made.labels[1, 0] = label
    images = passes.prepare(MODEL.net, made.x)
    loss = passes.run(images, made.theta, made.row, made.labels).loss
    assert loss.isnan().tolist() == [False, True]


def test_precisions() -> None:
    x = torch.zeros(1)
    for precision in ("fp32", "tf32", "tf32x3", "bf16"):
        assert kernels.passes(x, precision) is passes
    with pytest.raises(kernels.BackendError, match="not in bf16x3; ask for tf32x3; ask for 'auto'"):
        kernels.passes(x, "bf16x3")
    assert kernels.fastest_precision(x) == "tf32"
    with pytest.raises(kernels.BackendError, match="triton takes float32, not float64"):
        kernels.passes(x.double())


MADE = small(tasks=2, given="each")
ROW, STATISTICS = MADE.row, MADE.statistics
HEAD = Head(ROW, ROW, ROW, ROW)


def prepared(x=None, **sizes) -> passes.Images:
    return passes.prepare(MODEL.net._replace(**sizes), MADE.x if x is None else x)


def images() -> passes.Images:
    """Of the images' shape, without the launches that prepare them."""
    return passes.Images.of(passes.Plan.of(MODEL.net, 2, 2), MADE.x.clone(), None)


def changed(**arguments) -> kernels.net.Result:
    made = MADE._replace(**arguments)
    return passes.run(images(), made.theta, made.row, made.labels, made.statistics, True)


def tangent(made: passes.Kept, **fields) -> tuple:
    return passes.tangent(made._replace(**fields), MADE.direction)


def written_to(name: str) -> passes.Kept:
    """A tensor of the caller, by the step of an optimizer, for one."""
    call = kept().call._replace(**{name: getattr(kept().call, name).clone()})
    made = passes.Kept.of(call, [], None, None, None, HEAD)
    getattr(call, name).add_(1)
    return made


def against(direction: Tensor) -> tuple[Tensor, Tensor]:
    return passes.tangent(kept(), direction)


def kept() -> passes.Kept:
    call = passes.Call(images(), MADE.theta, ROW, STATISTICS)
    return passes.Kept.of(call, [], None, None, None, HEAD)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prepared(MADE.x[..., 1:]), r"images: got \(2, 2, 1, 7, 6\); .*1, 7, 7\]"),
        (lambda: prepared(MADE.x[0]), r"images: got \(2, 1, 7, 7\)"),
        (lambda: prepared(MADE.x[:, :0]), r"images: got \(2, 0, 1, 7, 7\); .*N ≥ 1"),
        (lambda: prepared(MADE.x[:0]), r"images: got \(0, 2, 1, 7, 7\); .*T ≥ 1"),
        (lambda: prepared(MADE.x.double()), "triton takes float32, not float64"),
        (lambda: prepared(MADE.x.to("meta")), "triton runs on a CPU, .* not on meta"),
        (lambda: prepared(stages=17, pool=False), "triton passes take 1 to 16 stages, got 17"),
        (lambda: prepared(stages=0), "1 to 16 stages, got 0"),
        (lambda: prepared(stages=3), "3 stages that pool a side of at least 8, got .*side=7"),
        (lambda: prepared(filters=0), "sizes of at least 1, .*filters=0"),
        (lambda: prepared(filters=2**27), "its kernels count to 2147483647"),
        (lambda: prepared(precision="bf16x3"), "not in bf16x3; ask for tf32x3"),
        (lambda: changed(theta=MADE.theta[:, 1:]), r"theta must be torch.float32 \[2, \d+\]"),
        (lambda: changed(theta=MADE.theta[:1]), r"theta must be .*, got torch.float32 \[1, "),
        (lambda: changed(theta=MADE.theta.double()), "theta must be .*, got torch.float64"),
        (lambda: changed(theta=MADE.theta.to("meta")), "theta must be .* on cpu, got .* on meta"),
        (lambda: changed(row=ROW[:-1]), r"row must be torch.float32 \[12\] .*, got .* \[11\]"),
        (lambda: changed(statistics=STATISTICS._replace(mean=STATISTICS.mean[:1])), "mean must be"),
        (lambda: changed(statistics=STATISTICS._replace(var=STATISTICS.var[0])), "var must be"),
        (lambda: changed(statistics=Moments(ROW, ROW)), r"mean must be torch.float32 \[6\]"),
        (lambda: changed(labels=MADE.labels[:, 1:]), r"labels must be torch.int64 \[2, 2\]"),
        (lambda: changed(labels=MADE.labels.int()), "labels must be .*, got torch.int32"),
        (lambda: changed(labels=MADE.labels.to("meta")), "labels must be .* on meta"),
        (lambda: changed(labels=None), "keep needs labels"),
        (lambda: against(MADE.direction[:1]), "direction must be"),
        (lambda: against(MADE.direction.double()), "direction must be .*, got torch.float64"),
        (lambda: prepared(eps=-1.0), "eps must be a number from 0 to 1e.30, got -1.0"),
        (lambda: prepared(eps=math.nan), "eps must be .*, got nan"),
        (lambda: prepared(negative_slope=math.inf), "negative_slope must be .*, got inf"),
        (lambda: prepared(pool=None), "pool must be a bool .*, got None"),
        (lambda: prepared(side=7.0), "side must be an int .*, got 7.0 of float"),
        (lambda: prepared(ways=2**20 - 1, filters=2**12), r"\[2, \d+\] are .* values, its kernels"),
        (lambda: passes.run(None, MADE.theta, ROW), "run takes what prepare gave, got NoneType"),
        (lambda: passes.run(images()._replace(x=MADE.x), MADE.theta, ROW), "prepare gave was chan"),
        (lambda: passes.tangent(None, MADE.direction), "tangent takes what run gave, got NoneType"),
        (lambda: tangent(kept(), call=kept().call), "what run gave was changed since"),
        (lambda: tangent(kept(), outer=ROW.clone()), "what run gave was changed since"),
        (lambda: tangent(kept(), head=HEAD._replace(softmax=MADE.row.clone())), "gave was changed"),
        (lambda: tangent(written_to("theta")), "or a tensor in it was written to"),
        (lambda: tangent(written_to("row")), "or a tensor in it was written to"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_is_read(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
