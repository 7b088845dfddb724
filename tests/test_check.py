"""The check of a machine: it passes what is right, and sees what is planted."""

import os
import re
import subprocess
import sys
import threading

import pytest
import torch

from kernels import __main__ as cli
from kernels import dispatch, native, plain, tf32
from kernels.check import errors, ops, oracle
from kernels.check import rows as check
from kernels.check.rows import MARGINS, PARTS, SHORT, Subject
from tests import winograd
from tests.planted import FAULTS, NET, SMALL, assert_caught, assert_clean, scaled, wrong
from tests.slow import chosen

CPU = torch.device("cpu")
built = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")


def subject(backend: str) -> Subject:
    return Subject(CPU, backend, native.module.isa() if backend == "native" else None)


@built
def test_every_instruction_set_is_within_budget_and_the_limit_is_restored():
    before = native.module.isa()
    found = check.rows(check.subjects(CPU, every=True), SMALL)
    assert native.module.isa() == before
    assert_clean(found)
    assert {"portable", before.name} <= {r.instructions for r in found if r.backend == "native"}
    assert {r.op for r in found if r.backend == "native"} == set(native.OPS)
    assert {r.op for r in found if r.backend == "plain"} == set(plain.OPS)
    granted = [p for p in dispatch.PRECISIONS if native.passes.refusal(p) is None]
    for isa in {r.instructions for r in found if r.backend == "native"}:
        ran = {r.precision for r in found if r.instructions == isa and r.op == "passes"}
        assert ran == set(granted) if isa == before.name else "fp32" in ran


SINGLE_OPS = """
from torch import device
from kernels.check import rows
stages = [s for s in rows.FULL.stages if s.name in ("mini-1-support", "omniglot-3")]
single = rows.Sizes({}, {}, stages, ())
subjects = [s for s in rows.subjects(device("cpu"), every=True) if s.backend == "native"]
failed = [r for r in rows.rows(subjects, single) if r.failed]
print([(r.instructions, r.op, r.network, r.failed) for r in failed])
"""


@built
@pytest.mark.parametrize("most", chosen(["SSE41", "AVX2", "AVX512_CORE"], ["AVX2"]))
def test_budgets_hold_on_every_processor(most: str):
    """They are multiples of torch's own error, and its sums are other ones on another processor."""
    out = subprocess.run(
        [sys.executable, "-c", SINGLE_OPS],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": most},
        capture_output=True,
        text=True,
    )
    assert out.stdout == "[]\n", out.stdout + out.stderr


@pytest.mark.parametrize(
    ("backend", "op"),
    [*(("native", op) for op in native.OPS), *(("plain", op) for op in plain.OPS)],
)
@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_kernel_is_caught(backend: str, op: str, part: str):
    if (op, part) in {("lstm", "tan"), ("gather", "bwd"), ("gather", "tan")}:
        pytest.skip(f"{op} has no {part}")
    if backend == "native" and native.module is None:
        pytest.skip(f"native module: {native.reason}")
    for fault in FAULTS:
        assert_caught(subject(backend), op, part, fault)


@built
def test_a_kernel_that_does_not_run_is_caught(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("illegal instruction\nand more")

    monkeypatch.setattr(native.update, "fwd", broken)
    row = next(r for r in check.rows([subject("native")], SMALL) if r.op == "update")
    assert row.failed.startswith("fwd raised RuntimeError: illegal instruction; bwd raised ")


def simulated(monkeypatch, precision: str, fault=lambda parts: parts) -> None:
    """Passes in a precision that this machine may lack: ordinary torch that rounds operands, with
    its own winners.
    """

    def fused(backend, p, precision: str):
        return fault(oracle.passes(p._replace(chosen=None), precision, torch.float32))

    monkeypatch.setattr(oracle, "fused", fused)
    monkeypatch.setattr(native.passes, "refusal", lambda asked: None if asked == precision else "")


@built
@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_kernel_is_caught_in_every_precision(precision: str, part: str, monkeypatch):
    name = {"fwd": "logits", "bwd": "conv1", "tan": "conv1"}[part]

    def planted(parts):
        return parts | {part: parts[part] | {name: fault(parts[part][name])}}

    one = [Subject(CPU, "native", native.module.isa())]
    simulated(monkeypatch, precision)
    found = [r for r in check.rows(one, SMALL, [precision]) if r.op == "passes"]
    assert_clean(found)
    for fault in FAULTS[::2] if "x3" not in precision and precision != "fp32" else FAULTS:
        simulated(monkeypatch, precision, planted)
        (row,) = [r for r in check.rows(one, SMALL, [precision]) if r.op == "passes"]
        assert [p for p in PARTS if not row.parts[p].within] == [part], (fault, row.parts)
        assert name in row.failed


def test_the_exact_pass_has_a_core_for_each_task(threads, monkeypatch):
    found, task = [], oracle._task

    def counted(*args, **options):
        other = threading.Thread(target=torch.set_num_threads, args=(3,))
        other.start()
        other.join()
        result = task(*args, **options)
        found.append(torch.get_num_threads())
        return result

    monkeypatch.setattr(oracle, "_task", counted)
    made = oracle.problem(*SMALL.coarse["mini"], MARGINS["bf16"])
    torch.set_num_threads(3)
    oracle.passes(made)
    assert found == [1] * len(made.x)


@pytest.mark.parametrize("precision", ["tf32", "bf16x3", "bf16"])
def test_rounded_transforms_are_allowed_their_error_and_no_more(precision: str):
    # Winograd's sums have up to twice the error of direct ones, and another.
    made = oracle.problem(*SMALL.coarse["mini"], MARGINS["bf16"])
    exact = oracle.passes(made)
    torch32 = oracle.passes(made, precision, torch.float32)

    def off(by: float):
        return {
            part: {n: e + by * (torch32[part][n].double() - e) for n, e in exact[part].items()}
            for part in PARTS
        }

    assert all(e.within for e in errors.judged(off(-2), torch32, exact, precision).values())
    assert not any(e.within for e in errors.judged(off(5), torch32, exact, precision).values())


@pytest.mark.parametrize("precision", ["bf16x3", "bf16"])
@pytest.mark.parametrize("network", ["mini", "omniglot"])
def test_winograd_s_products_are_within_budget(precision: str, network: str, monkeypatch):
    """Emulated with their own winners, at the sizes that a processor that has them runs."""
    rounded = MARGINS[precision] == MARGINS["bf16"]
    full, short = ((s.coarse if rounded else s.fine).get(network) for s in (check.FULL, SHORT))
    for size in filter(None, (full if rounded else None, short)):
        made = oracle.problem(*size, MARGINS[precision])
        exact, torch32 = oracle.passes(made), oracle.passes(made, precision, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(oracle, "convolution", winograd.convolution)
            ours = oracle.passes(made._replace(chosen=None), precision, torch.float32)
        for part, error in errors.judged(ours, torch32, exact, precision).items():
            assert error.within, f"{part} {error}"


@pytest.mark.parametrize("precision", dispatch.PRECISIONS)
def test_no_rounding_moves_a_winner_or_a_bend(precision: str):
    sizes = SHORT.coarse if MARGINS[precision] == MARGINS["bf16"] else SHORT.fine
    for size in sizes.values():
        made = oracle.problem(*size, MARGINS[precision])
        given, own = (
            oracle.passes(p, precision, torch.float32) for p in (made, made._replace(chosen=None))
        )
        exact = oracle.passes(made)
        for part in PARTS:
            for name, e in exact[part].items():
                apart = errors.errors(own[part][name], e), errors.errors(given[part][name], e)
                assert apart[0][1] <= 1.5 * apart[1][1] + 1e-6, name


def test_problems_hold_what_they_promise():
    made = oracle.problem(*SMALL.fine["mini"], 1e-3)
    for values in (made.x, made.theta, made.row, made.direction):
        assert torch.equal(values, oracle.single(values))
    assert {0, 1, 2, 3} == set(made.chosen[0].winners.unique().tolist())
    assert 0.1 < made.chosen[0].positive.double().mean() < 0.9
    gains = made.row.view(NET.stages, 2, -1)[:, 0]
    assert (gains < 0).any() and (gains > 0).any()
    assert len(oracle.segments(NET)) == NET.stages + 2
    assert sum(oracle.segments(NET)) == made.theta.shape[1]


def test_both_networks_are_checked_whole():
    assert {n: size[0] for n, size in check.FULL.fine.items()} == check.NETS
    stages = [(c.filters, c.side) for c in check.FULL.stages]
    assert stages == [(48, 84), (48, 42), (48, 21), (48, 10), (64, 28), (64, 14), (64, 7), (64, 3)]


def test_the_truth_of_an_op_is_that_of_gradients_of_gradients():
    x, w, dy, x_dot, w_dot, dy_dot = (torch.randn(3, 3, dtype=torch.float64) for _ in range(6))
    results = oracle.derivatives(lambda a, b: (a @ b) ** 2, [x, w], [x_dot, w_dot], dy, dy_dot)
    step = 1e-6

    def all_of(sign: float):
        moved = (a + sign * step * b for a, b in ((x, x_dot), (w, w_dot), (dy, dy_dot)))
        a, b, d = moved
        return (a @ b) ** 2, 2 * d * (a @ b) @ b.mT, a.mT @ (2 * d * (a @ b))

    for ours, expected in zip([*results[0], *results[1]], all_of(0), strict=True):
        assert torch.allclose(ours, expected)
    for ours, ahead, behind in zip(results[2], all_of(1), all_of(-1), strict=True):
        assert torch.allclose(ours, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


def test_the_command_checks_and_says_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr(check, "FULL", SMALL)
    assert cli.main(["--check"]) == 0
    shown = capsys.readouterr().out
    assert "value" in shown and "gradient" in shown and "tangent" in shown
    assert re.search(r"\nall \d+ rows are within their error budgets \(\d+ s\)\n$", shown)
    fwd = plain.update.fwd
    monkeypatch.setattr(plain.update, "fwd", lambda *a: scaled(fwd(*a)))
    assert cli.main(["--check"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED: fwd theta off by" in shown and "please report it with the output of" in shown


@pytest.mark.parametrize("argument", ["--nope", "--check=3", "--chec", "more"])
def test_an_unknown_flag_is_one_line_and_exit_code_2(argument: str, capsys):
    assert cli.main([argument]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_ops_are_named_result_by_result():
    case = ops.update(NET, 2)
    assert set(case.named(case.truth(*case.tensors))) == set(PARTS)


def test_plain_convolutions_of_a_gpu_are_held_against_torch_s_own_there(monkeypatch):
    """cuDNN may add up a filter's gradient with a larger error than a processor does, which is no
    fault of ours; that of another backend, or a larger one, is.
    """
    gpu, there = torch.device("cuda"), check._torch32_on
    assert Subject(gpu, "plain", None).is_torch("conv")
    for each, op in (("plain", "update"), ("triton", "conv"), ("cuda", "norm_act")):
        assert not Subject(gpu, each, None).is_torch(op)
    assert not subject("plain").is_torch("conv")

    def less_exact(device, case):
        return {
            part: {name: off(values) for name, values in each.items()}
            for part, each in there(device, case).items()
        }

    def off(values):
        return values * (1 + 1e-4)

    def failed(fault) -> set[str]:
        with wrong(plain.conv, "conv", "bwd", fault):
            return {r.op for r in check.rows([subject("plain")], SMALL) if r.failed}

    monkeypatch.setattr(check, "_torch32_on", less_exact)
    assert failed(off) == {"conv"}
    monkeypatch.setattr(Subject, "is_torch", lambda self, op: op == "conv")
    assert failed(off) == set() and failed(scaled) == {"conv"}


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has no new settings")
def test_settings_of_tf32_by_their_new_names_are_read_and_stay():
    conv = torch.backends.cudnn.conv
    before = tf32.state()
    try:
        conv.fp32_precision = "ieee"
        assert not tf32.of_convolutions()
        with tf32.off():
            assert not tf32.of_convolutions()
        assert (conv.fp32_precision, *before[1:]) == tf32.state() == ("ieee", *before[1:])
    finally:
        conv.fp32_precision = before[0]
    assert tf32.of_convolutions() == (before[0] == "tf32")


def test_exact_products_have_an_order_and_leave_torch_as_it_was():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    with pytest.raises(KeyError), oracle.exact_products():
        assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
        raise KeyError
    assert (cudnn.allow_tf32, cudnn.deterministic) == before
