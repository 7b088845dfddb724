"""The benchmark itself: its gates see differences, its rows are complete, its workers measure."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import gate, modules, ops, results, turns
from bench.cases import (
    CASES,
    EVALUATIONS,
    MAIN,
    PEERS,
    PRECISIONS,
    ROWS,
    SHORT,
    SHORT_EVALUATIONS,
    TARGETS,
    Row,
    others,
    reduced,
    rounds_in,
)
from bench.implementations import IMPLEMENTATIONS, Ours, TheLoop, TheVmap, missing
from bench.worker import Worker
from kernels import reference

TINY = Row.of("omniglot 5w1s", "MAML", "first", 1, tasks=1)
# JAX compiles too long; bfloat16 has no float64 to compare in.
NAMES = [name for name in IMPLEMENTATIONS if name not in ("ours", "JAX", *PRECISIONS)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("algorithm", ["MAML", "MAML++"])
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("case", ["mini 5w1s", "omniglot 20w1s"])
def test_all_compute_the_same(case: str, order: str, algorithm: str, name: str):
    if reason := missing(name):
        pytest.skip(reason)
    gate.check_exact(Row.of(case, algorithm, order, steps=2).config(), name)


@pytest.mark.parametrize("row", modules.ROWS, ids=str)
def test_networks_of_ones_own_compute_the_same(row: modules.ModuleRow):
    gate.check_row(row, "loop")


def test_a_network_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch):
    row = modules.ModuleRow(modules.PERCEPTRON, small=True)
    loss, gradients = modules.IMPLEMENTATIONS["ours"](row, torch.float64).checked()

    class Other:
        def __init__(self, row, dtype):
            pass

        def checked(self):
            return loss, [*gradients[:-1], 1.001 * gradients[-1]]

    monkeypatch.setattr(modules, "IMPLEMENTATIONS", modules.IMPLEMENTATIONS | {"other": Other})
    gate.check_row(row, "loop")
    with pytest.raises(AssertionError, match=f"other: gradient {len(gradients) - 1}: relative"):
        gate.check_row(row, "other")


def test_a_worker_runs_a_network_of_ones_own():
    row = modules.ModuleRow(modules.PERCEPTRON, "last", small=True)
    with Worker(row, "ours", 1) as ours, Worker(row, "loop", 1) as loop:
        answers = [worker.run("iteration") for worker in (ours, loop)]
    gate.check_single(answers[0].loss, "loop", answers[1].loss)


def test_jax_computes_the_same():
    if reason := missing("JAX"):
        pytest.skip(reason)
    gate.check_exact(Row.of("mini 5w1s", steps=1).config(), "JAX")


@pytest.mark.parametrize("kind", [TheLoop, TheVmap])
@pytest.mark.parametrize("change", [{"negative_slope": 0.02}, {"msl_epochs": 0}])
def test_gate_sees_another_algorithm(kind, change: dict, monkeypatch: pytest.MonkeyPatch):
    cfg = Row.of("omniglot 20w1s", steps=2).config()
    other = {"other": lambda c, *placed: kind(replace(c, **change), *placed)}
    monkeypatch.setattr(gate, "IMPLEMENTATIONS", IMPLEMENTATIONS | other)
    with pytest.raises(AssertionError, match="other: .*relative difference"):
        gate.check_exact(cfg, "other")


@pytest.mark.parametrize("name", PRECISIONS)
def test_gate_sees_a_float32_loss_that_bfloat16_does_not_explain(name: str):
    if reason := missing(name):
        pytest.skip(reason)
    cfg = reduced(Row.of("omniglot 20w1s", steps=2).config())
    losses = [IMPLEMENTATIONS[each](cfg).iteration() for each in ("ours", name)]
    assert losses[0] != losses[1]
    gate.check_single(losses[0], name, losses[1])
    with pytest.raises(AssertionError, match=f"{name}: float32 loss"):
        gate.check_single(losses[0], name, 1.1 * losses[1])


def test_gate_sees_first_order_in_the_gradient(monkeypatch: pytest.MonkeyPatch):
    cfg = Row.of("mini 5w1s", steps=2).config()
    other = {"other": lambda c, *placed: TheLoop(replace(c, first_order_epochs=1), *placed)}
    monkeypatch.setattr(gate, "IMPLEMENTATIONS", IMPLEMENTATIONS | other)
    with pytest.raises(AssertionError, match="other: gradient of"):
        gate.check_exact(cfg, "other")


@pytest.mark.parametrize("a, b", [(1.0, 1.01), (1.0, float("nan")), (float("nan"),) * 2])
def test_gate_sees_another_float32_loss(a: float, b: float):
    with pytest.raises(AssertionError, match="loop: float32 loss"):
        gate.check_single(a, "loop", b)


def test_several_iterations_agree():
    cfg = reduced(Row.of("mini 5w1s", steps=2).config())
    cfg = replace(cfg, image_size=20, clamp=0.01)
    ours, *others = (kind(cfg, torch.float64) for kind in (Ours, TheLoop, TheVmap))
    for _ in range(3):
        loss = ours.iteration()
        for other in others:
            gate.agree("loss", loss, other.iteration(), 1e-8)


@pytest.mark.parametrize("case", CASES)
def test_evaluations_agree(case: str):
    cfg = replace(reduced(Row.of(case, loss="last").config()), image_size=20)
    ours, loop = (kind(cfg, torch.float64) for kind in (Ours, TheLoop))
    gate.agree("loss", ours.evaluation(), loop.evaluation(), gate.EXACT)


SMALLEST = [op for op in ops.available() if op.case in ("mini-4-support", *ops.DATA)]


@pytest.mark.parametrize("op", SMALLEST, ids=str)
def test_ops_are_what_their_definitions_say(op: ops.Op):
    gate.check_op(op)
    for part, call in ops.calls(op).items():
        assert call() is not None
        assert min(ops.work(op, part)) > 0


@pytest.mark.parametrize("name", ["conv", "norm_act", "head", "update"])
def test_gate_sees_another_op(name: str, monkeypatch: pytest.MonkeyPatch):
    op = next(op for op in SMALLEST if op.name == name)
    public, inputs = gate.public(op)

    def changed(of, *tensors):
        return public(of, *tensors) * (1 if of is reference else 1 + 1e-6)

    monkeypatch.setattr(gate, "public", lambda _: (changed, inputs))
    with pytest.raises(AssertionError, match=f"{name}.*result 0"):
        gate.check_op.__wrapped__(op)


def test_rows_cover_every_dimension():
    assert len({str(row) for row in ROWS}) == len(ROWS)
    for case in ("mini 5w1s", "omniglot 20w1s"):
        for algorithm in ("MAML", "MAML++"):
            for order in ("first", "second"):
                rows = [Row.of(case, algorithm, order, steps) for steps in range(1, 6)]
                assert set(rows) <= set(ROWS)
    last = Row.of("omniglot 5w1s", loss="last")
    assert {replace(last, tasks=tasks) for tasks in (1, 2, 4, 8, 16)} <= set(ROWS)
    assert {Row.of(case, loss=loss) for case in CASES for loss in ("MSL", "last")} <= set(ROWS)


def test_the_short_run_has_the_targets_a_first_order_and_a_row_of_our_own_variants():
    assert {*TARGETS} - {*SHORT} == {Row.of("mini 5w5s")} and {*SHORT} <= {*ROWS}
    assert {row.order for row in SHORT} == {"first", "second"}
    assert others(MAIN, full=False) == ["loop", "ours, AVX2", *PRECISIONS, "authors' code"]
    assert set(SHORT_EVALUATIONS) < set(EVALUATIONS)
    for full in (False, True):
        assert all(others(row, full)[0] == "loop" for row in ROWS)
        assert any(set(PEERS[:2]) <= {*others(row, full)} for row in SHORT)


def test_workers_run_a_row_and_measure_themselves():
    with Worker(TINY, "ours", 1) as ours, Worker(TINY, "loop", 1) as loop:
        for command in ("evaluation", "iteration", "iterations 2"):
            answers = [worker.run(command) for worker in (ours, loop)]
            gate.check_single(answers[0].loss, "loop", answers[1].loss)
            assert all(answer.seconds > 0 for answer in answers)
        peaks = [worker.peak() for worker in (ours, loop)]
        assert all(1 << 20 < peak < 1 << 32 for peak in peaks)
        assert [worker.process.poll() for worker in (ours, loop)] == [None, None]
    assert [worker.process.returncode for worker in (ours, loop)] == [0, 0]


def test_a_worker_that_fails_says_why(capfd: pytest.CaptureFixture):
    row = replace(TINY, case="no such case")
    with pytest.raises(RuntimeError, match="no-such-case.* ours died.*'iteration', exit code 1"):
        with Worker(row, "ours", 1) as worker:
            worker.run("iteration")
    assert "KeyError: 'no such case'" in capfd.readouterr().err


def test_a_worker_that_was_killed_is_an_error():
    with Worker(TINY, "loop", 1) as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(RuntimeError, match="exit code -9"):
            worker.peak()


def test_a_worker_that_does_not_answer_in_time_is_ended():
    with Worker(TINY, "loop", 1, patience=0.01) as worker:  # importing torch takes longer
        with pytest.raises(TimeoutError, match="loop: no answer in 0 s"):
            worker.run("iteration")
    assert worker.process.returncode == -9


class Rounds:
    """In place of pytest-benchmark's fixture."""

    def pedantic(self, call, setup, rounds: int) -> None:
        for _ in range(rounds):
            setup()
            call()


def test_ours_takes_turns_with_each_of_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "missing", lambda name: "not here" if name == "JAX" else None)
    measured = turns.take_turns(
        TINY, ["loop", "JAX", "vmap"], "iteration", turns.Budget(0, 2, 2), Rounds()
    )
    result = measured.result()
    assert {name: len(each) for name, each in result["rounds"].items()} == {
        "ours": 4,
        "loop": 2,
        "vmap": 2,
    }
    assert result["seconds"].keys() == result["memory"].keys() == {"ours", "loop", "vmap"}
    assert result["absent"] == {"JAX": "not here"}


def test_a_peer_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch):
    budget = turns.Budget(0, 1, 1, patience=0.01)
    measured = turns.take_turns(TINY, ["loop", "vmap"], "iteration", budget, Rounds())
    assert set(measured.rounds) == set(measured.memory) == {"ours", "loop"}
    assert "no answer in 0 s" in measured.absent["vmap"]


def test_a_peer_that_dies_half_way_takes_its_rounds_along(monkeypatch: pytest.MonkeyPatch):
    class Played:
        """A worker that takes a second, and `vmap` twice only."""

        def __init__(self, row, name, *_):
            self.name, self.left = name, 3 if name == "vmap" else 99

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run(self, command):
            self.left -= 1
            if not self.left:
                raise RuntimeError("died")
            return SimpleNamespace(seconds=1.0, loss=0.0)

        def peak(self):
            return 1

    monkeypatch.setattr(turns, "Worker", Played)
    monkeypatch.setattr(turns, "missing", lambda name: None)
    monkeypatch.setattr(turns.gate, "check_row", lambda *_: None)
    others = ["loop", "vmap", "authors' code"]
    measured = turns.take_turns(TINY, others, "iteration", turns.Budget(0, 4, 4), Rounds())
    assert measured.absent == {"vmap": "died"}
    assert {name: len(of) for name, of in measured.rounds.items()} == {
        "ours": 8, "loop": 4, "authors' code": 4,
    }  # fmt: skip


@pytest.mark.parametrize("once, rounds", [(1.0, 6), (100.0, 2), (0.001, 9)])
def test_rounds_fill_the_budget_within_bounds(once: float, rounds: int):
    assert rounds_in(once, 6.0, 2, 9) == rounds


def test_memory_does_not_count_what_the_parent_held():
    alone = [sys.executable, "-c", "from bench.worker import peak_bytes; print(peak_bytes())"]
    code = (
        "import torch; x = torch.ones(300 << 18); import subprocess;"
        f"print(subprocess.run({alone!r}, capture_output=True, text=True, check=True).stdout)"
    )
    below, plain = (
        int(subprocess.run(c, cwd=results.ROOT, capture_output=True, text=True, check=True).stdout)
        for c in ([sys.executable, "-c", code], alone)
    )
    assert abs(below - plain) < 100 << 20
