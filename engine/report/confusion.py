"""Which class was taken for which, of the tasks that showed both."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

from engine.report.figures import Figure, escaped, shown
from engine.report.groups import Group

_GAPS = 60  # classes at most whose cells stand apart


def tested(group: Group) -> list[dict[str, Any]]:
    """Details of a group's runs, as far as they are of the same classes as the first."""
    every = [run.details for run in group.runs if run.details]
    return [details for details in every if details["classes"] == every[0]["classes"]]


def confusion(group: Group) -> Figure | None:
    """By the best models of a group's runs. None where no run has a matrix.

    A cell is the part of a class's target images (row), in the tasks with both classes, that were
    taken for the other (column).
    """
    every = [details for details in tested(group) if details["best"]["confusion"]]
    if not every:
        return None
    names = [*map(escaped, every[0]["classes"])]
    if len({*names}) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    size, of = range(len(names)), sum(map(_together, every), Counter())
    taken = [[sum(d["best"]["confusion"][r][c] for d in every) for c in size] for r in size]
    cells = [[[taken[r][c], of[r, c]] for c in size] for r in size]
    gap = 1 if len(names) <= _GAPS else 0
    heatmap = {
        "type": "heatmap",
        "z": [[shown(n / of) if of else None for n, of in row] for row in cells],
        "x": names,
        "y": names,
        "customdata": cells,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#f3f6fb"], [0.5, "#6baed6"], [1, "#08306b"]],
        "xgap": gap,
        "ygap": gap,
        "colorbar": {"tickformat": ".0%", "thickness": 12},
        "hovertemplate": "<b>%{y}</b> taken for <b>%{x}</b><br>%{customdata[0]} of "
        "%{customdata[1]} images, %{z:.1%}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "taken for"}, "type": "category", "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "margin": {"l": 60, "r": 10, "t": 30, "b": 40},  # above, for the buttons
        "height": min(900, 260 + 18 * len(names)),
    }
    return Figure("Confusion", [heatmap], layout)


def _together(details: dict[str, Any]) -> Counter:
    """Of each pair of classes the target images of the first in tasks that show both."""
    pairs = (pair for drawn in details["task_classes"] for pair in product(drawn, drawn))
    return Counter({pair: n * details["targets"] for pair, n in Counter(pairs).items()})
