"""What others printed for the tasks of a page: quoted, beside what was measured."""

from __future__ import annotations

from engine.report.groups import Group
from engine.report.sections import table, text
from engine.tables import quoted

# By the name that only data with the published splits bear: rows of the paper, and others.
_ROWS = {
    "omniglot": quoted.OMNIGLOT_ROWS | quoted.OTHERS_OMNIGLOT,
    "mini": quoted.OTHERS_MINI | quoted.MINI_ROWS,
}
_ALWAYS = "maml++", "maml"
_STEPS = 5  # of the paper's MAML++; it prints fewer ones too


def published(groups: list[Group]) -> str:
    """A row for MAML++, MAML and each method of the runs, in tasks of their data, ways and shots;
    nothing where no figure is known."""
    names = "data", "ways", "shots"
    tasks = dict.fromkeys(tuple(map(group.settings.get, names)) for group in groups)
    methods = dict.fromkeys([*_ALWAYS, *(_row(group) for group in groups)])
    rows = []
    for data, ways, shots in tasks:
        for method in methods:
            if found := _ROWS.get(data, {}).get(method, {}).get((ways, shots)):
                task = f"{method}, {data} {ways}-way {shots}-shot"
                rows.append([*map(text, (task, f"{found.text} %", found.source, found.protocol))])
    if not rows:
        return ""
    head = ["quoted, not measured here", "accuracy", "source", "protocol"]
    return f"<h3>Published</h3>{table(head, rows, 'stacked published')}"


def _row(group: Group) -> str:
    """The one that is nearest to what was trained."""
    cfg = group.runs[0].cfg
    if cfg.method == "maml" and cfg.preset == "finn-2017":
        return "maml-original"
    if cfg.method == "matching" and cfg.context:
        return "matching-context"
    if cfg.method == "maml++" and cfg.steps < _STEPS:
        return f"maml++-{cfg.steps}-step{'s' * (cfg.steps > 1)}"
    return cfg.method
