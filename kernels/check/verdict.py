"""What a short check found on this machine, kept in a folder: what fails is left out by dispatch,
and `auto` takes the fastest precision, as measured.

A verdict is of a processor or GPU, the instruction sets granted, the version of torch and the
contents of this package. A file that is damaged or cannot be written is no error: the check is run
again.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import time
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from kernels import dispatch, native
from kernels.check.oracle import randn, segments
from kernels.check.rows import NETS, SHORT, Subject, rows, subjects
from kernels.dispatch import Findings
from kernels.net import Net
from kernels.threads import only_kernels, threads

FORMAT = 1  # of the file, and of what is checked
FINE = ("fp32", "tf32x3", "bf16x3")  # operands whole or in two parts: what `auto` chooses among
TORCH_ON_GPU = "tf32"  # what torch's own convolutions take there
ROUNDS, IMAGES = 4, 3  # of a measurement, of which the fastest counts; of a task
GAIN = 0.95  # of the time of fp32, which another precision has to stay below
REPORT = "please report it with the output of `python -m kernels --check`"


class Verdict(NamedTuple):
    findings: Findings
    lines: list[str]  # for people: what is left out, and what was found if it was found just now


def default_folder() -> Path:
    """The engine's folder of decoded data, by its default."""
    return Path(os.environ.get("MAMLPP_CACHE") or "~/.cache/mamlpp").expanduser()


def of(device: torch.device, precision: str, folder: Path) -> Verdict:
    """On the backends that dispatch chooses from there, for a run in a precision or in `auto`.

    On a CPU every precision is looked at. On a GPU, where each has kernels to be compiled, it is
    the one asked for, or the default one, and others only if that fails.
    """
    path, lines = _path(device, folder), []
    stored = _read(path)
    for wanted in _wanted(device, precision):
        if missing := [p for p in wanted if p not in stored["precisions"]]:
            began = time.monotonic()
            stored = _merged(stored, _check(device, missing))
            lines.append(_said(device, stored, time.monotonic() - began))
            _write(path, stored)
        if any(stored["seconds"].values()):
            break
    findings = _findings(stored)
    return Verdict(findings, lines + [f"left out: {why}" for why in findings.failures.values()])


def known(device: torch.device, folder: Path) -> Findings:
    """What a check found before; none is run."""
    return _findings(_read(_path(device, folder)))


def _wanted(device: torch.device, precision: str) -> list[tuple[str, ...]]:
    """Each to be looked at if those before it have none that passes."""
    if device.type == "cpu":
        return [dispatch.PRECISIONS]
    return [(TORCH_ON_GPU,), FINE] if precision == "auto" else [(precision,)]


def _findings(stored: dict) -> Findings:
    failures = {}
    for key, words in stored["failed"].items():
        backend, op, precision = key.split()
        name = f"{op} in {precision}" if op == "passes" else op
        failures[backend, op, precision] = (
            f"{backend} {name} failed the check of this machine ({words}); {REPORT}"
        )
    times = {backend: of for backend, of in stored["seconds"].items() if of}
    return Findings(failures, {backend: _fastest(of) for backend, of in times.items()})


def _fastest(times: dict[str, float]) -> str:
    """TF32 where it is the default, fp32 unless another one is clearly faster."""
    if TORCH_ON_GPU in times:
        return TORCH_ON_GPU
    best = min(times, key=times.get)
    return best if times[best] < GAIN * times.get("fp32", math.inf) else "fp32"


def _check(device: torch.device, precisions: list[str]) -> dict:
    with only_kernels():
        of = subjects(device)
        of = [s for s in of if s.backend != "plain"] or of  # plain is torch itself
        found = rows(of, SHORT, precisions)
        failed = {f"{r.backend} {r.op} {r.precision}": r.failed for r in found if r.failed}
        seconds = {}
        for subject in of:
            passed = [
                p
                for p in subject.precisions(precisions)
                if p in (TORCH_ON_GPU, *FINE) and f"{subject.backend} passes {p}" not in failed
            ]
            seconds[subject.backend] = _seconds(subject, passed)
    return {"precisions": precisions, "failed": failed, "seconds": seconds}


def _seconds(subject: Subject, precisions: list[str]) -> dict[str, float]:
    """Of forward, backward and tangent passes of both networks, by turns; 0 without a choice."""
    if len(precisions) < 2:
        return dict.fromkeys(precisions, 0.0)
    best = {}
    for _ in range(ROUNDS):
        for precision in precisions:
            for network, net in NETS.items():
                key = precision, network
                took = _once(subject, net._replace(precision=precision))
                best[key] = min(best.get(key, math.inf), took)
    return {p: sum(best[p, network] for network in NETS) for p in precisions}


def _once(subject: Subject, net: Net) -> float:
    tasks = threads()
    theta, direction = (randn(seed, tasks, sum(segments(net))) for seed in (0, 1))
    x = randn(2, tasks, IMAGES, net.channels, net.side, net.side)
    row = torch.tensor([1.0, 0.0]).repeat(net.stages, 1).repeat_interleave(net.filters, 1).flatten()
    moved = (t.to(subject.device, torch.float32) for t in (x, 0.1 * theta, direction, row))
    x, theta, direction, row = moved
    labels = torch.arange(IMAGES, device=subject.device).expand(tasks, -1)
    passes = subject.functions("passes")
    with subject.running():
        began = _now(subject.device)
        kept = passes.run(passes.prepare(net, x), theta, row, labels, None, True).kept
        passes.tangent(kept, direction)
        return _now(subject.device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _merged(old: dict, new: dict) -> dict:
    seconds = dict(old["seconds"])
    for backend, times in new["seconds"].items():
        seconds[backend] = seconds.get(backend, {}) | times
    return {
        "precisions": sorted({*old["precisions"], *new["precisions"]}),
        "failed": old["failed"] | new["failed"],
        "seconds": seconds,
    }


def _said(device: torch.device, stored: dict, seconds: float) -> str:
    times = [
        f"{backend} in {precision} {1000 * s:.0f} ms"
        for backend, of in stored["seconds"].items()
        for precision, s in of.items()
        if s
    ]
    verdict = (
        f"{len(stored['failed'])} FAILED" if stored["failed"] else "within their error budgets"
    )
    return f"kernels checked on {name(device)}, once, in {seconds:.1f} s: {verdict}" + (
        f" ({', '.join(times)})" if times else ""
    )


def name(device: torch.device) -> str:
    return _machine(device)["name"]


def _path(device: torch.device, folder: Path) -> Path:
    key = json.dumps(
        [FORMAT, _machine(device), torch.__version__, _build(device.type)], sort_keys=True
    )
    return folder / f"kernels-{device.type}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"


def _machine(device: torch.device) -> dict:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return {"name": name, "capability": torch.cuda.get_device_capability(device)}
    module = native.module
    granted = {} if module is None else module.cpu_features() | {"in use": module.isa().name}
    return {"name": _processor(), "granted": granted}


@cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _build(device: str) -> str:
    """Of the contents of the package and of the compiled module for a device, wherever that
    lies.
    """
    package = Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".json"))
    module = dispatch.space({"cpu": "native"}.get(device, device)).module
    digest = hashlib.blake2b()
    for path in files if module is None else [*files, Path(module.__file__)]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> dict:
    """What is stored, or that nothing is."""
    nothing = {"precisions": [], "failed": {}, "seconds": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _findings(found)
        return found if all(type(found[k]) is type(v) for k, v in nothing.items()) else nothing
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return nothing


def _write(path: Path, stored: dict) -> None:
    """Whole or not at all; of two processes the later one's stays."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(stored), encoding="utf-8")
        os.replace(temporary, path)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
