"""The page: one HTML file with its style, its script and plotly.js inside."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import metadata, resources

from engine.errors import UserError
from engine.files import REPORT_HEAD
from engine.methods import METHODS
from engine.report import epochs, figures, sections
from engine.report.confusion import confusion, tested
from engine.report.figures import Figure
from engine.report.groups import WEIGHTS, Group, grouped
from engine.report.published import published
from engine.report.recorded import Recorded
from engine.report.sections import text

_STANDIN = "mini-standin"  # as engine.data.standin has it, which takes torch
_TASKS = 5  # at most on a page, one of each configuration if there are more of these
_NAMED = 5  # runs at most whose best epochs are told beside a slider
INSTALL = "pip install 'plotly>=6'"
_OLDEST = 6  # plotly before it makes code of texts, which the page forbids


def missing() -> str | None:
    """Why no page can be made, and what to do."""
    try:
        found = metadata.version("plotly")
    except metadata.PackageNotFoundError:
        return f"plotly is not installed: {INSTALL}"
    old = int(found.partition(".")[0]) < _OLDEST
    return f"plotly {found} is too old: {INSTALL}" if old else None


def document(runs: list[Recorded]) -> str:
    """Raises UserError when plotly is not installed."""
    if why := missing():
        raise UserError(why)
    from plotly.offline import get_plotlyjs

    groups, charts = grouped(runs), _Charts()
    body = "\n".join(_sections(groups, charts))
    library, own = get_plotlyjs(), _resource("page.js")
    allowed = " ".join(map(_digest, (library, own)))
    title = _title(groups)
    return f"""{REPORT_HEAD.decode()}<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src {allowed}">
<title>{title}</title>
<style>{_resource("page.css")}</style></head><body>
<header><h1>{title}</h1>{_notice(runs)}
<noscript><p class="notice">The charts need JavaScript.</p></noscript></header>
<main>
{body}
</main>
<script type="application/json" id="charts">{charts.json()}</script>
<script>{library}</script>
<script>{own}</script>
</body></html>
"""


def _resource(name: str) -> str:
    return (resources.files("engine.report") / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """By which the browser runs this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _title(groups: list[Group]) -> str:
    data = dict.fromkeys(group.settings["data"] for group in groups)
    names = groups[0].name if len(groups) == 1 else f"{len(groups)} configurations"
    return text(f"{', '.join(data)}: {names}")


def _notice(runs: list[Recorded]) -> str:
    if not any(run.data == _STANDIN for run in runs):
        return ""
    return (
        f'<p class="notice">{_STANDIN} is a generated stand-in: its accuracies say nothing of '
        "mini-ImageNet.</p>"
    )


class _Charts:
    """Collects what the script draws; the page has a place for each."""

    def __init__(self):
        self._figures: list[Figure] = []

    def place(self, figure: Figure) -> str:
        """The HTML where it is to be drawn, with its slider."""
        number = len(self._figures)
        self._figures.append(figure)
        slider = _slider(number, figure) if figure.frames is not None else ""
        entries = sum(trace.get("showlegend", True) for trace in figure.data)
        height = figure.layout.get("height", 380 + 20 * max(0, entries - 4))
        return (
            f'{slider}<div class="chart" id="chart-{number}" style="height: {height}px" role="img" '
            f'aria-label="{text(figure.title)}"></div>'
        )

    def json(self) -> str:
        content = json.dumps([figure.to_dict() for figure in self._figures], allow_nan=False)
        return content.replace("<", "\\u003c")  # nothing in it ends the script


def _slider(number: int, figure: Figure) -> str:
    best = "best of each run"
    if len(figure.best) <= _NAMED:
        best += f" ({'; '.join(f'{name}: {epoch}' for name, epoch in figure.best)})"
    return (
        f'<div class="slider"><label>epoch <input type="range" id="slider-{number}" min="0" '
        f'max="{figure.epochs}" value="0" step="1"></label> '
        f'<output for="slider-{number}" data-best="{text(best)}">{text(best)}</output></div>'
    )


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>\n{content}</section>'


def _sections(groups: list[Group], charts: _Charts) -> list[str]:
    what = "Loss" if groups[0].runs[0].by_loss else "Accuracy"
    return [
        _section("summary", "Summary", sections.summary(groups) + published(groups)),
        _section("settings", "Configuration", sections.settings(groups)),
        _section("curves", "Curves", _curves(groups, charts)),
        _section("rates", "Learned inner rates", _rates(groups, charts)),
        _section("steps", f"{what} by inner step", _steps(groups, charts)),
        _section("tasks", "Test tasks", _tasks(groups)),
        _section("confusion", "Confusion", _confusion(groups, charts)),
        _section("cost", "Seconds and memory", _cost(groups, charts)),
    ]


def _curves(groups: list[Group], charts: _Charts) -> str:
    several = any(len(group.runs) > 1 for group in groups)
    band = " A band is the deviation over seeds, where all have come so far." if several else ""
    parts = [f"<p>A thin line is a run; a star its best epoch.{band}</p><h3>Training loss</h3>"]
    parts.append(charts.place(figures.loss(groups)))
    if any(run.epochs for group in groups for run in group.runs):
        parts += ["<h3>Validation</h3>", charts.place(figures.validation(groups))]
    else:
        parts.append("<p>No epoch is validated yet.</p>")
    return "".join(parts)


def _rates(groups: list[Group], charts: _Charts) -> str:
    parts = [
        "<p>By tensor and, within it, by inner step from left to right. The slider goes through "
        "the epochs and begins at the best of each run.</p>"
    ]
    for group in groups:
        parts.append(f"<h3>{text(group.name)}</h3>" if len(groups) > 1 else "")
        parts.append(_rates_of(group, charts))
    return "".join(parts)


def _rates_of(group: Group, charts: _Charts) -> str:
    kind, figure = group.settings["rates"], epochs.rates(group)
    method = group.settings["method"]
    if not METHODS[method].has_steps:
        return "<p>The method has no inner loop.</p>"
    if METHODS[method].own and not METHODS[method].averaged:
        rate = group.settings["inner_rate"]
        return f"<p>The step is learned; it begins near gradient descent of rate {rate}.</p>"
    if kind == "fixed" and group.settings[WEIGHTS] != "random" and not METHODS[method].by_rate:
        return "<p>They are not learned: those of the weights that it began with.</p>"
    if kind == "fixed":
        return f"<p>They are not learned: {group.settings['inner_rate']} in all steps.</p>"
    if figure is None:
        return f"<p>{_no_rates(group)}</p>"
    means = "<p>A rate a parameter: what is drawn are the means of the tensors.</p>"
    return (means if kind == "per-parameter" else "") + charts.place(figure)


def _no_rates(group: Group) -> str:
    if not any(run.epochs for run in group.runs):
        return "No epoch is validated yet."
    return "The log has no rates: an older version made it."


def _steps(groups: list[Group], charts: _Charts) -> str:
    figure = epochs.by_step(groups)
    if figure is None:
        return (
            "<p>The logs have nothing by step: no epoch is validated yet, the run has a single "
            "step, or an older version made it.</p>"
        )
    rows = [row for group in groups for run in group.runs for row in run.epochs.values()]
    count = max(row.get("step_tasks", 0) for row in rows)
    tasks = "task" if count == 1 else f"{count} tasks"
    return f"<p>On the first {tasks} of the validation.</p>{charts.place(figure)}"


def _tasks(groups: list[Group]) -> str:
    parts = []
    for group in groups:
        parts.append(f"<h3>{text(group.name)}</h3>" if len(groups) > 1 else "")
        run = next((run for run in group.runs if run.details and run.details["tasks"]), None)
        most = max(1, _TASKS // len(groups))
        parts.append(_no_details(group) if run is None else _of_run(group, run, most))
    return "".join(parts)


def _of_run(group: Group, run: Recorded, most: int) -> str:
    imagenet = run.cfg.dataset == "mini" and run.data != _STANDIN
    notice = (
        '<p class="notice">Pictures of ImageNet are for non-commercial research alone: do not '
        "publish this page.</p>"
    )
    return (
        f"{notice if imagenet else ''}<p>The first test tasks, and of each class the first "
        f"pictures, as the best model of {text(group.label(run))} answered them: ✗ with the number "
        f"of the class that it took the picture for.</p>{sections.tasks(run.details, most)}"
    )


def _no_details(group: Group) -> str:
    if not any(run.result for run in group.runs):
        return "<p>No run is tested yet.</p>"
    if any(run.details for run in group.runs):
        return "<p>The run was trained with --no-report, which keeps no pictures.</p>"
    return (
        "<p>The run folder does not have it: a network of a script's own, or an older version. Of "
        "the latter, remove result.json and give the command of the training again, which tests "
        "it anew.</p>"
    )


def _confusion(groups: list[Group], charts: _Charts) -> str:
    parts = [
        "<p>Of the target images of a class (row), in test tasks with both classes, the part that "
        "was taken for the other (column) by the best models.</p>"
    ]
    for group in groups:
        parts.append(f"<h3>{text(group.name)}</h3>" if len(groups) > 1 else "")
        figure = confusion(group)
        if figure is not None:
            parts.append(charts.place(figure))
        elif tested(group):
            parts.append(sections.lowest(group))
        else:
            parts.append(_no_details(group))
    return "".join(parts)


def _cost(groups: list[Group], charts: _Charts) -> str:
    if not any(run.epochs for group in groups for run in group.runs):
        return "<p>No epoch is validated yet.</p>"
    parts = [
        "<p>In the summary, seconds an iteration are those of the last epoch, and hours those of "
        "all iterations, without validations and test.</p>",
        "<h3>Seconds an iteration</h3>",
        charts.place(figures.seconds(groups)),
    ]
    memory = figures.memory(groups)
    if memory is None:
        parts.append(
            "<p>The log has no memory: an older version made it, or the system does not say.</p>"
        )
    else:
        parts += ["<h3>Memory of the process, at the peak so far</h3>", charts.place(memory)]
    return "".join(parts)
