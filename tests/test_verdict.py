"""The short check: run once for a machine, kept, followed by dispatch and by training."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import kernels
from engine import evaluate, train
from engine.config import Config
from engine.data.bank import default_cache
from engine.runs import checkpoint
from engine.runs.run import Run
from engine.runtime.machine import machine, settled
from kernels import dispatch, native
from kernels.check import oracle, verdict
from kernels.dispatch import Findings, following
from tests.planted import scaled, wrong
from tests.test_check import simulated
from tests.tiny import flags, here, same

CPU, PROBE = torch.device("cpu"), torch.empty(0)
pytestmark = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")


@pytest.fixture
def checks(monkeypatch) -> list:
    """Every check that is run from now on."""
    run, check = [], verdict._check
    monkeypatch.setattr(verdict, "_check", lambda *a: run.append(a) or check(*a))
    return run


def test_the_first_time_is_checked_and_the_next_is_not(tmp_path, checks):
    began = time.process_time()
    first = verdict.of(CPU, "auto", tmp_path)
    assert time.process_time() - began < 3.0
    assert len(checks) == 1 and not first.findings.failures
    (line,) = first.lines
    assert line.startswith("kernels checked on ") and line.count("\n") == 0
    again = verdict.of(CPU, "fp32", tmp_path)
    assert len(checks) == 1 and again.lines == [] and again.findings == first.findings
    assert verdict.known(CPU, tmp_path) == first.findings
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["precisions"] == sorted(kernels.PRECISIONS)


def test_a_cached_verdict_delays_nothing(tmp_path):
    verdict.of(CPU, "auto", tmp_path)
    verdict._build.cache_clear()
    began = time.thread_time()  # torch's threads may still be looking out for work
    verdict.of(CPU, "auto", tmp_path)
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "9.9"),
        lambda patch: patch.setattr(verdict, "_processor", lambda: "another processor"),
        lambda patch: patch.setattr(verdict, "_build", lambda device: "another build"),
        lambda patch: native.module.limit_isa(native.module.Isa.portable),
    ],
    ids=["torch", "processor", "build", "instructions"],
)
def test_another_machine_torch_or_build_is_checked_anew(change, tmp_path, monkeypatch):
    before = native.module.isa()
    path = verdict._path(CPU, tmp_path)
    assert path == verdict._path(CPU, tmp_path)
    try:
        change(monkeypatch)
        assert (path == verdict._path(CPU, tmp_path)) == (
            native.module.isa().name == "portable" == before.name
        )
    finally:
        native.module.limit_isa(before)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"precisions": 1}',
        '{"precisions": [], "failed": {"a": "b"}, "seconds": {}}',
        '{"precisions": [], "failed": {}, "seconds": {"native": 3}}',
        "\xff",
    ],
)
def test_a_damaged_verdict_is_made_again(content: str, tmp_path, checks):
    path = verdict._path(CPU, tmp_path)
    path.write_bytes(content.encode("latin-1"))
    assert not verdict.of(CPU, "auto", tmp_path).findings.failures
    assert len(checks) == 1
    verdict.of(CPU, "auto", tmp_path)
    assert len(checks) == 1


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, checks):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "in"):
        assert not verdict.of(CPU, "auto", place).findings.failures
    assert len(checks) == 2


def test_verdicts_written_at_once_are_whole(tmp_path):
    stored = {"precisions": ["fp32"], "failed": {}, "seconds": {"native": {"fp32": 1.0}}}
    path = tmp_path / "kernels.json"

    def write_and_read(_) -> bool:
        verdict._write(path, stored)
        return verdict._read(path) == stored

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write_and_read, range(200)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("part", ["fwd", "bwd", "tan"])
def test_what_fails_is_left_out_by_auto_and_refused_when_asked_for(part: str, tmp_path, only_fp32):
    with wrong(native.passes, "passes", part, scaled):
        found = verdict.of(CPU, "auto", tmp_path)
    assert list(found.findings.failures) == [("native", "passes", "fp32")]
    checked, left_out = found.lines
    assert "1 FAILED" in checked
    assert left_out.startswith("left out: native passes in fp32 failed the check of this machine (")
    assert part in left_out and left_out.endswith(verdict.REPORT) and "\n" not in left_out
    assert verdict.of(CPU, "auto", tmp_path).lines == [left_out]
    assert kernels.passes(PROBE) is native.passes
    with following(found.findings):
        assert kernels.passes(PROBE) is None and kernels.fastest_precision(PROBE) == "fp32"
        assert kernels.backend("update", PROBE) is native.update
        with kernels.use("native"), pytest.raises(kernels.BackendError, match="please report it"):
            kernels.passes(PROBE)
    assert kernels.passes(PROBE) is native.passes


def test_an_op_that_fails_is_left_out_alone(tmp_path):
    with wrong(native.update, "update", "bwd", scaled):
        found = verdict.of(CPU, "auto", tmp_path).findings
    assert list(found.failures) == [("native", "update", "fp32")]
    with following(found):
        assert kernels.backend("update", PROBE) is kernels.dispatch.space("plain").update
        assert kernels.passes(PROBE) is native.passes
        _, reason = dispatch.choose("update", CPU, torch.float32)
        assert "native update failed the check of this machine (bwd reversed_dg off by" in reason
        with kernels.use("native"), pytest.raises(kernels.BackendError, match="failed the check"):
            kernels.backend("update", PROBE)


@pytest.mark.parametrize("precision", ["bf16x3", "bf16"])
def test_a_precision_that_fails_is_left_out_alone(precision: str, tmp_path, monkeypatch):
    """As on a processor that has it."""
    right = verdict.of(CPU, "auto", tmp_path)
    assert not right.findings.failures

    def planted(parts):
        return parts | {"tan": parts["tan"] | {"conv1": scaled(parts["tan"]["conv1"])}}

    simulated(monkeypatch, precision, planted)
    monkeypatch.setattr(verdict, "_seconds", lambda subject, passed: dict.fromkeys(passed, 1.0))
    found = verdict.of(CPU, "auto", tmp_path / "other").findings
    assert list(found.failures) == [("native", "passes", precision)]
    assert found.fastest == {}
    with following(found), pytest.raises(kernels.BackendError, match="failed the check"):
        kernels.passes(PROBE, precision)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"fp32": 0.0}, "fp32"),
        ({"fp32": 1.0, "bf16x3": 1.5}, "fp32"),
        ({"fp32": 1.0, "bf16x3": 0.97}, "fp32"),
        ({"fp32": 1.0, "bf16x3": 0.5}, "bf16x3"),
        ({"bf16x3": 1.5}, "bf16x3"),
        ({"fp32": 2.0, "tf32x3": 1.0}, "tf32x3"),
        ({"fp32": 2.0, "tf32x3": 1.0, "tf32": 3.0}, "tf32"),
    ],
)
def test_auto_takes_the_fastest_by_measurement(times: dict, expected: str, monkeypatch):
    found = verdict._findings({"precisions": [], "failed": {}, "seconds": {"native": times}})
    assert found.fastest == {"native": expected}
    monkeypatch.setattr(native.passes, "refusal", lambda precision: None)
    assert kernels.fastest_precision(PROBE) == "fp32"  # of what nobody measured
    with following(found):
        assert kernels.fastest_precision(PROBE) == expected
        assert kernels.fastest_precision(PROBE.double()) == "fp32"
        monkeypatch.setattr(native.passes, "refusal", lambda p: None if p == "fp32" else "no")
        assert kernels.fastest_precision(PROBE) == "fp32"


def test_precisions_are_timed_where_there_is_a_choice(monkeypatch):
    (subject,) = (s for s in verdict.subjects(CPU) if s.backend == "native")
    assert verdict._seconds(subject, ["fp32"]) == {"fp32": 0.0}
    assert verdict._once(subject, verdict.NETS["omniglot"]) > 0
    monkeypatch.setattr(
        verdict, "_once", lambda subject, net: {"fp32": 2.0, "bf16x3": 1.0}[net.precision]
    )
    assert verdict._seconds(subject, ["fp32", "bf16x3"]) == {"fp32": 4.0, "bf16x3": 2.0}


def test_a_gpu_is_asked_for_what_it_is_to_run():
    gpu = torch.device("cuda")
    assert verdict._wanted(gpu, "auto") == [("tf32",), verdict.FINE]
    assert verdict._wanted(gpu, "bf16") == [("bf16",)]


def test_the_default_folder_is_the_engine_s(monkeypatch):
    assert verdict.default_folder() == default_cache()
    monkeypatch.delenv("MAMLPP_CACHE")
    assert verdict.default_folder() == default_cache()


def test_training_checks_once_leaves_out_what_fails_and_says_so(images, tmp_path, capsys):
    def trained(name: str, *more: str) -> tuple[int, str, str]:
        argv = flags(images, tmp_path / name, "--cache", tmp_path / "cache", *more)
        return train.main(argv), *capsys.readouterr()

    code, out, err = trained("right")
    assert (code, err) == (0, "") and out.count("kernels checked on") == 1
    code, out, err = trained("again")
    assert (code, err) == (0, "") and "kernels checked on" not in out
    for file in (tmp_path / "cache").glob("kernels-*.json"):
        file.unlink()
    with wrong(native.passes, "passes", "tan", scaled):
        code, out, err = trained("wrong")
        assert (code, err) == (0, "")
        assert out.count("left out: native passes in fp32 failed the check") == 1
        code, out, err = trained("asked", "--backend", "native")
        assert code == 2 and not (tmp_path / "asked").exists()
        words = "error: --backend is native: native passes in fp32 failed the check of this machine"
        assert err.startswith(words)
        assert err.count("\n") == 1 and "please report it with the output of" in err
        code, out, err = trained("plain", "--backend", "plain")
        assert (code, err) == (0, "") and "left out" not in out


def test_evaluation_follows_the_same_verdict(images, tmp_path, capsys):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    code, out, err = here(train, flags(images, folder, "--cache", cache), capsys)
    assert (code, err) == (0, "") and "kernels checked on" in out
    asked = evaluate, [folder, "--cache", cache], capsys
    code, out, err = here(*asked)
    assert (code, err) == (0, "") and "kernels checked on" not in out
    for file in cache.glob("kernels-*.json"):
        file.unlink()
    code, out, err = here(*asked)
    assert (code, err) == (0, "") and "kernels checked on" in out


def opened(images, folder: Path) -> Run:
    from engine.runs.problem import Pictures, load_dataset

    cfg = Config.resolve(flags(images, folder))
    with machine(cfg) as device:
        folder.mkdir(exist_ok=True)
        return Run.open(cfg, folder, Pictures(load_dataset(cfg, "train")), device)


def test_a_resumed_run_keeps_its_precision_whatever_is_measured(
    images, tmp_path, monkeypatch, only_fp32
):
    folder = tmp_path / "run"
    first = opened(images, folder)
    assert (first.cfg.precision, first.asked) == ("fp32", "auto")
    saved = checkpoint.load(folder / checkpoint.LATEST)
    assert saved.precisions == {"cpu": "fp32"} and saved.config["precision"] == "auto"
    assert json.loads((folder / checkpoint.CONFIG).read_text())["precision"] == "auto"

    faster = Findings({}, {"native": "bf16x3"})
    monkeypatch.setattr(verdict, "of", lambda *a: verdict.Verdict(faster, []))
    monkeypatch.setattr(native.passes, "refusal", lambda precision: None)
    assert opened(images, tmp_path / "new").cfg.precision == "bf16x3"
    assert opened(images, folder).cfg.precision == "fp32"

    # A run from before precisions were recorded: what nobody measured.
    saved.precisions = None
    checkpoint.save(folder / checkpoint.LATEST, saved)
    assert opened(images, folder).cfg.precision == "fp32"
    path = folder / checkpoint.LATEST
    content = torch.load(path, weights_only=True)
    del content["precisions"]
    torch.save(content, path)
    old = checkpoint.load(path)
    assert old.precisions is None and same(old.state, saved.state)
    assert opened(images, folder).cfg.precision == "fp32"


def test_a_precision_that_is_gone_is_replaced_with_a_line(capsys):
    cfg = Config.of(dataset="omniglot")
    assert settled(cfg, CPU, {}).precision == "fp32"
    assert settled(cfg, CPU, {"cuda": "tf32"}).precision == "fp32"
    assert capsys.readouterr().out == ""
    assert settled(cfg, CPU, {"cpu": "tf32x3"}).precision == "fp32"
    out = capsys.readouterr().out
    assert out.startswith("precision tf32x3, which the run had, is now fp32: native takes")
    with kernels.use("plain"):
        assert settled(cfg, CPU, {"cpu": "fp32"}).precision == "auto"


def test_the_table_shows_what_is_left_out(tmp_path, monkeypatch, capsys, only_fp32):
    from kernels import __main__ as cli

    monkeypatch.setenv("MAMLPP_CACHE", str(tmp_path))
    with wrong(native.passes, "passes", "fwd", scaled):
        verdict.of(CPU, "auto", tmp_path)
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "native passes in fp32 failed the check of this machine (fwd logits off by" in shown
    assert oracle.PARTS and "precision of passes on cpu: none" in shown
