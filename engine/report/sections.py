"""The parts of the page that are no charts: summary, settings, tasks with their pictures."""

from __future__ import annotations

import html
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any

from engine.errors import printable
from engine.files import normalised
from engine.report.confusion import tested
from engine.report.groups import Group, differing
from engine.report.recorded import Recorded

_NONE = "–"
_LOWEST = 10  # classes that are told where there are too many for a matrix
_FEW = 5  # images of a class, of fewer its accuracy says nothing


def text(value: object) -> str:
    """As a page shows it, whatever it holds."""
    return html.escape(printable(str(value)))


def table(head: list[str], rows: Iterable[list[str]], kind: str = "") -> str:
    """Of cells that are HTML; a row of one is a heading. Where ``kind`` is "stacked", a row becomes
    a list with the head's words on a narrow screen."""
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = []
    for row in rows:
        if len(row) == 1:
            body.append(f'<tr><th colspan="{len(head)}">{row[0]}</th></tr>')
        else:
            body.append(f"<tr>{''.join(map(_cell, head, row))}</tr>")
    return (
        f'<table class="{kind}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _cell(head: str, content: str) -> str:
    return f'<td data-head="{head}">{content}</td>'


def summary(groups: list[Group]) -> str:
    """A row a run, and of several of a configuration their mean."""
    by_loss = groups[0].runs[0].by_loss
    what = "loss" if by_loss else "accuracy"
    head = ["run", "epochs", f"validation {what}", "test, best", "test, ensemble"]
    others = {text(run.details["other"]["protocol"]) for run in _others(groups)}
    head += [f"best, {' or '.join(sorted(others))}"] * bool(others)
    head += ["s/iteration", "hours", "memory"]
    rows = []
    for group in groups:
        rows += [[text(group.name)]] * (len(groups) > 1)
        rows += [_run(group, run, len(others)) for run in group.runs]
        mean = _mean(group, by_loss)
        rows += [mean + [""] * (len(head) - len(mean))] if mean else []
    return table(head, rows, "stacked") + f"<p>{_protocols(groups)}</p>"


def _others(groups: list[Group]) -> list[Recorded]:
    """Runs that were tested in both protocols."""
    runs = (run for group in groups for run in group.runs)
    return [run for run in runs if run.details and run.details["other"]]


def _run(group: Group, run: Recorded, others: int) -> list[str]:
    """``others``: how many different other protocols there are."""
    label, where = text(group.label(run)), text(run.name)
    name = f'<b style="--own: {group.colour}">{label}</b><br><small>{where}</small>'
    done, by_loss = max(run.epochs, default=0), run.by_loss
    state = "" if run.result else f"<br><small>{_state(run)}</small>"
    far = f"{done} of {run.cfg.epochs}{state}"
    validated, last = _NONE, run.epochs.get(done)
    if run.best:
        row = run.epochs[run.best]
        validated = _score(run.value(run.best), row["interval"], by_loss)
        validated += f"<br><small>epoch {run.best}, {row['tasks']} tasks</small>"
    best, ensemble = (_tested(run, model, by_loss) for model in ("best", "ensemble"))
    cells = [name, far, validated, best, ensemble]
    cells += [_other(run, named=others > 1)] if others else []
    seconds = (last or run.train[-1])["seconds_per_iteration"]
    memory = (last or {}).get("peak_memory")
    return [
        *cells,
        f"{seconds:.3f}",
        f"{run.hours:.2f}",
        f"{memory / 2**20:,.0f} MiB" if memory else _NONE,
    ]


def _state(run: Recorded) -> str:
    if max(run.epochs, default=0) >= run.cfg.epochs:
        return "not tested"
    return "in training" if run.running else "stopped"


def _tested(run: Recorded, model: str, by_loss: bool) -> str:
    if run.result is None:
        return _NONE
    found = run.result[model]
    of = f"epoch {found['epoch']}" if model == "best" else f"of {len(found['epochs'])}"
    value = found["loss" if by_loss else "accuracy"]
    return f"{_score(value, found['interval'], by_loss)}<br><small>{of}</small>"


def _other(run: Recorded, named: bool) -> str:
    other = run.details and run.details["other"]
    if not other:
        return _NONE
    score = _score(other["accuracy"], other["interval"], by_loss=False)
    return f"{score}<br><small>{text(other['protocol'])}</small>" if named else score


def _score(value: float, interval: float, by_loss: bool) -> str:
    if by_loss:
        return f"{value:.4f} ± {interval:.4f}"
    return f"{100 * value:.2f} ± {100 * interval:.2f} %"


def _mean(group: Group, by_loss: bool) -> list[str] | None:
    """Of the tests of several seeds, with their deviation."""
    tested = [run for run in group.runs if run.result]
    results, seeds = [run.result for run in tested], len({run.cfg.seed for run in tested})
    if len(results) < 2:
        return None
    what = "loss" if by_loss else "accuracy"
    cells = []
    for model in ("best", "ensemble"):
        values = [result[model][what] for result in results]
        cells.append(f"<b>{_score(fmean(values), stdev(values), by_loss)}</b>")
    over = "runs" if seeds == len(tested) else f"runs of {_count(seeds, 'seed')}"
    name = f"<b>mean of {len(results)}</b><br><small>± deviation over {over}</small>"
    return [name, "", "", *cells]


def _protocols(groups: list[Group]) -> str:
    """How was tested, in words."""
    results = [run.result for group in groups for run in group.runs if run.result]
    told = dict.fromkeys(
        f"{r['tasks']} tasks of the {r['split']} classes of {r['data']}, "
        f"{_count(r['steps'], 'inner step')}, {normalised(r)}"
        for r in results
    )
    if not told:
        return "No run is tested yet. Intervals are of 95 % over tasks."
    return (
        f"Tested on {text('; '.join(told))}. ± is the 95 % interval over tasks; the best model is "
        "that of the epoch best on validation, the ensemble the mean of the logits of the best "
        "epochs. Transductive: the targets of a task normalise each other; inductive: its support "
        "images normalise them."
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def settings(groups: list[Group]) -> str:
    """Those that differ, side by side, and all others."""
    every = [group.settings for group in groups]
    different = differing(every)
    parts = []
    if different:
        rows = [[text(name), *(text(s.get(name, _NONE)) for s in every)] for name in different]
        differ = table(["setting", *(text(group.name) for group in groups)], rows)
        parts.append(f'<div class="wide">{differ}</div>')
    same = [name for name in every[0] if name not in different]
    pairs = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(every[0][name])}</dd></div>" for name in same
    )
    head = "What is the same in all" if different else "All that decides what is learned"
    parts.append(f"<details><summary>{head}</summary><dl>{pairs}</dl></details>")
    return "".join(parts)


def lowest(group: Group) -> str:
    """Classes with the lowest accuracy, where there are too many for a matrix."""
    found: dict[str, tuple[float, int]] = {}  # right ones and images, of all runs
    for details in tested(group):
        for entry in details["best"]["by_class"]:
            if images := entry["images"]:
                right, before = found.get(entry["class"], (0.0, 0))
                found[entry["class"]] = right + entry["accuracy"] * images, before + images
    classes = [(right / n, name, n) for name, (right, n) in found.items() if n >= _FEW]
    count = len(tested(group)[0]["classes"])
    text_before = f"<p>{count} classes are too many for a matrix"
    if not classes:
        return f"{text_before}, and none was shown {_FEW} times.</p>"
    rows = [
        [text(name), f"{100 * accuracy:.1f} %", f"{images}"]
        for accuracy, name, images in sorted(classes)[:_LOWEST]
    ]
    head = ["class", "accuracy", "images"]
    return f"{text_before}. Those with the lowest accuracy:</p>{table(head, rows)}"


def tasks(details: dict[str, Any], most: int) -> str:
    """What the best model was shown in the first tasks and what it answered, a row a class."""
    return "".join(_task(details, number) for number in range(len(details["tasks"][:most])))


def _task(details: dict[str, Any], number: int) -> str:
    task, accuracy = details["tasks"][number], details["best"]["by_task"][number]
    names = [details["classes"][c] for c in details["task_classes"][number]]
    kind = "support one" if len(task["support"][0]) == 1 else "support"
    rows = []
    for way, name in enumerate(names):
        support = "".join(map(_picture, task["support"][way]))
        targets = "".join(_target(target, way, names) for target in task["targets"][way])
        rows.append(
            f'<tr><th><b>{way + 1}</b> {text(name)}</th><td class="{kind}">{support}</td>'
            f"<td>{targets}</td></tr>"
        )
    return (
        f'<div class="task"><h3>Task {number + 1}: {100 * accuracy:.0f} % of its targets right'
        "</h3><table><thead><tr><th>class</th><th>support</th><th>targets</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _picture(uri: str) -> str:
    return f'<img src="{uri}" alt="">'


def _target(target: dict[str, Any], way: int, names: list[str]) -> str:
    taken = target["best"]
    kind, told = ("right", "✓") if taken == way else ("wrong", f"✗ {taken + 1}")
    return (
        f'<figure class="{kind}" title="taken for {text(names[taken])}">'
        f"{_picture(target['picture'])}<figcaption>{told}</figcaption></figure>"
    )
