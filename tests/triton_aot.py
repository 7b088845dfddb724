"""Compiles every launch of the Triton backend ahead of time, for GPUs that need not be there, and
reads the machine code.

    python -m tests.triton_aot [--arch 80 90] [--precision fp32 tf32 tf32x3 bf16] [--only conv]

prints one line a kernel: registers, shared memory, instructions, seconds (little where Triton's
cache has it). The exit status is 1 if one breaks a limit. With another version of Triton, here one
installed by `pip install --no-deps --target DIR triton==3.6.0`:

    PYTHONPATH=DIR python -m tests.triton_aot

TRITON_CACHE_DIR names a cache of its own, TRITON_ALWAYS_COMPILE=1 goes without. `--floor` tells
what an outer iteration takes an H100 at least (`tests.triton_floor`).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

# What Triton 3.9 asks for, as it changes its default in 3.10.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from engine.models.backbone import Backbone
from kernels.triton import conv, gather, norm_act, passes, plan, tensors, update

ARCHS = (80, 90)
PRECISIONS = tuple(plan.PRECISIONS)
REGISTERS = 255
SHARED = {80: 163 * 1024, 90: 227 * 1024}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Case(NamedTuple):
    model: Backbone
    tasks: int
    images: tuple[int, ...]  # of support and target sets


# The paper's networks, and one whose convolutions have a stride.
CASES = (
    Case(Backbone(3, 84, 48, 4, 5), 4, (5, 75)),
    Case(Backbone(1, 28, 64, 4, 20), 8, (20,)),
    Case(Backbone(1, 28, 64, 4, 5, "stride"), 16, (5,)),
)


class Launch(NamedTuple):
    kernel: JITFunction
    args: tuple
    kwargs: dict

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def label(self) -> str:
        """Its name and the constants that its code depends on."""
        constants = (p.name for p in self.kernel.params if p.is_constexpr)
        flags = (f"{name}={self.kwargs[name]}" for name in constants if name in self.kwargs)
        return " ".join([self.name, *flags, f"warps={self.kwargs.get('num_warps', 4)}"])


class Code(NamedTuple):
    """What one launch compiled to."""

    registers: int
    shared: int  # bytes
    opcodes: Counter
    products: set[str]  # kinds of matrix product that the kernel asks for
    seconds: float
    loops: tuple[tuple[int, int], ...]  # first and last of their instructions

    def count(self, pattern: str) -> int:
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))

    def faults(self, arch: int) -> list[str]:
        found = []
        local = self.count(r"LDL|STL")
        if local:
            found.append(f"{local} accesses of local memory")
        if self.registers > REGISTERS:
            found.append(f"more than {REGISTERS} registers")
        if self.shared > SHARED[arch]:
            found.append(f"more than {SHARED[arch]} bytes of shared memory")
        tensor = self.count("HGMMA|HMMA")
        if self.products - {"ieee"} and not tensor:
            found.append("no instruction of the tensor cores")
        if self.products == {"ieee"} and self.count("HGMMA|HMMA"):
            found.append("tensor cores, which round, for exact products")
        return found

    def __str__(self) -> str:
        counts = [
            (name, self.count(pattern))
            for name, pattern in {
                "HGMMA": "HGMMA", "HMMA": "HMMA", "FFMA": "FFMA",
                "LDG.128": r"LDG\.\S*128", "LDG": r"LDG\.(?!\S*128)",
                "LDGSTS.128": r"LDGSTS\.\S*128", "LDGSTS": r"LDGSTS\.(?!\S*128)",
                "STS": "STS", "LDS": "LDS", "LDL": "LDL", "STL": "STL",
            }.items()
        ]  # fmt: skip
        shown = " ".join(f"{name} {n}" for name, n in counts if n)
        total = self.opcodes.total()
        return f"{self.registers} registers, {self.shared} B shared, {total} instructions: {shown}"


def recorded(case: Case, precision: str) -> list[Launch]:
    """The launches of a task batch's passes, tangents and updates. Nothing is launched, and tensors
    on the meta device take no memory.
    """
    launches: list[Launch] = []

    def record(kernel, *args, grid, warmup=False, **kwargs):
        launches.append(Launch(kernel, tuple(map(_pointer, args)), kwargs))

    with (
        patch.object(JITFunction, "run", record),
        patch.object(tensors, "refuses", lambda device, dtype: None),
        torch.device("meta"),
        torch.inference_mode(),
    ):
        _passes(case, precision)
        _ops(case, precision)
    return launches


def _passes(case: Case, precision: str) -> None:
    model, t = case.model, case.tasks
    size, stats = sum(model.sizes), model.stat_width
    net = model.net._replace(precision=precision)
    row, rates = torch.empty(2 * stats), torch.empty(len(model.sizes))
    theta = torch.empty(size).expand(t, -1)
    for n in case.images:
        images = passes.prepare(net, torch.empty(t, n, model.in_channels, *[model.image_size] * 2))
        labels = torch.empty(t, n, dtype=torch.int64)
        for given in (None, 2 * (torch.empty(stats),), 2 * (torch.empty(t, stats),)):
            passes.run(images, theta, row, None, given)
            result = passes.run(images, theta, row, labels, given, True)
            passes.tangent(result.kept, torch.empty(t, size))
        theta = update.fwd(theta, result.gradient, rates, model.sizes)
        for own in (rates, None):
            update.bwd(theta, result.gradient, own, model.sizes)
            _reverse(result.gradient, own, model.sizes)
        update.tan_fwd(result.gradient, rates, None, theta, rates, model.sizes)
        update.tan_bwd(theta, result.gradient, rates, model.sizes)
        own = torch.empty(size)
        theta = update.fwd(theta, result.gradient, own, None)
        for each in (own, None):
            update.bwd(theta, result.gradient, each, None)
            _reverse(result.gradient, each, None)
        update.tan_fwd(result.gradient, own, None, theta, own, None)
        update.tan_bwd(theta, result.gradient, own, None)
    _gather(case)
    for clamp in (0.0, 10.0):
        scales = torch.empty(2, dtype=torch.float64)
        update.adam(*4 * (torch.empty(size),), *scales, 0.9, 0.999, clamp)


def _reverse(gradient: torch.Tensor, rates: torch.Tensor | None, sizes) -> None:
    """A sweep's first step, those behind it, and one without a target; in first order, too."""
    target = torch.empty(()), gradient
    carry, *_ = update.reverse(None, None, target, gradient, rates, sizes)
    for terms in ((gradient, target), (gradient, None), (None, target), (None, None)):
        _, _, parts = update.reverse(carry, *terms, gradient, rates, sizes)
    update.of_rates(parts, sizes)


def _gather(case: Case) -> None:
    side, channels = case.model.image_size, case.model.in_channels
    bank = torch.empty(100, side, side, channels, dtype=torch.uint8)
    index = torch.empty(case.tasks, case.model.ways, 16, dtype=torch.int64)
    places = torch.empty(4, side**2, dtype=torch.int64)
    gather.fwd(bank, index, places, *torch.empty(2, side * channels), 1)


def _ops(case: Case, precision: str) -> None:
    """Single ops, of the second stage's geometry and in the precisions that they have."""
    if precision not in ("fp32", "tf32"):
        return
    model, t, n = case.model, case.tasks, case.images[0]
    f, side, stride = model.filters, model.image_sizes[1], model.stride
    x, w = torch.empty(t, n, f, side, side), torch.empty(t, f, f, 3, 3)
    with torch.backends.cudnn.flags(allow_tf32=precision == "tf32"):
        z = conv.fwd(x, w, stride, 1)
        conv.bwd(z, x, w, stride, 1)
        conv.tan_fwd(x, w, x, w, stride, 1)
        conv.tan_bwd(z, z, x, w, x, w, stride, 1)
    gain = torch.empty(t, f)
    y, saved = norm_act.fwd(z, gain, gain, model.norm_eps, model.negative_slope, model.pool, None)
    norm_act.bwd(saved, gain, y)
    _, tangent = norm_act.tan_fwd(saved, gain, z)
    norm_act.tan_bwd(saved, tangent, gain, y, y)


def _pointer(arg):
    """What Triton reads of a tensor; addresses on the meta device are those of a first one at 0."""
    if not isinstance(arg, torch.Tensor):
        return arg
    address = arg.storage_offset() * arg.element_size()
    return SimpleNamespace(dtype=arg.dtype, data_ptr=lambda: address)


def compiled(launch: Launch, arch: int) -> Code:
    target = GPUTarget("cuda", arch, 32)
    start = time.perf_counter()
    source, options = _specialised(launch, target)
    made = triton.compile(source, target=target, options=options.__dict__)
    seconds = time.perf_counter() - start
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-sass", "-res-usage", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # /*0050*/   @!P0 LDG.E.128 R4, [R2.64] ;
    line = r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);"
    found = re.findall(line, code, re.MULTILINE)
    opcodes = Counter(opcode for _, opcode, _ in found)
    registers = int(re.search(r"REG:(\d+)", code)[1])
    own = registers, made.metadata.shared, opcodes, _products(made), seconds
    return Code(*own, tuple(_loops(found)))


def _loops(instructions: list[tuple[str, str, str]]) -> Iterator[tuple[int, int]]:
    """By the branches that go back, of each first instruction the last one."""
    places = {int(address, 16): i for i, (address, _, _) in enumerate(instructions)}
    ends = {}
    for i, (address, opcode, operands) in enumerate(instructions):
        to = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if to and int(to[1], 16) < int(address, 16):
            ends[places[int(to[1], 16)]] = i
    yield from ends.items()


def _specialised(launch: Launch, target: GPUTarget):
    """Source and options as the launch itself would ask for them: the alignment of every pointer
    and the divisibility of every size are part of them.
    """
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = bind(*launch.args, **launch.kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.kwargs, bound, specialization, rest
    )
    return ASTSource(kernel, signature, constants, attributes), options


def _products(made) -> set[str]:
    found = set()
    for line in re.findall(r".*\btt\.dot\b.*", made.asm["ttir"]):
        precision = re.search(r"inputPrecision = (\w+)", line)
        found.add("bf16" if "xbf16" in line else precision[1] if precision else "ieee")
    return found


def distinct(precisions, archs) -> Iterator[tuple[Launch, int]]:
    """Launches that compile to something of their own, each on every architecture."""
    seen = set()
    for case, precision, arch in product(CASES, precisions, archs):
        for launch in recorded(case, precision):
            source, options = _specialised(launch, GPUTarget("cuda", arch, 32))
            made = launch.name, source.hash(), options.hash()
            if made not in seen:
                seen.add(made)
                yield launch, arch


def part(precisions, archs) -> Iterator[tuple[Launch, int]]:
    """The first of each kernel, its tangent apart, in each precision and on each architecture."""
    seen = set()
    for launch, arch in distinct(precisions, archs):
        options = ("DUAL", "MERGE", "PRECISION", "OWN")
        kind = launch.name, *(launch.kwargs.get(name) for name in options), arch
        if kind not in seen:
            seen.add(kind)
            yield launch, arch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=ARCHS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument(
        "--part", action="store_true", help="one launch of each kernel, precision and architecture"
    )
    parser.add_argument("--floor", action="store_true", help="what an iteration takes at least")
    args = parser.parse_args()
    if args.floor:
        from tests import triton_floor

        print(triton_floor.page([p for p in args.precision if p in ("tf32", "bf16")]))
        return 0
    failed = 0
    for launch, arch in (part if args.part else distinct)(args.precision, args.arch):
        if args.only not in launch.name:
            continue
        code = compiled(launch, arch)
        faults = code.faults(arch)
        failed += bool(faults)
        print(f"sm_{arch} {launch.label}: {code}; {code.seconds:.1f} s", *faults, sep=" !! ")
        sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
