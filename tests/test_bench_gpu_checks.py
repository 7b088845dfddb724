"""What the GPU benchmark judges by: the oracle that replays winners, emulated precisions, error
budgets; and what of its peers and of its tuner can be tried without a GPU.
"""

import json
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

import kernels
from bench import gate
from bench.baselines import cudnn_graph
from bench.cases import reduced
from bench.gpu import checks, compiling, errors, gradients, graph, tuning
from bench.gpu.replay import Bends, Recording, Replay, bends, choices
from bench.gpu.rows import ROWS, config
from bench.implementations import IMPLEMENTATIONS, TheLoop, missing
from engine.models.passes import FusedKept
from kernels.check.oracle import Choices
from kernels.check.products import convolution, parts

CPU = torch.device("cpu")
CFG = replace(reduced(ROWS[0].config()), image_size=12, stages=2, steps=2, targets=1)


@pytest.mark.parametrize(("stride", "side"), [(1, 5), (2, 6)])
def test_the_oracle_s_convolution_is_differentiable_twice(stride: int, side: int):
    x, w = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((2, 2, side, side), (3, 2, 3, 3))
    )
    x, w = x.requires_grad_(), w.requires_grad_()
    assert torch.equal(convolution(x, w, stride), torch.conv2d(x, w, None, stride, 1))
    assert torch.autograd.gradcheck(lambda *t: convolution(*t, stride), (x, w))
    assert torch.autograd.gradgradcheck(lambda *t: convolution(*t, stride), (x, w))


@pytest.mark.parametrize(
    ("precision", "count", "bits"),
    [("fp32", 1, 24), ("tf32", 1, 10), ("tf32x3", 2, 20), ("bf16", 1, 8), ("bf16x3", 2, 16)],
)
def test_parts_of_an_operand_hold_what_the_precision_holds(precision, count, bits):
    x = torch.randn(1000)
    found = parts(x, precision)
    assert len(found) == count
    apart = ((sum(found) - x).abs() / x.abs()).max().item()
    assert apart <= 2.0**-bits and (precision == "fp32" or apart > 2.0 ** -(bits + 3))


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_a_replayed_oracle_is_the_adjoint(downsample: str):
    made = gradients.of_row(replace(CFG, downsample=downsample), CPU)
    made = gradients._cast(made, torch.float64)
    ours, recording = gradients.adjoint(made, "plain")
    tape = recording.tape
    assert len(tape) == 2 * CFG.steps and all(tape)
    for each in (tape, None):
        exact = gradients.oracle(made, each, "fp32")
        for a, b in zip(gradients._tensors(ours), gradients._tensors(exact), strict=True):
            gate.agree("replayed", a, b, 1e-10)


def test_another_winner_or_bend_is_another_gradient():
    made = checks.problem(CFG, "support", CPU)
    results_, chosen, near = checks.run(made, "plain")
    assert near == (0, 0)  # what it keeps is the activation
    same = checks.oracle(made, chosen, "fp32")
    first = chosen[0]
    for changed in (
        Choices(3 - first.winners, first.positive),
        Choices(first.winners, ~first.positive),
    ):
        other = checks.oracle(made, [changed, *chosen[1:]], "fp32")
        for name in ("loss", "gradient conv0.weight", "product conv1.weight"):
            assert errors.error(results_[name], same[name]) < 1e-5
            assert errors.error(results_[name], other[name]) > 1e-2


def test_choices_of_kept_stages_are_those_of_composed_ones():
    """As a backend of whole passes keeps them: NHWC, and a code of two bits."""
    made = checks.problem(CFG, "support", CPU)
    with kernels.use("plain"):
        images = made.model.prepare(made.x, 2)
        kept = images.loss_and_gradient(made.theta, made.row, made.labels, keep=True).kept
    expected = choices(made.model, made.row, kept)
    stages = [
        SimpleNamespace(
            x_hat=stage.saved.x_hat.permute(0, 1, 3, 4, 2),
            winners=own.winners.permute(0, 1, 3, 4, 2).to(torch.uint8),
            p=None,
        )
        for stage, own in zip(kept.stages, expected, strict=True)
    ]
    fused = FusedKept(None, SimpleNamespace(stages=stages))
    for a, b in zip(choices(made.model, made.row, fused), expected, strict=True):
        assert torch.equal(a.winners, b.winners) and torch.equal(a.positive, b.positive)
    assert choices(made.model, made.row, FusedKept(None, SimpleNamespace())) is None


def test_bends_that_hang_on_a_rounding_are_counted():
    gain, bias = torch.tensor([1 + 2.0**-23, 0.5]), torch.tensor([-(1 + 2.0**-22), 0.0])
    x_hat = torch.tensor([[1 + 2.0**-23, 1.0], [2.0, -1.0]]).view(1, 1, 2, 1, 2)
    # of the first the rounded product is −bias, and the exact one 2⁻⁴⁶ more
    model = SimpleNamespace(stages=1, filters=2, pool=False)
    right = torch.tensor([[1e-9, 0.5], [1.0, -1e-3]]).view(1, 1, 2, 1, 2)
    for first, apart in ((1e-9, 0), (0.0, 1)):
        right[0, 0, 0, 0, 0] = first
        p = torch.zeros(1, 1, 4, 3, 2)
        p[:, :, 1:-1, 1:-1] = right
        stage = SimpleNamespace(x_hat=x_hat, winners=None, p=p)
        kept = FusedKept(None, SimpleNamespace(stages=[stage]))
        assert bends(model, torch.cat([gain, bias]), kept) == (1, apart)
        (chosen,) = choices(model, torch.cat([gain, bias]), kept)
        assert chosen.positive.flatten().tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("tf32", 1e-5, 5e-3), ("bf16", 1e-4, 5e-2)]
)
def test_an_emulated_precision_is_as_far_off_as_its_operands(precision, least, most):
    made = checks.problem(CFG, "support", CPU)
    _, chosen, _ = checks.run(made, "plain")
    exact, rounded = (checks.oracle(made, chosen, p) for p in ("fp32", precision))
    name = "gradient conv1.weight"
    assert least < errors.error(rounded[name], exact[name]) < most
    assert torch.equal(rounded["mean"][:, :6], exact["mean"][:, :6])  # of the stem


def test_a_recording_changes_nothing():
    made = gradients.of_row(CFG, CPU)
    recording = Recording(made.model)
    with kernels.use("plain"):
        for model in (recording, made.model):
            images = model.prepare(made.episode.support_x, 2)
            arguments = made.params.theta.expand(2, -1), made.params.norm[0]
            found = images.loss_and_gradient(*arguments, made.episode.support_y)
            assert found.kept is None
    assert len(recording.tape) == 1
    assert Replay(made.model).sizes == recording.sizes == made.model.sizes


def test_a_verdict_is_within_twice_the_error_of_torch_or_not():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch32, ours = exact + torch.tensor([0.0, 1e-3]), exact + torch.tensor([3e-3, 0.0])
    assert errors.error(torch32, exact) == pytest.approx(2e-4, rel=1e-3)
    found = errors.verdict([("a", ours, torch32, exact), ("b", torch32, torch32, exact)])
    assert not found["within"] and found["worst"] == "a"
    assert found["error"] == pytest.approx(6e-4) and found["budget"] == pytest.approx(
        4e-4, rel=1e-3
    )
    nan = torch.tensor([3.0, torch.nan])
    found = errors.verdict([("a", ours, torch32, exact), ("b", nan, torch32, exact)])
    assert not found["within"] and found["worst"] == "b"
    assert errors.verdict([("a", torch32, torch32, exact)])["within"]
    both = errors.verdict([("a", ours, torch32, exact), ("b", torch32, torch32, exact)])["errors"]
    assert both == {"a": pytest.approx([6e-4, 2e-4]), "b": pytest.approx([2e-4, 2e-4])}
    assert "TOO MUCH" in errors.item({"fwd": found}, True)["said"]
    said = errors.item({"fwd": found}, repeats=False, replayed=False)["said"]
    assert "TOO MUCH" not in said and said.endswith("its own winners; NOT THE SAME BITS TWICE")
    near = errors.item({}, True, bends=Bends(2, 1))
    assert near["said"] == "2 bends hang on a rounding; 1 BENDS TAKEN OTHERWISE"
    assert near["bends"] == {"rounded": 2, "apart": 1}
    assert errors.item({}, True, bends=Bends(0, 0))["said"] == ""


def test_the_device_s_loop_is_the_same_in_a_dry_run():
    cfg = config(ROWS[0], "fp32", True, CPU)
    assert graph.bits(cfg, CPU, 2)["same"]
    with graph.Stepping(cfg, CPU) as one, graph.Stepping(replace(cfg, lr=0.5), CPU) as other:
        for stepping in (one, other):
            assert stepping.iterations(2) > 0
        assert graph.differences(one.state, one.state) == ""
        assert graph.differences(one.state, other.state) == "params, first, second, running"


def test_a_captured_loop_over_cudnn_starts_where_the_loop_does(monkeypatch):
    def captured(work):
        for _ in range(3):
            work()
        return work

    monkeypatch.setattr(cudnn_graph, "captured", captured)
    assert "needs a GPU" in missing("cuDNN graph")
    cfg = replace(CFG, image_size=16, stages=4, tasks=2)
    ours, theirs = (IMPLEMENTATIONS[n](cfg, torch.float64) for n in ("ours", "cuDNN graph"))
    (loss, expected), (their_loss, found) = ours.checked(), theirs.checked()
    gate.agree("loss", loss, their_loss, gate.EXACT)
    for group in ("network", "norm", "rates"):
        for name, value in expected[group].items():
            gate.agree(name, value, found[group][name], gate.EXACT)
    loop = TheLoop(cfg, torch.float64)
    loop.iteration()
    for _ in range(2):
        gate.agree("loss", loop.iteration(), theirs.iteration(), 1e-9)
    for name, value in loop.baseline.stats.items():
        gate.agree(name, value, theirs.baseline.stats[name], 1e-9)
    theirs.batch = tuple(t.flip(0) for t in theirs.batch)  # another batch goes where it is read
    gate.agree("loss", loop.iteration(), theirs.iteration(), 1e-9)


def test_what_fails_to_compile_is_told():
    def run(one: int) -> None:
        if one % 2:
            raise ValueError(str(one))

    assert sorted(map(str, compiling.compile_all(run, range(4)))) == ["1", "3"]


def test_threads_compile_and_never_launch(monkeypatch):
    """A kernel whose first launch takes a moment, as that of a module to be loaded: a second thread
    would find it half loaded.
    """
    asked = []

    class Kernel:
        def __getitem__(self, grid):
            raise AssertionError("launched in a thread")

        def warmup(self, *arguments, grid, **options):
            asked.append((arguments, grid, options))

    module = SimpleNamespace(made_kernel=Kernel())
    monkeypatch.setitem(sys.modules, "kernels.triton.made", module)
    assert not compiling.compile_all(lambda n: module.made_kernel[(n, 2)]("a", BM=n), range(4))
    assert sorted(asked, key=str) == [(("a",), (n, 2), {"BM": n}) for n in range(4)]
    assert isinstance(module.made_kernel, Kernel)


def test_what_is_compiled_is_what_a_launch_looks_for(monkeypatch):
    """By Triton's own keys: sizes and addresses that 16 divides are kernels of their own."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    module = import_module("kernels.triton.update")
    kernel = module.descend_kernel
    if not isinstance(kernel, JITFunction):
        pytest.skip("TRITON_INTERPRET=1 interprets the kernels")
    made, ran = [], []

    def compiled(self, key, *_):
        loaded = SimpleNamespace(
            launch_metadata=lambda *_: None,
            run=lambda *arguments: ran.append(arguments[:3]),
            function=None,
            packed_metadata=None,
        )
        made.append(key)
        return self.device_caches[0][0].setdefault(key, loaded)

    stub = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(JITFunction, "_do_compile", compiled)
    names, memory = kernel.arg_names, torch.zeros(64)
    fixed = {p.name: 16 for p in kernel.params if p.is_constexpr}
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where it is not set
    monkeypatch.setattr(driver, "_active", stub)
    kernel.device_caches.clear()

    def launch(case: tuple[int, int]) -> None:
        size, offset = case
        given = [size if n.endswith("_step") else memory[offset:] for n in names]
        module.descend_kernel[(3, 2)](*given[: -len(fixed)], **fixed, num_warps=4)

    try:
        cases = [(48, 0), (7, 0), (48, 1)]
        assert not compiling.compile_all(launch, cases)
        assert len(set(made)) == len(made) == 3 and not ran
        for case in cases:
            launch(case)
        assert len(made) == 3 and ran == [(3, 2, 1)] * 3
    finally:
        kernel.device_caches.clear()


CHOICES = [dict(BM=bm, num_warps=w) for bm in (64, 32, 128) for w in (4, 8)]


def launch_table(tmp_path) -> SimpleNamespace:
    cache = SimpleNamespace(cache_clear=lambda: None)
    return SimpleNamespace(
        key=str,
        default=lambda g: CHOICES[0],
        candidates=lambda g: CHOICES,
        trying=lambda table: kernels.use("auto"),
        config=lambda g, device: CHOICES[1] if g == "third" else CHOICES[0],
        TUNED=tmp_path / "tuned.json",
        _tuned=cache,
    )


@pytest.mark.parametrize(("best", "kept"), [(0.9, True), (0.98, False)])
def test_the_tuner_keeps_what_is_clearly_better(best, kept, tmp_path, monkeypatch):
    table, measured = launch_table(tmp_path), []

    def seconds(launch, geometry, chosen, run, device) -> float:
        measured.append(chosen)
        return {(128, 4): 0.99, (128, 8): best}.get((chosen["BM"], chosen["num_warps"]), 1.0)

    monkeypatch.setattr(tuning, "_seconds", seconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    item = tuning.tune(table, "conv", lambda: None, CPU)
    assert item["config"] == (dict(BM=128, num_warps=8) if kept else None)
    assert item["tried"] == 5 and len(measured) == (7 if kept else 5)  # twice, when it is kept
    assert json.loads(table.TUNED.read_text()) == {
        "a GPU": {"conv": item["config"]} if kept else {}
    }


def test_neighbours_differ_in_as_little_as_any():
    assert tuning.neighbours(CHOICES[0], CHOICES) == [CHOICES[i] for i in (1, 2, 4)]
    off = dict(BM=16, num_warps=2)
    assert tuning.neighbours(off, CHOICES) == CHOICES
    assert tuning.neighbours(off, [off]) == []


def test_launches_are_recorded_with_what_configured_them(tmp_path, monkeypatch):
    table, launched = launch_table(tmp_path), []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append((grid, arguments, options))

    module = SimpleNamespace(add_kernel=Kernel(), sum_kernel=Kernel(), config=table.config)
    monkeypatch.setitem(sys.modules, "kernels.triton.made", module)
    with tuning.recorded(table) as groups:
        module.add_kernel[(0,)]("before any question")
        for geometry in ("first", "first"):
            module.add_kernel[(1, 2)](geometry, **module.config(geometry, CPU))
        module.sum_kernel[(3,)]("the first one's sum")
        third, second = module.config("third", CPU), module.config("second", CPU)
        module.add_kernel[(1, 2)]("third", **third)
        module.add_kernel[(1, 2)]("second", **second)
        module.sum_kernel[(3,)]("their sum")
    assert isinstance(module.add_kernel, Kernel) and len(launched) == 7
    assert {g: [c.arguments[0] for c in calls] for g, calls in groups.items()} == {
        "first": ["first", "the first one's sum"],
        "second": ["second", "their sum"],
        "third": ["third", "their sum"],
    }
    groups["first"][0]()
    assert launched[-1] == ((1, 2), ("first",), CHOICES[0])
