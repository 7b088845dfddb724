"""What plotly.js is to draw, as the plain dicts that it takes: a figure, and the curves."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from engine.errors import printable
from engine.report.groups import Group
from engine.report.recorded import Recorded

Points = list[tuple[float, float]]  # of a curve: epoch and height
ZERO = {"zeroline": True, "zerolinecolor": "#444", "zerolinewidth": 1.5, "rangemode": "tozero"}


@dataclass(frozen=True)
class Figure:
    """A chart. One with ``frames`` has a slider over epochs and opens at each run's best."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    frames: list[list[list | None]] | None = None  # of each trace the y after each epoch
    best: list[tuple[str, int]] | None = None  # of each trace its name and best epoch

    @property
    def epochs(self) -> int:
        return max(map(len, self.frames or [[]]))

    def to_dict(self) -> dict[str, Any]:
        """What the page's script takes."""
        return {"data": self.data, "layout": self.layout, "frames": self.frames}


def escaped(text: str) -> str:
    """A name as plotly shows it, which takes some tags in what it is given."""
    return html.escape(printable(text))


def shown(value: float | None) -> float | None:
    """In six digits; what is not finite is a gap."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def loss(groups: list[Group]) -> Figure:
    """The training loss: means of epochs, and after the last of them of shorter intervals."""

    def points(run: Recorded) -> Points:
        found = [(float(epoch), row["train_loss"]) for epoch, row in run.epochs.items()]
        last = found[-1][0] if found else 0.0
        later = [(row["iteration"] / run.cfg.iterations, row["loss"]) for row in run.train]
        return found + [(x, y) for x, y in later if x > last]

    return _curves("Training loss", "loss", groups, points, ".4f")


def validation(groups: list[Group]) -> Figure:
    """The accuracy, or the loss, on the validation tasks."""
    by_loss = groups[0].runs[0].by_loss
    title, form = ("Validation loss", ".4f") if by_loss else ("Validation accuracy", ".2%")

    def points(run: Recorded) -> Points:
        return [(float(epoch), run.value(epoch)) for epoch in run.epochs]

    figure = _curves(title, "loss" if by_loss else "accuracy", groups, points, form)
    for group in groups:
        for run in filter(lambda run: run.best in run.epochs, group.runs):
            figure.data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [float(run.best)],
                    "y": [shown(run.value(run.best))],
                    "meta": f"{escaped(told(group, run, groups))}, best epoch",
                    "marker": {"symbol": "star", "size": 11, "color": group.colour},
                    "hovertemplate": f"%{{meta}} %{{x}}: %{{y:{form}}}<extra></extra>",
                    "showlegend": False,
                }
            )
    return figure


def seconds(groups: list[Group]) -> Figure:
    """Of an iteration, by epoch."""

    def points(run: Recorded) -> Points:
        return [(float(e), row["seconds_per_iteration"]) for e, row in run.epochs.items()]

    return _curves("Seconds an iteration", "s", groups, points, ".4f", ZERO)


def memory(groups: list[Group]) -> Figure | None:
    """Of the process, at the peak so far. None where no run recorded it."""

    def points(run: Recorded) -> Points:
        rows = run.epochs.items()
        return [(float(e), row["peak_memory"] / 2**20) for e, row in rows if row.get("peak_memory")]

    if not any(points(run) for group in groups for run in group.runs):
        return None
    return _curves("Peak of memory", "MiB", groups, points, ",.0f", ZERO)


def _curves(
    title: str,
    unit: str,
    groups: list[Group],
    points: Callable[[Recorded], Points],
    form: str,
    axis: dict[str, Any] | None = None,
) -> Figure:
    """A thin line a run; of several of a group their mean and, as a band, their deviation at the
    places that all of them have."""
    data = []
    for group in groups:
        of_runs = [points(run) for run in group.runs]
        for run, found in zip(group.runs, of_runs, strict=True):
            data.append(_line(group, found, told(group, run, groups), form))
        if len(group.runs) > 1:
            data += _mean(group, of_runs, form)
    ticks = {".2%": ".0%", ",.0f": ",.0f"}.get(form, "")
    layout = {
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": unit}, "tickformat": ticks, **(axis or {})},
        "showlegend": len(groups) > 1 or len(groups[0].runs) > 1,
    }
    return Figure(title, data, layout)


def told(group: Group, run: Recorded, groups: list[Group]) -> str:
    """What a run is called among all."""
    return group.label(run) if len(groups) == 1 else f"{group.name}, {group.label(run)}"


def _line(group: Group, found: Points, name: str, form: str) -> dict[str, Any]:
    alone = len(group.runs) == 1
    return {
        "type": "scatter",
        "mode": "lines" if len(found) > 1 else "markers",
        "name": escaped(group.name),
        "legendgroup": group.name,
        "showlegend": alone,
        "x": [shown(x) for x, _ in found],
        "y": [shown(y) for _, y in found],
        "meta": escaped(name),
        "line": {"color": group.colour, "width": 2 if alone else 1},
        "marker": {"color": group.colour},
        "opacity": 1 if alone else 0.6,
        "hovertemplate": f"%{{meta}}<br>epoch %{{x}}: %{{y:{form}}}<extra></extra>",
    }


def _mean(group: Group, of_runs: list[Points], form: str) -> list[dict[str, Any]]:
    """Where every run has something finite: the band, then the line."""
    every = [dict(found) for found in of_runs]
    places = [x for x in every[0] if all(math.isfinite(y.get(x, math.nan)) for y in every)]
    values = [[found[x] for found in every] for x in places]
    mean, spread = [*map(fmean, values)], [*map(stdev, values)]
    upper = [shown(m + s) for m, s in zip(mean, spread, strict=True)]
    lower = [shown(m - s) for m, s in zip(mean, spread, strict=True)]
    band = {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": group.name,
        "showlegend": False,
        "x": places + places[::-1],
        "y": upper + lower[::-1],
        "fill": "toself",
        "fillcolor": _faint(group.colour),
        "line": {"width": 0, "color": group.colour},
        "hoverinfo": "skip",
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": group.name,
        "name": f"{escaped(group.name)}: mean of {len(of_runs)}, ± deviation",
        "x": places,
        "y": [*map(shown, mean)],
        "customdata": [*map(shown, spread)],
        "line": {"width": 2.5, "color": group.colour},
        "hovertemplate": f"mean of {len(of_runs)}<br>epoch %{{x}}: %{{y:{form}}} ± "
        f"%{{customdata:{form}}}<extra></extra>",
    }
    return [band, line]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
