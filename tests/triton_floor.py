"""What an outer iteration costs a GPU at least, read from launches and machine code.

`python -m tests.triton_aot --floor` prints, for each goal of `bench.gpu.rows`, its launches by
class and by kernel, and the time that their instructions take where every scheduler of an H100
issues one in each clock: no run is faster. Launches come from the loop that a training on a device
runs, on tensors without memory, their shapes from the launch table of that GPU.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from bench.cases import Row
from bench.gpu.graph import Stepping
from bench.gpu.rows import GOALS, config
from bench.tables import table
from engine.meta import Schedule, init_state
from engine.runtime.loop import _cloned
from kernels import branch, dispatch
from kernels.triton import launch, tensors
from tests.triton_aot import Code, Launch, _pointer, _specialised, compiled

# An H100 SXM: multiprocessors, of four schedulers each, at its boost clock.
GPU, ARCH, SMS, SCHEDULERS, CLOCK = "NVIDIA H100 80GB HBM3", 90, 132, 4, 1.98e9
WARPS, REGISTERS, SHARED = 64, 65536, 228 * 1024  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that a program takes beside its own
CLASSES = {
    "convolution": r"conv_|turn_",
    "stem": r"stem_",
    "patches": r"patch_|image_sums|border|gather",
    "merge": r"\w*moments_kernel|\w*sums_kernel|add_splits|segments",
    "normalise": r"normalise|dz_|delta_|activation",
    "head": r"head_",
    "update": r"descend|rates|adam",
}
SHORTEST = 8  # instructions of a loop; fewer wait for something
# What gives another view of a tensor, or memory, and launches nothing.
VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "select", "slice", "split", "split_with_sizes",
    "unsqueeze", "squeeze", "flatten", "contiguous", "to", "t", "transpose", "as_strided",
    "unbind", "detach", "alias", "empty", "empty_strided", "empty_like", "new_empty",
    "new_empty_strided", "lift_fresh", "unfold",
}  # fmt: skip


class One(NamedTuple):
    """A launch of an iteration."""

    launch: Launch | None  # None: of torch
    name: str
    grid: tuple[int, ...]
    chain: bool  # the iteration waits for it; others run beside

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def kind(self) -> str:
        if self.launch is None:
            return "torch"
        return next(c for c, pattern in CLASSES.items() if re.match(pattern, self.name))

    @property
    def warps(self) -> int:
        return self.launch.kwargs.get("num_warps", 4)

    @property
    def label(self) -> str:
        dual = self.launch is not None and self.launch.kwargs.get("DUAL")
        return f"{self.name} dual" if dual else self.name


class _Ops(TorchDispatchMode):
    """Tells of what torch launches."""

    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.tell(name)
        return func(*args, **kwargs or {})


def iteration(row: Row, precision: str) -> list[One]:
    """The launches of one outer iteration, in order."""
    found: list[One] = []
    beside = [0]

    @contextmanager
    def on(self) -> Iterator[branch.Mark]:
        beside[0] += 1
        yield branch.Mark()
        beside[0] -= 1

    def record(kernel, *args, grid, warmup=False, **kwargs):
        own = Launch(kernel, tuple(map(_pointer, args)), kwargs)
        found.append(One(own, own.name, grid, not beside[0]))

    def tell(name: str) -> None:
        found.append(One(None, name, (), not beside[0]))

    meta, cfg = torch.device("meta"), config(row, precision, False, torch.device("cuda"))
    with ExitStack() as stack:
        for each in (
            patch.object(JITFunction, "run", record),
            patch.object(tensors, "refuses", lambda device, dtype: None),
            patch("kernels.triton.refuses", lambda device, dtype: None),
            patch.dict(dispatch.CHOICES, {"meta": ("triton",)}),
            patch.object(launch, "_name", lambda device: GPU),
            patch.object(branch.Branch, "on", on),
        ):
            stack.enter_context(each)
        loop = stack.enter_context(Stepping(cfg, meta, graph=False)).loop
        loop._state = _cloned(init_state(cfg, meta))
        schedule = Schedule.of(0, cfg)
        wanted = tuple(weight != 0 for weight in schedule.loss_weights)
        tasks, step = loop._halves(wanted, schedule.second_order)
        step(tasks())  # tables that later ones find
        found.clear()
        with _Ops(tell):
            step(tasks())
    return found


def trips(one: One) -> tuple[float, float]:
    """How often a program goes through its loops, and through one inside another, on average."""
    given = dict(zip((p.name for p in one.launch.kernel.params), one.launch.args, strict=False))
    at = SimpleNamespace(**(given | one.launch.kwargs))
    match one.name:
        case "conv_fwd_kernel":
            return 9 * math.ceil(at.channels / at.BK), 1
        case "conv_bwd_kernel":
            return 9 * math.ceil(at.filters / at.BK), 1
        case "conv_wgrad_kernel":
            side = at.dense + 2 * (at.STRIDE == 1)
            return at.images * side**2 / (one.grid[0] * at.BP), 1
        case "stem_outer_kernel":
            return at.count * at.pooled**2 / (one.grid[0] * at.BM), 4
        case "patch_sums_kernel":
            return at.count * at.side**2 / (one.grid[0] * at.BM), 1
        case "image_sums_kernel":
            return at.pixels / (one.grid[0] * at.BM), 1
        case "patch_moments_kernel":
            return math.ceil(at.splits / at.BS), 1
        case "head_kernel":
            return math.ceil(at.pixels * at.filters / at.BD), 1
        case "head_bwd_kernel":
            return math.ceil(at.images / at.BN), 1
        case "moments_kernel" | "bwd_sums_kernel" | "tan_fwd_sums_kernel" | "tan_bwd_sums_kernel":
            return math.ceil(at.tiles / at.BT), 1
        case "normalise_kernel" | "normalise_dot_kernel" | "dz_kernel" if at.MERGE:
            return math.ceil(at.tiles / at.BT), 1
        case "stem_wgrad_kernel" | "stem_tan_wgrad_kernel":
            return math.ceil(at.splits / at.BS), 1
    return 1, 1  # nothing goes round, or all parts are loaded at once


def instructions(code: Code, around: float, inside: float) -> float:
    """Of one warp."""
    loops = [(a, b) for a, b in code.loops if b - a >= SHORTEST]
    outer = [a for a in loops if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in loops)]
    total = code.opcodes.total()
    for first, last in outer:
        inner = [b - a + 1 for a, b in loops if (a, b) != (first, last) and first <= a <= b <= last]
        once = last - first + 1 + (inside - 1) * max(inner, default=0)
        total += around * once - (last - first + 1)
    return total


def resident(code: Code, warps: int) -> int:
    """Programs that a multiprocessor holds at once."""
    registers = -(-code.registers // 8) * 8 * 32 * warps
    return min(32, WARPS // warps, REGISTERS // registers, SHARED // (code.shared + RESERVED))


class Cost(NamedTuple):
    """Of a launch of one of our kernels."""

    one: One
    instructions: float  # of all its warps
    resident: int  # programs that a multiprocessor holds at once

    @property
    def wide(self) -> int:
        """Warps of all its programs."""
        return self.one.programs * self.one.warps

    @property
    def seconds(self) -> float:
        """Where all schedulers are full."""
        return self.instructions / (SMS * SCHEDULERS * CLOCK)


def costs(ones: list[One], codes: dict[str, Code]) -> list[Cost]:
    """`codes` keeps what was compiled."""
    found = []
    for one in ones:
        if one.launch is not None:
            code = _code(one.launch, codes)
            count = instructions(code, *trips(one)) * one.warps * one.programs
            found.append(Cost(one, count, resident(code, one.warps)))
    return found


def narrow(found: list[Cost]) -> list[Cost]:
    """Those of more than a hundredth of an iteration that leave schedulers with less than two warps
    to choose from.
    """
    least = sum(c.seconds for c in found) / 100
    return [c for c in found if c.seconds > least and c.wide < 2 * SCHEDULERS * SMS]


def _code(own: Launch, codes: dict[str, Code]) -> Code:
    source, options = _specialised(own, GPUTarget("cuda", ARCH, 32))
    key = source.hash() + options.hash()
    if key not in codes:
        codes[key] = compiled(own, ARCH)
    return codes[key]


def page(precisions: list[str]) -> str:
    """Of all goals: launches by class, and the floor by kernel."""
    codes: dict[str, Code] = {}
    lines, floors, classes = [], [], []
    for row, precision in product(GOALS, precisions):
        ones = iteration(row, precision)
        found, name = costs(ones, codes), f"{row} {precision}"
        floor = f"{1e3 * sum(c.seconds for c in found):.2f}"
        floors.append([name, floor, f"{getattr(GOALS[row], precision)}", f"{len(narrow(found))}"])
        kinds, chain = Counter(one.kind for one in ones), sum(one.chain for one in ones)
        counts = [str(kinds[c]) for c in (*CLASSES, "torch")]
        classes.append([name, str(len(ones)), str(chain), *counts])
        lines += [f"{name}\n", table(HEAD, _by_kernel(found))]
    ends = [
        table(["ms an iteration", "at least", "goal", "narrow launches"], floors),
        table(["launches", "all", "on the chain", *CLASSES, "torch"], classes),
    ]
    return "\n".join([*ends, *lines])


HEAD = ["kernel", "launches", "on the chain", "ms at least", "G instructions"]
HEAD += ["programs × warps", "programs a multiprocessor"]


def _by_kernel(found: list[Cost]) -> list[list[str]]:
    """The most expensive first."""
    groups: dict[str, list[Cost]] = {}
    for cost in found:
        groups.setdefault(cost.one.label, []).append(cost)
    rows = []
    for label, group in sorted(groups.items(), key=lambda g: -sum(c.seconds for c in g[1])):
        counts = str(len(group)), str(sum(c.one.chain for c in group))
        least = f"{1e3 * sum(c.seconds for c in group):.3f}"
        all_of_them = f"{sum(c.instructions for c in group) / 1e9:.3f}"
        ends = (_range(getattr(c, n) for c in group) for n in ("wide", "resident"))
        rows.append([label, *counts, least, all_of_them, *ends])
    return rows


def _range(values: Iterable[int]) -> str:
    found = sorted({*values})
    return " – ".join(f"{v:,}" for v in dict.fromkeys((found[0], found[-1])))
