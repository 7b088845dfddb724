"""What moves with the epoch: inner rates by layer and step, accuracy by inner step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from engine.report.figures import ZERO, Figure, escaped, shown, told
from engine.report.groups import COLOURS, Group
from engine.report.recorded import Recorded

_DODGE = 0.7  # of the room of a layer, that its inner steps take


class _Line(NamedTuple):
    """How a run is drawn."""

    run: Recorded
    name: str
    colour: str
    legend: str  # what the legend has, once for all of them
    first: bool  # of those


def _lines(group: Group) -> list[_Line]:
    """A colour a run, of those with a validated epoch."""
    runs = [run for run in group.runs if run.epochs]
    colours = (COLOURS[i % len(COLOURS)] for i in range(len(runs)))
    names = map(group.label, runs)
    rows = zip(runs, names, colours, strict=True)
    return [_Line(run, name, colour, name, True) for run, name, colour in rows]


def _lines_of_all(groups: list[Group]) -> list[_Line]:
    """A colour a group, if there are several."""
    if len(groups) == 1:
        return _lines(groups[0])
    return [
        line._replace(
            name=told(group, line.run, groups),
            colour=group.colour,
            legend=group.name,
            first=i == 0,
        )
        for group in groups
        for i, line in enumerate(_lines(group))
    ]


def rates(group: Group) -> Figure | None:
    """The inner rates of a group's runs, a colour a run: by layer and, in the room of a layer, by
    step. None where the log has none.
    """
    rows = [row.get("rates", {}) for run in group.runs for row in run.epochs.values()]
    layers = [*dict.fromkeys(name for row in rows for name in row)]
    if not layers:
        return None
    steps = max(len(values) for row in rows for values in row.values())
    gap = _DODGE / max(1, steps - 1)
    places = [i + (k - (steps - 1) / 2) * gap for i in range(len(layers)) for k in range(steps)]
    names = [(escaped(name), k + 1) for name in layers for k in range(steps)]

    def of_epoch(row: dict[str, Any]) -> list[float | None]:
        found = row.get("rates", {})
        padded = [[*found.get(name, []), *[None] * steps][:steps] for name in layers]
        return _parted([shown(rate) for layer in padded for rate in layer], steps)

    trace = {
        "x": _parted(places, steps),
        "customdata": _parted(names, steps),
        "hovertemplate": "<b>%{customdata[0]}"
        + (", step %{customdata[1]}" if steps > 1 else "")
        + "</b><br>%{meta}: %{y:.5g}<extra></extra>",
    }
    layout = {
        "xaxis": {
            "tickvals": [*range(len(layers))],
            "ticktext": [*map(escaped, layers)],
            "range": [-0.6, len(layers) - 0.4],
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": {"title": {"text": "rate"}, **ZERO},
        "shapes": [_divider(i + 0.5) for i in range(len(layers) - 1)],
        "showlegend": True,
    }
    return _by_epoch("Inner rates", _lines(group), of_epoch, trace, layout, [0.0])


def _parted(values: list, size: int) -> list:
    """With a gap after every so many, so that no line goes on to the next layer."""
    parts = [[*values[i : i + size], None] for i in range(0, len(values), size)]
    return [value for part in parts for value in part][:-1]


def _divider(x: float) -> dict[str, Any]:
    line = {"color": "#ddd", "width": 1}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def by_step(groups: list[Group]) -> Figure | None:
    """The accuracy, or the loss, after each inner step. None where no log has it."""
    lines, by_loss = _lines_of_all(groups), groups[0].runs[0].by_loss
    what, form = ("loss", ".4f") if by_loss else ("accuracy", ".2%")
    key = f"step_{what}"
    found = [row.get(key, []) for line in lines for row in line.run.epochs.values()]
    most = max(map(len, found), default=0)
    if most < 2:
        return None
    trace = {
        "x": [*range(1, most + 1)],
        "hovertemplate": f"<b>after step %{{x}}</b><br>%{{meta}}: %{{y:{form}}}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "inner steps"}, "dtick": 1, "range": [0.8, most + 0.2]},
        "yaxis": {"title": {"text": what}, "tickformat": "" if by_loss else ".0%"},
        "showlegend": len(lines) > 1,
    }
    title = f"{what.capitalize()} by inner step"
    return _by_epoch(title, lines, lambda row: [*map(shown, row.get(key, []))], trace, layout)


def _by_epoch(
    title: str,
    lines: list[_Line],
    of_epoch: Callable[[dict[str, Any]], list],
    trace: dict[str, Any],
    layout: dict[str, Any],
    with_values: list[float] | None = None,
) -> Figure:
    """A trace a run, whose heights ``of_epoch`` makes of the row of an epoch. The range is the same
    in all epochs, so that what moves are the points; ``with_values`` are in it."""
    data, frames = [], []
    for run, name, colour, legend, first in lines:
        every = range(1, max(run.epochs) + 1)
        frames.append([of_epoch(run.epochs[e]) if e in run.epochs else None for e in every])
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escaped(legend),
                "legendgroup": legend,
                "showlegend": first,
                "meta": escaped(name),
                "y": frames[-1][run.best - 1],
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "size": 6},
                **trace,
            }
        )
    heights = [y for of_run in frames for of in of_run for y in of or [] if y is not None]
    heights = heights + (with_values or []) or [0.0, 1.0]  # these where nothing is finite
    low, high = min(heights), max(heights)
    room = 0.05 * (high - low) or 0.05
    layout["yaxis"]["range"] = [shown(low - room), shown(high + room)]
    best = [(line.name, line.run.best) for line in lines]
    return Figure(title, data, layout, frames, best)
