"""The roofline picture of a run: the rate of every op and pass over its arithmetic intensity, under
the rates of the memory and of the arithmetic that were measured in the same run.

A point above a roof moved fewer bytes than its operands (they stayed in a cache), or did fewer
operations than were counted.
"""

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from bench.tables import Peaks

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 30, 50  # margins; the legend is on the right
INTENSITY = (0.05, 1000.0)  # FLOP/byte
RATE = (0.1, 1000.0)  # GFLOP/s, more if a roof or a point is higher
COLOURS = {
    "conv": "#1f77b4",
    "norm_act": "#ff7f0e",
    "head": "#2ca02c",
    "update": "#9467bd",
    "passes": "#d62728",
}
MARKS = ("circle", "square", "triangle", "diamond")  # by backend


def picture(run: dict) -> str:
    """SVG, empty when the run has no points or no roofs."""
    peaks = Peaks.of(run)
    if not (run["ops"] and peaks.compute and peaks.copy):
        return ""
    rates = [row["flops"] / row["seconds"] / 1e9 for row in run["ops"]] + [peaks.compute / 1e9]
    axes = _Axes(10 ** math.ceil(math.log10(max(RATE[1], *rates))))
    backends = list(dict.fromkeys(row["backend"] for row in run["ops"]))
    mark_of = dict(zip(backends, MARKS, strict=False))
    parts = [*axes.grid(), *_roofs(axes, peaks)]
    for row, rate in zip(run["ops"], rates, strict=False):
        label = f"{row['op']} {row['case']} {row['part']}, {row['backend']}: {rate:.1f} GFLOP/s"
        place = axes.x(row["flops"] / row["bytes"]), axes.y(rate)
        parts.append(_mark(mark_of[row["backend"]], *place, COLOURS[row["op"]], label))
    parts += _legend(list(dict.fromkeys(row["op"] for row in run["ops"])), mark_of)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Axes:
    def __init__(self, highest: float):
        self.rate = RATE[0], highest

    def x(self, intensity: float) -> float:
        return LEFT + _part(intensity, *INTENSITY) * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        return HEIGHT - BOTTOM - _part(rate, *self.rate) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> Iterator[str]:
        """Lines and numbers at the powers of ten, and what the axes are."""
        for value in _powers(*INTENSITY):
            x = self.x(value)
            yield _line(x, self.y(self.rate[0]), x, self.y(self.rate[1]), "#dddddd")
            yield _text(x, HEIGHT - BOTTOM + 18, f"{value:g}", "middle")
        for value in _powers(*self.rate):
            y = self.y(value)
            yield _line(self.x(INTENSITY[0]), y, self.x(INTENSITY[1]), y, "#dddddd")
            yield _text(LEFT - 8, y + 4, f"{value:g}", "end")
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield _text(middle, HEIGHT - 12, "arithmetic intensity, FLOP/byte", "middle")
        yield _text(LEFT, TOP - 12, "GFLOP/s", "middle")


def _roofs(axes: _Axes, peaks: Peaks) -> Iterator[str]:
    peak, copy = peaks.compute / 1e9, peaks.copy / 1e9
    lowest = max(INTENSITY[0], axes.rate[0] / copy)
    ridge = min(max(peak / copy, lowest), INTENSITY[1])
    yield _line(axes.x(lowest), axes.y(lowest * copy), axes.x(ridge), axes.y(ridge * copy), "black")
    yield _line(axes.x(ridge), axes.y(peak), axes.x(INTENSITY[1]), axes.y(peak), "black")
    yield _text(axes.x(INTENSITY[1]) + 6, axes.y(peak) + 4, f"{peak:,.0f} GFLOP/s")
    yield _text(axes.x(lowest) + 8, axes.y(lowest * copy) + 16, f"{copy:,.1f} GB/s")


def _legend(ops: list[str], mark_of: dict[str, str]) -> Iterator[str]:
    x, y = WIDTH - RIGHT + 30, HEIGHT / 2
    for i, (colour, mark, label) in enumerate(
        [(COLOURS[op], "square", op) for op in ops]
        + [("#555555", mark, backend) for backend, mark in mark_of.items()]
    ):
        yield _mark(mark, x, y + 20 * i, colour, label)
        yield _text(x + 14, y + 20 * i + 4, label)


def _part(value: float, low: float, high: float) -> float:
    """0 at `low` to 1 at `high`, by the logarithm; what is beyond lies on the edge."""
    value = min(max(value, low), high)
    return math.log(value / low) / math.log(high / low)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _mark(kind: str, x: float, y: float, colour: str, label: str) -> str:
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "triangle": ((0, -5), (5, 4), (-5, 4)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
    }
    title = f'fill="{colour}" fill-opacity="0.75"><title>{escape(label)}</title>'
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {title}</circle>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[kind])
    return f'<polygon points="{points}" {title}</polygon>'
