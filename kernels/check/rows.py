"""What is run on a machine, and the errors found, a row for each op of a backend and a network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch

from kernels import cases, dispatch, native
from kernels.check import ops, oracle
from kernels.check.errors import Error, judged, raised
from kernels.check.oracle import PARTS, Parts, Problem, exact_products
from kernels.net import Net
from kernels.threads import only_kernels

NETS = {
    "mini": Net(3, 84, 48, 4, 5, True, 0.01, 1e-5),
    "omniglot": Net(1, 28, 64, 4, 20, True, 0.01, 1e-5),
}
SIZED = "resnet12"  # whose convolutions by other filters than 3×3 are checked, and no more of it
# What winners have to be ahead by for a precision to leave them winners: five of its deviations or
# more, those of Winograd's products in bfloat16 being 8e-3 in the second stage.
MARGINS = {"fp32": 1e-3, "tf32x3": 1e-3, "bf16x3": 1e-3, "tf32": 4e-2, "bf16": 4e-2}


class Sizes(NamedTuple):
    """Networks by name, with tasks and images."""

    fine: dict[str, tuple[Net, int, int]]  # for precisions with the smaller margin
    coarse: dict[str, tuple[Net, int, int]]  # for those with the larger one
    stages: tuple[cases.Case, ...]  # of single ops
    sized: tuple[cases.Case, ...]  # of convolutions by other filters than 3×3


# Not the shortcut of the images: its weight gradient is a sum over all pixels, which torch's own
# convolutions of NHWC, on which plain runs, take as one, with a multiple of the rounding error.
# Winners far ahead in every window of a map are to be found for images of 28 pixels, not of 84.
FULL = Sizes(
    {"mini": (NETS["mini"], 2, 2), "omniglot": (NETS["omniglot"], 2, 4)},
    {"mini": (NETS["mini"]._replace(side=28), 2, 2), "omniglot": (NETS["omniglot"], 2, 2)},
    tuple(replace(case, tasks=2, images=3) for case in cases.REAL),
    tuple(replace(case, tasks=2, images=3) for case in cases.REAL_SIZED[1:]),
)
SHORT = Sizes(
    {
        "mini": (NETS["mini"]._replace(side=42, stages=2), 1, 1),
        "omniglot": (NETS["omniglot"], 2, 1),
    },
    {"omniglot": (NETS["omniglot"], 1, 2)},
    tuple(replace(case, tasks=2, images=1) for case in (cases.REAL[2], cases.REAL[5])),
    (replace(cases.REAL_SIZED[1], tasks=2, images=1, side=21),),
)


class Row(NamedTuple):
    """An op of a backend on a network, by all of its cases."""

    device: str  # its type
    backend: str
    instructions: str  # of a processor, native's
    op: str
    precision: str
    network: str
    parts: dict[str, Error]

    @property
    def failed(self) -> str | None:
        """What is off, in words; `None` if nothing is."""
        words = [f"{part} {e}" for part, e in self.parts.items() if not e.within]
        return "; ".join(words) or None


class Subject(NamedTuple):
    """A backend as it runs on a device."""

    device: torch.device
    backend: str
    isa: object | None  # of native

    @property
    def instructions(self) -> str:
        return "" if self.isa is None else self.isa.name

    @contextmanager
    def running(self) -> Iterator[None]:
        """With its instruction set, and plain ops as what they are meant to be: on a GPU torch
        would round to TF32.
        """
        before = None if self.isa is None else native.module.isa()
        with exact_products() if self.device.type == "cuda" else nullcontext(), torch.no_grad():
            try:
                if before is not None:
                    native.module.limit_isa(self.isa)
                yield
            finally:
                if before is not None:
                    native.module.limit_isa(before)

    def is_torch(self, op: str) -> bool:
        """Whether it is cuDNN's, whose sums over pixels may be longer than a processor's."""
        return (self.device.type, self.backend, op) == ("cuda", "plain", "conv")

    def has(self, op: str) -> bool:
        return op in dispatch.space(self.backend).OPS

    def takes(self, op: str, geometry: tuple) -> bool:
        """Whether dispatch could choose the backend for this geometry."""
        refusal = getattr(self.functions(op), "refusal", None)
        return not geometry or refusal is None or refusal(*geometry) is None

    def functions(self, op: str):
        return getattr(dispatch.space(self.backend), op)

    def precisions(self, wanted: Iterable[str]) -> list[str]:
        """Of whole passes."""
        if not self.has("passes"):
            return []
        with self.running():
            return [p for p in wanted if self.functions("passes").refusal(p) is None]


def devices() -> list[torch.device]:
    current = (
        [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else []
    )
    return [torch.device("cpu"), *current]


def subjects(device: torch.device, every: bool = False) -> list[Subject]:
    """The backends that dispatch chooses from on a device; native with the instruction set in use,
    or with `every` one that the processor grants.
    """
    found = []
    for backend in dispatch.CHOICES[device.type]:
        if dispatch.space(backend).refuses(device, torch.float32) is None:
            isas = _instruction_sets(every) if backend == "native" else [None]
            found += [Subject(device, backend, isa) for isa in isas]
    return found


def _instruction_sets(every: bool) -> list:
    """The least one first; none beyond the one in use."""
    module, most = native.module, native.module.isa()
    if not every:
        return [most]
    try:
        return [isa for isa in module.Isa.__members__.values() if module.limit_isa(isa) == isa]
    finally:
        module.limit_isa(most)


def rows(
    subjects: list[Subject], sizes: Sizes, precisions: Iterable[str] = dispatch.PRECISIONS
) -> list[Row]:
    """All that is found of some backends, in their order."""
    found: dict[tuple, dict[str, Error]] = {}
    with only_kernels():  # torch's own threads wait for one another for longer than they work
        for *key, parts in _findings(subjects, sizes, tuple(precisions)):
            before = found.get(tuple(key), parts)
            found[tuple(key)] = {
                part: max(before[part], parts[part], key=lambda e: e.badness) for part in PARTS
            }
    order = sorted(found, key=lambda key: (subjects.index(key[0]), *_place(*key[1:])))
    return [
        Row(key[0].device.type, key[0].backend, key[0].instructions, *key[1:], found[key])
        for key in order
    ]


def _place(op: str, precision: str, network: str) -> tuple[int, ...]:
    places = dispatch.OPS.index(op), dispatch.PRECISIONS.index(precision)
    return *places, [*NETS, SIZED].index(network)


def _findings(
    subjects: list[Subject], sizes: Sizes, precisions: tuple[str, ...]
) -> Iterator[tuple]:
    """(subject, op, precision, network, errors), a network's stage by stage. What is right is
    computed once for all subjects.
    """
    having = {p: [s for s in subjects if p in s.precisions(precisions)] for p in precisions}
    for problems in (sizes.fine, sizes.coarse):
        margin = MARGINS["fp32"] if problems is sizes.fine else MARGINS["bf16"]
        wanted = [p for p in precisions if having[p] and MARGINS[p] == margin]
        for network, size in problems.items() if wanted else ():
            made = oracle.problem(*size, margin)
            exact = oracle.passes(made)
            for precision in wanted:
                theirs = cache(partial(_torch32_of, made, precision))
                for subject in having[precision]:
                    run = partial(_passes, subject, made, precision)
                    torch32 = theirs(subject.functions("passes").stem_precision(precision))
                    parts = _judged(run, [torch32], exact, precision)
                    yield subject, "passes", precision, network, parts
    for network, op, case in _ops(sizes):
        runs = [s for s in subjects if s.has(op) and s.takes(op, case.geometry)]
        if not runs:
            continue
        exact = case.named(case.truth(*case.tensors))
        torch32 = case.named(case.truth(*(t.float() for t in case.tensors)))
        for subject in runs:
            run = partial(_op, subject, op, case)
            there = [_torch32_on(subject.device, case)] if subject.is_torch(op) else []
            yield subject, op, "fp32", network, _judged(run, [torch32, *there], exact, "fp32")


def _ops(sizes: Sizes) -> Iterator[tuple[str, str, ops.Op]]:
    for stage in sizes.stages:
        for op, case in ops.of_stage(stage):
            yield stage.name.partition("-")[0], op, case
    for case in sizes.sized:
        yield SIZED, "conv", ops.conv(case)
    for network, size in sizes.fine.items():
        for op, case in ops.of_net(oracle.problem(*size, MARGINS["fp32"])):
            yield network, op, case


def _judged(run: Callable[[], Parts], torch32: list[Parts], exact: Parts, precision: str):
    """By torch's float32, the more favourable one where it was taken in two places."""
    try:
        ours = run()
    except Exception as error:  # of a kernel that does not load, fit or compile here
        return raised(error)
    found = [judged(ours, theirs, exact, precision) for theirs in torch32]
    return {part: min((of[part] for of in found), key=lambda e: e.badness) for part in PARTS}


def _torch32_of(made: Problem, precision: str, stem: str) -> Parts:
    """Ordinary torch with the operands of a pass rounded."""
    with exact_products():
        return oracle.passes(made, precision, torch.float32, stem)


def _torch32_on(device: torch.device, case: ops.Op) -> Parts:
    """Ordinary torch on the subject's device: what plain is made of is held against itself."""
    with exact_products():
        return case.named(case.truth(*(t.to(device, torch.float32) for t in case.tensors)))


def _passes(subject: Subject, made: Problem, precision: str) -> Parts:
    with subject.running():
        moved = oracle.in_single(made, subject.device)
        return oracle.fused(subject.functions("passes"), moved, precision)


def _op(subject: Subject, op: str, case: ops.Op) -> Parts:
    with subject.running():
        tensors = (t.to(subject.device, torch.float32) for t in case.tensors)
        return case.named(case.ours(subject.functions(op), *tensors))
