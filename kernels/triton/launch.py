"""Blocks, warps and pipeline stages of every launch, said in one place.

`config` starts from defaults in code. `tuned.json` beside this file overrides them for a device's
name and a launch's key, as in

    {"NVIDIA H200": {"conv_fwd 48x48 side 42 rows 2^17 dual tf32": {"BM": 64, "num_warps": 4}}}

Nothing is ever measured here: tuning inside a captured graph would break it, and eager runs launch
what graphs replay.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

TUNED = Path(__file__).with_name("tuned.json")
# The defaults aim at this many programs: two for each of the 132 multiprocessors of an H200.
PROGRAMS = 264
SHARED = 104 * 1024  # bytes that a program's loads may take: two of them fit in a multiprocessor
TASKS = 4  # that a launch is taken to have, however many it has
MANY = 2048  # pixels of a task, of which a program does more at once
# Of `add_splits_kernel`, wherever it runs: all splits of the default are loaded at once.
SPLITS = {"BS": 16, "BLOCK": 256, "num_warps": 4, "num_stages": 1}
# Of what ends a stem's gradient: parts of sums, and of its products, that are loaded at once, and
# the values of patches that a program does.
STEM_SUMS = {"BT": 128, "BS": 16, "BK": 8}
# The tiles whose sums the programs of a task's next launch add up each for itself, so many at once,
# and how many programs: sooner than a launch of its own and the wait for it. More programs would
# take more instructions for it, by their count, than are gone through in that time. Of all tasks'
# programs it must not depend: a launch of its own adds in another order.
OWN_TILES, AT_ONCE, OWN_PROGRAMS = 128, 32, 128
# The programs, at most, that take a stem's statistics from its patches' moments each for itself.
OWN_STEM_PROGRAMS = 64

# Arguments of kernels that no address is a multiple of: Triton would compile each kernel again for
# numbers that 16 divides.
COUNTS = (
    "images", "count", "pixels", "tiles", "per_tile", "splits", "per_split", "ways", "pieces",
    "row_step",
)  # fmt: skip
# Also of those that make pixels of an index but once, and are not compiled for each side.
COUNTS_AND_SIDES = (*COUNTS, "side", "out_side", "dense")

_trial: ContextVar[dict[str, dict[str, int]]] = ContextVar("launch_trial")
_asked: ContextVar[dict] = ContextVar("launch_asked")


class Geometry(NamedTuple):
    """What the configuration of a launch follows from."""

    kernel: str  # one of KERNELS
    images: int  # of a task: how many tasks there are changes no task's bits
    side: int  # of the images that the programs share out
    channels: int
    filters: int
    precision: str = "ieee"
    dual: bool = False
    line: bool = False  # the pixels with their borders are one line, without masks

    @property
    def pixels(self) -> int:
        """Of a task."""
        return self.images * self.side**2


def key(g: Geometry) -> str:
    """Name of a class of launches in `tuned.json`: rows of a task count by powers of two."""
    rows = (g.pixels - 1).bit_length()
    kind = "dual" if g.dual else "single"
    shape = f"{g.channels}x{g.filters} side {g.side} rows 2^{rows}"
    return f"{g.kernel} {shape} {kind} {g.precision}" + " line" * g.line


def config(g: Geometry, device: torch.device) -> dict[str, int]:
    """Keyword arguments of a launch: the kernel's block sizes, `num_warps` and `num_stages`, and
    for one that splits a sum `per_split`.
    """
    _asked.get({})[g] = None
    own = _trial.get({}).get(key(g)) or _tuned().get(_name(device), {}).get(key(g), {})
    return default(g) | own


@cache
def default(g: Geometry) -> dict[str, int]:
    return KERNELS[g.kernel][0](g)


def merge(
    tasks: int, tiles: int, filters: int, device: torch.device
) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs and configuration of a launch that merges the sums of tiles."""
    blocks = config(Geometry("merge", tiles, 1, filters, filters), device)
    return (tasks, -(-filters // blocks["BF"])), blocks


def within(tiles: int, programs: int) -> dict[str, int]:
    """Options of a launch, of so many programs a task, that may merge the sums of tiles before it
    reads them.
    """
    at_once = min(AT_ONCE, max(4, 1 << (tiles - 1).bit_length()))
    return {"MERGE": tiles <= OWN_TILES and programs <= OWN_PROGRAMS, "BT": at_once}


def candidates(g: Geometry) -> list[dict[str, int]]:
    """Configurations worth measuring, the default first. Some may not fit a device."""
    first = default(g)
    choices = {
        name: sorted({first[name], *(v for v in values if v <= _most(g, name))})
        for name, values in KERNELS[g.kernel][1]
    }
    found = [first]
    for values in product(*choices.values()):
        made = first | dict(zip(choices, values, strict=True))
        if made not in found:
            found.append(made)
    return found


@contextmanager
def trying(table: dict[str, dict[str, int]]) -> Iterator[None]:
    """Configurations by key that launches inside the block use before any other."""
    token = _trial.set(table)
    try:
        yield
    finally:
        _trial.reset(token)


@contextmanager
def asked() -> Iterator[dict[Geometry, None]]:
    """The geometries of the launches inside the block, in order, each once."""
    token = _asked.set({})
    try:
        yield _asked.get()
    finally:
        _asked.reset(token)


def padded(size: int) -> int:
    """The power of two that a matrix product takes for `size`."""
    return max(16, 1 << (size - 1).bit_length())


def block(size: int, most: int = 64) -> int:
    """Of `size` channels or filters, those that one program does: 48 pad to 64."""
    return min(padded(size), most)


@cache
def _tuned() -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(TUNED.read_text()) if TUNED.exists() else {}


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _most(g: Geometry, name: str) -> int:
    """Beyond this a block size is only padding."""
    limits = {
        "BN": max(g.channels, g.filters), "BK": min(g.channels, g.filters),
        "BC": g.channels, "BF": g.filters,
    }  # fmt: skip
    return padded(limits[name]) if name in limits else 1 << 30


def _conv(g: Geometry) -> dict[str, int]:
    """Of conv_fwd and conv_bwd: pixels × width, `depth` a tap."""
    depth, width = (g.channels, g.filters) if g.kernel == "conv_fwd" else (g.filters, g.channels)
    # 64 rows are the fewest that wgmma takes, of four warps. With enough rows, more of them halve
    # the loads of filters. Small launches, the support sets of the late stages, share out the
    # filters; nothing but its own loads ahead hides a program's latency there.
    tiles, bn = TASKS * -(-g.pixels // 64), block(width)
    bm = 256 if tiles >= 16 * PROGRAMS else 128 if tiles >= 2 * PROGRAMS else 64
    if tiles < PROGRAMS // 2:
        bn = min(bn, 32)
    # The parts of tf32x3 and the unrolled products of ieee take the registers of a deeper step.
    if not rounded(g):
        warps = 8 if bm > 64 or g.precision == "ieee" else 4
        return {"BM": min(bm, 128), "BN": bn, "BK": 16, "num_warps": warps, "num_stages": 3}
    bk = 32 if depth % 32 == 0 else 16
    while (stages := SHARED // ((1 + g.dual) * (bm + bn) * bk * 4)) < 2:  # of so many bytes each
        bm //= 2
    return {
        "BM": bm, "BN": bn, "BK": bk,
        "num_warps": 8 if bm > 128 else 4, "num_stages": min(5, stages),
    }  # fmt: skip


def _wgrad(g: Geometry) -> dict[str, int]:
    # Three accumulators, besides two parts of each operand (tf32x3) or scalar products, which are
    # unrolled (ieee).
    bf, bc, warps = block(g.filters), 32 if g.dual else 64, 8 if g.precision == "ieee" else 4
    bp, stages = 16, 3 if rounded(g) else 2
    if g.precision in ("tf32x3", "ieee"):
        bc //= 2
    if g.precision == "tf32":
        # Its wgmma reads 32-bit values along the pixels only, value by value into shared memory;
        # the older product, which fewer rows than 64 or fewer than four warps take, reads them as
        # they lie. The masks of what is no line take the registers of larger blocks.
        if g.line:
            bf, bc, warps = min(bf, 32) if g.dual else bf, 64, 2
        else:
            bf = 32 if g.filters % 32 == 0 else 16
    if g.precision == "bf16" and g.line and g.pixels >= MANY:
        # Of more pixels at once fewer instructions: loads of half as many bytes leave the room.
        bp, bc, stages = 32 if g.dual else 64, 64, 2
    bc = block(g.channels, bc)
    # Long splits, whose sums are few: as many programs as run at once.
    programs = 3 * -(-g.filters // bf) * -(-g.channels // bc) * TASKS
    return {
        "BF": bf, "BC": bc, "BP": bp,
        "per_split": _per_split(g.pixels, bp, max(4, 2 * PROGRAMS // programs)),
        "num_warps": warps, "num_stages": stages,
    }  # fmt: skip


def rounded(g: Geometry) -> bool:
    """Whether its products are of rounded operands."""
    return g.precision in ("tf32", "bf16")


def _per_split(pixels: int, block: int, most: int) -> int:
    """Pixels of a split, a multiple of `block` and at least four of it where there are as many."""
    splits = min(-(-pixels // (4 * block)), most)
    return -(-pixels // (splits * block)) * block


def _stem(g: Geometry) -> dict[str, int]:
    """Four products at once, of the pixels of a window."""
    warps = 8 if g.precision == "ieee" else 4
    width = block(g.filters, 64 if rounded(g) else 32)
    return {"BM": 64, "BF": width, "num_warps": warps, "num_stages": 2}


def _stem_outer(g: Geometry) -> dict[str, int]:
    """Short splits: a program's loads wait for one another, four times for each of its blocks. An
    H100 chose 128 windows of small sets.
    """
    return {
        "BM": 32, "BF": block(g.filters), "per_split": _per_split(g.pixels, 32, 128),
        "num_warps": 8 if g.precision == "ieee" else 4, "num_stages": 1,
    }  # fmt: skip


def _stem_small(g: Geometry) -> dict[str, int]:
    """Of one tile a task: more programs by fewer filters each."""
    return {"BF": 16, "num_warps": 4, "num_stages": 1}


def _merge(g: Geometry) -> dict[str, int]:
    """Of a merge of `pixels` partial sums: a program a task and a few filters waits for one load
    after another, so that it takes as many sums at once as it can.
    """
    return {"BT": 256 if g.pixels > 64 else 32, "BF": 16, "num_warps": 4, "num_stages": 1}


def _map(g: Geometry) -> dict[str, int]:
    """Blocks of filters without padding where there are: the masks of one are no multiples of four
    values, which are then loaded one by one.
    """
    bf = next((b for b in (64, 32, 16) if g.filters % b == 0), block(g.filters))
    bm = 64 if bf == 16 else 32
    # More values of a thread: fewer addresses and coefficients for each, fewer merges of sums.
    pixels, blocks = g.images * (g.side + 2) ** 2, TASKS * -(-g.filters // bf)
    most = min(4096 // bf, 128 if g.dual else 256)  # whose addresses fit in the registers
    while bm < most and pixels // (2 * bm) * blocks >= PROGRAMS:
        bm *= 2
    return {"BM": bm, "BF": bf, "num_warps": 4, "num_stages": 1}


def _head(g: Geometry) -> dict[str, int]:
    """An image's features in few steps: nothing but its own loads hides a program's latency."""
    return {"BD": 128, "num_warps": 4, "num_stages": 2}


def _head_bwd(g: Geometry) -> dict[str, int]:
    """Its scalar products are unrolled, so that larger blocks do not fit the registers, beside the
    logits of one pixel half as large ones. A program goes through all images.
    """
    own = g.side == 1
    warps = 16 if own and g.dual else 8
    return {"BN": 16, "BF": 16 if own else 32, "num_warps": warps, "num_stages": 3}


_WARPS = ("num_warps", (4, 8))
_STAGES = ("num_stages", (1, 2, 3, 4, 5))
_CONV = (("BM", (32, 64, 128, 256)), ("BN", (16, 32, 64)), ("BK", (16, 32, 64)), _WARPS, _STAGES)
_WGRAD = (
    ("BF", (16, 32, 64)), ("BP", (16, 32, 64)), ("BC", (16, 32, 64)),
    ("per_split", (256, 512, 1024, 2048, 4096)), ("num_warps", (2, 4, 8)),
    ("num_stages", (1, 2, 3, 4)),
)  # fmt: skip
_STEM = (("BM", (32, 64, 128)), ("BF", (32, 64)), _WARPS)
_OUTER = (("BM", (32, 64, 128)), ("per_split", (64, 128, 256, 512, 1024, 2048)), _WARPS, _STAGES)
_MERGE = (("BT", (32, 128, 256)), ("BF", (16, 32, 64)), _WARPS)
_MAP = (("BM", (8, 16, 32, 64, 128)), ("BF", (16, 32, 64)), _WARPS)
_HEAD = (("BD", (64, 128, 256)), _WARPS, _STAGES)
_HEAD_BWD = (_WARPS, _STAGES)
# Each kernel's default, and what a tuner varies of it.
KERNELS = {
    "conv_fwd": (_conv, _CONV),
    "conv_bwd": (_conv, _CONV),
    "conv_wgrad": (_wgrad, _WGRAD),
    "stem_fwd": (_stem, _STEM),
    "stem_dot": (_stem, _STEM),
    "stem_outer": (_stem_outer, _OUTER),
    "stem_small": (_stem_small, (("BF", (16, 32, 64)), _WARPS)),
    "merge": (_merge, _MERGE),
    "normalise": (_map, _MAP),
    "head": (_head, _HEAD),
    "head_bwd": (_head_bwd, _HEAD_BWD),
}
