"""The machine that a command runs on: its device, threads and kernels."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import kernels
from engine.config import Config
from engine.data.bank import default_cache
from engine.errors import UserError, flag, say
from engine.runtime import ranks
from engine.runtime.workers import keep_freed_memory
from kernels import dispatch, tf32
from kernels.check import verdict
from kernels.dispatch import Findings
from kernels.threads import cores, of_torch

_CUDA = torch.device("cuda")


def settled(cfg: Config, device: torch.device, had: dict[str, str]) -> Config:
    """With what `auto` stands for in its place: the precision that a run had on such a device, else
    the fastest. Passes that are composed of single ops stay as they are.
    """
    if cfg.precision != "auto" or not cfg.fused:
        return cfg
    chosen = had.get(device.type)
    if chosen is None or kernels.refusal(chosen, device):
        fastest = kernels.fastest_precision(torch.empty(0, dtype=torch.float32, device=device))
        if chosen not in (None, "fp32"):
            reason = kernels.refusal(chosen, device)
            say(f"precision {chosen}, which the run had, is now {fastest}: {reason}")
        chosen = fastest
    return cfg if kernels.refusal(chosen, device) else replace(cfg, precision=chosen)


@contextlib.contextmanager
def machine(cfg: Config) -> Iterator[torch.device]:
    """Threads, device and kernel backend, which is checked the first time that it meets the
    machine. Raises UserError when what is asked is not there, or failed the check.
    """
    cuda = torch.cuda.is_available()
    if cfg.device == "cuda" and not cuda:
        raise UserError("--device is cuda: torch finds no CUDA device here; give --device cpu")
    device = _device() if cuda and cfg.device != "cpu" else torch.device("cpu")
    with contextlib.ExitStack() as stack:
        if device.index is not None:  # else kernels are launched on the first
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(of_torch(_threads(cfg)))
        try:
            if cfg.backend != "auto":  # auto: the environment may choose
                stack.enter_context(kernels.use(cfg.backend))
            _fused(cfg, device)  # what is not here at all is told before anything is checked
            with ranks.current().node_by_node():
                findings = _checked(cfg, device)
            stack.enter_context(dispatch.following(findings))
            if not _fused(cfg, device) and cfg.precision == "fp32":
                stack.enter_context(tf32.off())  # torch's convolutions on a GPU are TF32 else
        except kernels.BackendError as error:
            given = {"backend": cfg.backend, "precision": cfg.precision}
            asked = [f"{flag(name)} is {value}" for name, value in given.items() if value != "auto"]
            raise UserError(f"{', '.join(asked)}: {error}" if asked else str(error)) from error
        if cfg.fused:  # ResNet-12 would hold 1.5 GiB more at its peak, for 5 % of its time
            keep_freed_memory()
        yield device


def _device() -> torch.device:
    """A GPU: of several ranks each has its own."""
    team, found = ranks.current(), torch.cuda.device_count()
    if team.alone:
        return _CUDA
    if team.local_size > found:
        raise UserError(
            f"{team.local_size} ranks are on a machine of {found} GPU{'s' * (found > 1)}: start at "
            "most one a GPU, by torchrun's --nproc-per-node, or give --device cpu"
        )
    return torch.device("cuda", team.local)


def _threads(cfg: Config) -> int:
    """Those asked for, at most one a core: more only wait for one another."""
    most = cores()
    own = most // ranks.current().local_size if ranks.launched() else torch.get_num_threads()
    wanted = cfg.threads or max(1, own)
    if wanted > most:
        whose = f"--threads is {wanted}" if cfg.threads else f"torch has {wanted} threads"
        say(f"{whose}, and this process {most} core{'s' * (most > 1)}: it runs {most}")
    return min(wanted, most)


def _fused(cfg: Config, device: torch.device) -> bool:
    """Whether a backend runs whole passes. Raises BackendError where nothing runs what is asked."""
    probe = torch.empty(0, dtype=torch.float32, device=device)
    automatic = cfg.precision == "auto"
    precision = kernels.fastest_precision(probe) if automatic else cfg.precision
    fused = kernels.passes(probe, precision) is not None and cfg.fused
    for op in () if fused else ("conv", "norm_act", "head", "update"):
        kernels.backend(op, probe)
    return fused


def _checked(cfg: Config, device: torch.device) -> Findings:
    """What a check of the machine found, now or before; nothing where only plain torch runs."""
    if cfg.backend == "plain":
        return dispatch.UNCHECKED
    folder = Path(cfg.cache).expanduser() if cfg.cache else default_cache()
    found = verdict.of(device, cfg.precision, folder)
    for line in found.lines:
        say(line)
    return found.findings


def memory(device: torch.device, peak: bool) -> int | None:
    """Bytes that the process holds now, or held at most; on a device, that torch holds there."""
    if device.type == "cuda":
        of = torch.cuda.max_memory_reserved if peak else torch.cuda.memory_reserved
        return of(device)
    if not sys.platform.startswith("linux"):
        return None
    # not getrusage: what that calls the peak may be that of the process which started this one
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024
    return None
