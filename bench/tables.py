"""The tables of a run, in Markdown that also reads well in a terminal."""

from collections.abc import Iterable, Iterator
from operator import truediv
from statistics import median
from typing import NamedTuple

from bench import processor
from bench.cases import PRECISIONS
from bench.flops import PARTS
from bench.turns import by_turns

MIB, GIGA = 2**20, 1e9


class Section(NamedTuple):
    """`short` is shown in the README, the rest of `full` on demand."""

    title: str
    short: str
    full: str = ""  # empty: no more than `short`


def text(run: dict) -> str:
    """All of it, in full; nothing of a run that has nothing to show."""
    parts = [f"{s.title}\n\n{s.full or s.short}" for s in sections(run)]
    return "\n".join([machine(run), *parts]) if parts else ""


def sections(run: dict) -> list[Section]:
    return [
        *_meta(run),
        *_precisions(run),
        *_peers(run),
        *_modules(run),
        *_ops(run),
        *_evaluation(run),
        *_episodes(run),
    ]


def where(run: dict) -> str:
    """The machine, the versions and the command."""
    changed = " with uncommitted changes" if run["changed"] else ""
    threads = f"{run['threads']} thread" + "s" * (run["threads"] > 1)
    return (
        f"{processor.told(run)}, {run['cores']} cores, {threads}, "
        f"kernels: {run['kernels']}, torch {run['torch']}, commit "
        f"{run['commit'][:8] or 'unknown'}{changed}, {run['date'][:10]}: `{run['command']}`"
    )


def machine(run: dict) -> str:
    """Where it was measured, and what that machine does at best."""
    peaks = Peaks.of(run)
    best = []
    if peaks.multiply_add:
        best.append(f"multiply-adds in registers {peaks.multiply_add / GIGA:,.0f} GFLOP/s")
    if peaks.matmul:
        best.append(f"matrix product {peaks.matmul / GIGA:,.0f} GFLOP/s")
    if peaks.conv:
        best.append(f"fastest convolution below {peaks.conv / GIGA:,.0f} GFLOP/s")
    if peaks.copy:
        best.append(f"copy of memory {peaks.copy / GIGA:,.1f} GB/s")
    return "\n".join([where(run), *([", ".join(best) + "."] if best else [])]) + "\n"


class Peaks(NamedTuple):
    """The best rates of a run, 0 where they were not measured."""

    matmul: float  # FLOP/s
    conv: float  # FLOP/s, of any backend
    copy: float  # byte/s
    multiply_add: float  # FLOP/s

    @classmethod
    def of(cls, run: dict) -> "Peaks":
        named = {row["name"]: row["per_second"] for row in run["peaks"]}
        convs = [r["flops"] / r["seconds"] for r in run["ops"] if r["op"] == "conv"]
        conv = max(convs, default=0)
        return cls(named.get("matmul", 0), conv, named.get("copy", 0), named.get("multiply-add", 0))

    @property
    def compute(self) -> float:
        """The library's matrix product may be slower than its convolutions."""
        return max(self.matmul, self.conv)


_META = [
    "outer iteration", "order", "steps", "s", "s, loop", "speed-up", "GFLOP/s (of best)",
    "s / floor", "products", "peak", "peak, loop", "ratio",
]  # fmt: skip


def _meta(run: dict) -> Iterator[Section]:
    rows = [(row["short"], _iteration(row, Peaks.of(run), _fair(run))) for row in run["meta"]]
    short = [cells for first, cells in rows if first]
    full = table(_META, [cells for _, cells in rows]) if len(short) < len(rows) else ""
    if rows:
        yield Section("Outer iterations", table(_META, short) if short else "", full)


def _name(row: dict) -> str:
    tasks = f"{row['tasks']} task" + "s" * (row["tasks"] > 1)
    return f"{row['case']}, {tasks}, {row['algorithm']}, {row['loss']}"


def _fair(run: dict) -> bool:
    """Whether the baselines had tensors as PyTorch lays them out: before, they had ours, by which
    the loop took up to 1.8 times as long, and no figure of theirs is shown.
    """
    return run.get("dense", False)


def ratio(row: dict, name: str) -> tuple[float, float, float, int] | None:
    """Of another one's seconds to ours: of the medians of the rounds by turns, the least and the
    largest of a round, and how many these were.
    """
    pairs = by_turns(row, name)
    if not pairs:
        return None
    each = sorted(theirs / own for theirs, own in pairs)
    theirs, ours = (median(of) for of in zip(*pairs, strict=True))
    return theirs / ours, each[0], each[-1], len(each)


def _times(found: tuple[float, float, float, int] | None) -> str:
    """As 7.1× (6.4–7.9, 5): the ratio, its range over the rounds, and their number."""
    if found is None:
        return "–"
    of, least, most, count = found
    return f"{of:.1f}× ({least:.1f}–{most:.1f}, {count})"


def _iteration(row: dict, peaks: Peaks, fair: bool) -> list[str]:
    seconds, memory = (row[what] for what in ("seconds", "memory"))
    rate = row["flops"] / seconds["ours"]
    return [
        _name(row),
        row["order"],
        str(row["steps"]),
        f"{seconds['ours']:.3f}",
        f"{seconds['loop']:.3f}" if fair else "–",
        _times(ratio(row, "loop")) if fair else "–",
        f"{rate / GIGA:,.0f}" + (f" ({100 * rate / peaks.compute:.0f} %)" if peaks.compute else ""),
        f"{peaks.matmul / rate:.2f}" if peaks.matmul else "–",
        _products(row, peaks),
        f"{memory['ours'] / MIB:,.0f} MiB",
        f"{memory['loop'] / MIB:,.0f} MiB",
        f"{memory['ours'] / memory['loop']:.2f}",
    ]


def _products(row: dict, peaks: Peaks) -> str:
    """At the rate of multiply-adds in registers, and the share of the iteration."""
    if not (products := row.get("products")) or not peaks.multiply_add:
        return "–"
    seconds = products / peaks.multiply_add
    return f"{seconds:.3f} s ({100 * seconds / row['seconds']['ours']:.0f} %)"


def _precisions(run: dict) -> Iterator[Section]:
    """Rows that were measured with products in bfloat16 too."""
    rows = [row for row in run["meta"] if row["seconds"].keys() & PRECISIONS.keys()]
    head = ["s (of fp32 by turns)", "fp32", *PRECISIONS.values()]
    body = [[f"{_name(row)}, {row['order']}", *_precision_cells(row)] for row in rows]
    if rows:
        yield Section("Precision of the products", table(head, body))


def _precision_cells(row: dict) -> Iterator[str]:
    yield f"{row['seconds']['ours']:.3f}"
    for name in PRECISIONS:
        found = ratio(row, name)
        yield f"{row['seconds'][name]:.3f} ({found[0]:.2f})" if found else "–"


_AUTHORS = "authors' code"
_NOTES = {
    "parallel-metalearn": "has one gain and bias for all steps, and no clamp",
    "JAX": "compiles first; that is not in its seconds",
}


def _peers(run: dict) -> Iterator[Section]:
    """Rows in which others than the loop took part, or would have."""
    rows = [
        row
        for row in run["meta"]
        if len(row["seconds"].keys() - PRECISIONS.keys()) > 2 or row["absent"]
    ]
    names = [
        n
        for n in dict.fromkeys(n for row in rows for n in row["seconds"])
        if n not in PRECISIONS and (_fair(run) or n.startswith("ours") or n == _AUTHORS)
    ]
    reasons = dict.fromkeys(
        f"{name}: {why}" for row in run["meta"] for name, why in row["absent"].items()
    )
    if rows:
        body = [[f"{_name(row)}, {row['order']}", *_seconds(row, names)] for row in rows]
        body = table(["seconds (peak, MiB)", *names], body)
        lines = [f"- {name} {note}\n" for name, note in _NOTES.items() if name in names]
        lines = "".join([*lines, *(f"- Left out, {reason}\n" for reason in reasons)])
        yield Section("Other implementations", body + (f"\n{lines}" if lines else ""))


def iterations(run: dict) -> str:
    """Those of the short rows, their precisions, and the other implementations."""
    sections = (*_meta(run), *_precisions(run), *_peers(run))
    parts = [machine(run), *(s.short for s in sections)]
    return "\n".join(parts)


def authors(run: dict) -> str:
    """Ours, in each precision of the processor, against the authors' own code, of a run that had
    it.
    """
    rows = [row for row in run["meta"] if _AUTHORS in row["seconds"]]
    narrow = [n for n in PRECISIONS if any(n in row["seconds"] for row in rows)]
    head = ["s (speed-up; its range, rounds)", _AUTHORS, "ours", *narrow]
    body = []
    for row in rows:
        seconds, found = row["seconds"], ratio(row, _AUTHORS)
        cells = [f"{seconds['ours']:.3f} = {_times(found)}"]
        for name in narrow:  # by turns with ours, as the authors' code is
            other = ratio(row, name)
            cells.append(f"{seconds[name]:.3f} = {found[0] / other[0]:.1f}×" if other else "–")
        body.append([_name(row), f"{seconds[_AUTHORS]:.3f}", *cells])
    return f"{where(run)}\n\n{table(head, body)}"


def _modules(run: dict) -> Iterator[Section]:
    """Networks of one's own, against plain autograd."""

    def cells(row: dict) -> list[str]:
        seconds, memory = (row[what] for what in ("seconds", "memory"))
        return [
            row["row"],
            *(f"{seconds[each]:.3f}" for each in ("ours", "loop")),
            f"{1 / ratio(row, 'loop')[0]:.2f}",
            *(f"{memory[each] / MIB:,.0f} MiB" for each in ("ours", "loop")),
            f"1/{memory['loop'] / memory['ours']:.2f}",
        ]

    rows = run.get("modules", [])  # runs before them have none
    # of all but ours, whose copies had its layout before
    shown = [row for row in rows if _fair(run) or not row["row"].startswith("ResNet-12")]
    body = [cells(row) for row in shown if "loop" in row["seconds"]]
    if body:
        yield Section("Networks of one's own, through the learner", table(_MODULES, body))
    body = [
        [
            row["row"],
            *(f"{row['seconds'][name]:.3f}" for name in ("ours", "ours, learner")),
            f"{median(map(truediv, *map(row['rounds'].get, ('ours, learner', 'ours')))):.3f}",
        ]
        for row in rows
        if "ours, learner" in row["seconds"]
    ]
    if body:
        head = ["the engine's network", "s, `engine.train`", "s, `Learner` and Adam", "ratio"]
        yield Section("The learner beside the command line", table(head, body))


_MODULES = ["second order, 5 steps", "s", "s, loop", "ratio", "peak", "peak, loop", "ratio"]


def _seconds(row: dict, names: Iterable[str]) -> list[str]:
    return [
        f"{row['seconds'][name]:.3f} ({row['memory'][name] / MIB:,.0f})"
        if name in row["seconds"]
        else "–"
        for name in names
    ]


def _ops(run: dict) -> Iterator[Section]:
    """Rates of the parts, with their share of the best convolution or product, or of the copy."""
    peaks = Peaks.of(run)
    kinds = (
        ("GFLOP/s (share of the peak)", ("conv", "head", "passes"), "flops", peaks.compute),
        ("GB/s (share of the copy)", ("norm_act", "update"), "bytes", peaks.copy),
    )
    tables = []
    for unit, names, amount, peak in kinds:
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for row in run["ops"]:
            if row["op"] in names:
                key = f"{row['op']} {row['case']}", row["shape"], row["backend"]
                rate = row[amount] / row["seconds"]
                share = f" ({100 * rate / peak:.0f} %)" if peak else ""
                rows.setdefault(key, {})[row["part"]] = f"{rate / GIGA:,.1f}{share}"
        if rows:
            body = [[*key, *(parts.get(p, "–") for p in PARTS)] for key, parts in rows.items()]
            tables.append(table([unit, "shape", "backend", *PARTS], body))
    if tables:
        yield Section("Ops", "", "\n".join(tables))


_EVALUATION = ["evaluation", "tasks/s", "tasks/s, loop", "speed-up", "peak", "peak, loop"]


def _evaluation(run: dict) -> Iterator[Section]:
    def cells(row: dict) -> list[str]:
        seconds, memory = (row[what] for what in ("seconds", "memory"))
        return [
            f"{row['case']}, {row['tasks']} tasks, {row['steps']} steps",
            *(f"{row['tasks'] / seconds[name]:,.1f}" for name in ("ours", "loop")),
            _times(ratio(row, "loop")),
            *(f"{memory[name] / MIB:,.0f} MiB" for name in ("ours", "loop")),
        ]

    if run["evaluation"] and _fair(run):
        yield Section("Evaluation", table(_EVALUATION, [cells(row) for row in run["evaluation"]]))


_EPISODES = ["the sampler", "tasks/s", "tasks/s, prefetched", "images/s"]


def _episodes(run: dict) -> Iterator[Section]:
    def cells(row: dict) -> list[str]:
        rates = [row["tasks"] / row["seconds"][how] for how in ("direct", "prefetched")]
        return [
            f"{row['case']}, {row['tasks']} tasks",
            *(f"{rate:,.0f}" for rate in rates),
            f"{row['images'] / row['seconds']['direct']:,.0f}",
        ]

    if run["episodes"]:
        yield Section("Episodes", table(_EPISODES, [cells(row) for row in run["episodes"]]))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Text left, numbers right, columns aligned."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    pad = ["<"] + [">"] * (len(head) - 1)
    rule = ["-" * w if p == "<" else "-" * (w - 1) + ":" for w, p in zip(widths, pad, strict=True)]
    lines = [head, rule, *rows]
    return "".join(
        "| " + " | ".join(f"{c:{p}{w}}" for c, p, w in zip(r, pad, widths, strict=True)) + " |\n"
        for r in lines
    )
