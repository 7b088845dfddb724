"""Keeps a finished training run in bench/results/training: configuration, curve, test, seconds.

    python -m bench.training [--commit REV] [--stopped] runs/FOLDER NAME [runs/OTHER]

--commit says which one trained it, if it is not that of this checkout. --stopped keeps one that has
not come to its end, which the table says: its best epochs so far are tested. With it goes how the
same training began in another run, on another backend, which may have been stopped. Beside the
test, in both protocols, stands nearest centroid on the same tasks, so the run's data must be where
it was.
`python -m bench.report` makes the README's table of all that are kept.
"""

import argparse
import json
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import median

from bench import centroid, results, tables
from engine import meta
from engine.config import Config
from engine.errors import UserError
from engine.methods import METHODS
from engine.presets import METHOD
from engine.runs import checkpoint
from engine.runs.problem import Pictures, load_dataset
from engine.runs.saved import load_trained, own_data, restore
from engine.runtime.machine import machine as on_machine
from engine.runtime.machine import settled
from engine.tables.results import protocol

FOLDER = results.FOLDER / "training"
# Of the machine that trained, not of what was trained.
LOCAL = {"data", "cache", "run", "device", "threads", "prefetch", "log_every", "fresh"}


def record(
    run: Path, other: Path | None = None, commit: str | None = None, stopped: bool = False
) -> dict:
    """What to keep of a run folder. Raises UserError when its data is not there any more, or the
    other run is not of the same training.
    """
    config, rows = results.load(run / "config.json"), _log(run)
    result, turned = _stopped(run) if stopped else (results.load(run / "result.json"), _other(run))
    return {
        "beginning": _beginning(run, other) if other else None,
        "machine": machine(config) | {"commit": results.commit(commit or "HEAD")},
        "config": settings(config),
        "curve": [row for row in rows if row["kind"] == "validation"],
        "result": result | {"other": turned},
        "seconds": sum(
            row["iterations"] * row["seconds_per_iteration"] for row in rows if _is_interval(row)
        ),
        "centroid": _centroid(config, result["identity"]),
    }


def _beginning(*runs: Path) -> list[dict]:
    """Backend, and rows of the log as long as all have them, of each of the runs."""
    configs = [results.load(run / "config.json") for run in runs]
    odd = {
        name
        for name in configs[0].keys() | configs[1].keys()
        if configs[0].get(name) != configs[1].get(name)
    }
    if odd := odd - LOCAL - {"backend"}:
        raise UserError(f"{runs[1]} is of another training: {', '.join(sorted(odd))} differ")
    logs = [[row for row in _log(run) if _is_interval(row)] for run in runs]
    return [
        {"backend": config["backend"], "rows": log[: min(map(len, logs))]}
        for config, log in zip(configs, logs, strict=True)
    ]


def _is_interval(row: dict) -> bool:
    """An early row is of a part of the next one's."""
    return row["kind"] == "train" and not row.get("early")


def _other(run: Path) -> dict | None:
    """The best model in the other protocol, where that is known and makes a difference."""
    path = run / "details.json"
    return results.load(path).get("other") if path.is_file() else None


def _log(run: Path) -> list[dict]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read(run: Path) -> tuple[dict, list[dict], dict]:
    """Configuration, rows of the log and test of a finished run."""
    config, result = (results.load(run / name) for name in ("config.json", "result.json"))
    return config, _log(run), result


def _stopped(run: Path) -> tuple[dict, dict | None]:
    """Of a run that has not come to its end: the test, with the epochs that it has, and the best
    model in the other protocol.
    """
    epochs = checkpoint.load(run / checkpoint.LATEST).epoch
    saved = load_trained(run)
    trained = Config.from_dict(saved[0].config)
    cfg = replace(trained, **own_data(run, trained), no_report=True)
    with on_machine(cfg) as device:
        cfg = settled(cfg, device, saved[0].precisions or {})
        members = restore(meta.layout(cfg), saved, device)
        result, details = Pictures(load_dataset(cfg, "test")).test(cfg, members, lambda: None)
    return result | {"stopped": epochs}, details and details["other"]


def machine(config: dict) -> dict:
    """This one, as far as it matters to a training."""
    return results.machine() | {"threads": config["threads"]}


def settings(config: dict) -> dict:
    """Those of what was trained, without paths."""
    return {name: value for name, value in config.items() if name not in LOCAL}


def task(data: str, config: dict, stopped: int | None = None) -> list[str]:
    """The first cells of a row: what was trained, and for how long, or for how many of its epochs
    it was until it was stopped.
    """
    length = f"{config['epochs'] * config['iterations']:,}"
    if stopped is not None:
        length = f"{stopped * config['iterations']:,} of {length}"
    return [
        f"{data}, {config['ways']}-way {config['shots']}-shot",
        f"{length} × {config['tasks']}",
    ]


def configuration(settings: dict) -> Config:
    # not Config.from_dict: a setting that has come or gone since does not change the tasks
    known = {f.name for f in fields(Config)}
    return Config.of(**{name: value for name, value in settings.items() if name in known})


def _centroid(config: dict, identity: str) -> dict[str, float]:
    cfg = configuration(config)
    dataset = load_dataset(cfg, "test")
    if dataset.identity != identity:
        raise UserError(f"{dataset.name} is not what the run was trained on; put that in its place")
    return centroid.test(cfg, dataset)._asdict()


def text() -> str:
    """The table and what is said below it, for the README."""
    rows, lines = table_rows(), notes()
    return (tables.table(HEAD, rows) if rows else "") + "".join(["\n", *lines] if lines else [])


def table_rows() -> list[list[str]]:
    """One row a kept run, for the README."""
    return [_row(results.load(path)) for path in sorted(FOLDER.glob("*.json"))]


HEAD = [
    "data, task",
    "iterations × tasks",
    "method",
    "validation, up to 10 epochs",
    "nearest centroid",
    "best model",
    "ensemble",
    "best, other protocol",
    "protocol",
]


def notes() -> list[str]:
    """How well the beginnings of the runs agree that another backend began too, a line each."""
    runs = [results.load(path) for path in sorted(FOLDER.glob("*.json"))]
    return [_note(run) for run in runs if run.get("beginning")]


def _note(run: dict) -> str:
    ours, theirs = run["beginning"]
    pairs = list(zip(ours["rows"], theirs["rows"], strict=True))
    loss = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)
    accuracy = max(abs(a["accuracy"] - b["accuracy"]) for a, b in pairs)
    seconds = (
        median(row["seconds_per_iteration"] for row in log["rows"]) for log in (ours, theirs)
    )
    name = task(run["result"]["data"], run["config"])[0]
    return (
        f"- {name}: the first {pairs[-1][0]['iteration']} iterations by `{ours['backend']}` and by "
        f"`{theirs['backend']}` differ by at most {100 * loss:.1f} % in loss and "
        f"{100 * accuracy:.1f} points in accuracy, in means over each {pairs[0][0]['iteration']}; "
        "{:.3f} and {:.3f} s an iteration.\n".format(*seconds)
    )


def thinned(curve: list, most: int = 10) -> list:
    """At most so many of its points, evenly spaced up to the last one."""
    step = -(-len(curve) // most)
    return curve[::-1][::step][::-1] if curve else []


def _method(config: dict) -> str:
    """With those of its own settings that are not the usual ones."""
    method = METHODS[config.get("method", METHOD)]
    usual = Config.of(config["preset"], config.get("dataset", "mini"), method=method.name)
    own = {name: config[name] for name in (*method.only, "filters") if name in config}
    odd = [f"{name} {value}" for name, value in own.items() if value != getattr(usual, name)]
    preset = [f"preset {config['preset']}"] * (config["preset"] != Config.of().preset)
    return ", ".join([method.name, *preset, *odd])


def _row(run: dict) -> list[str]:
    config, result, curve = run["config"], run["result"], run["curve"]
    scores = run["centroid"], result["best"], result["ensemble"], result.get("other")
    return [
        *task(result["data"], config, result.get("stopped")),
        _method(config),
        " ".join(f"{100 * row['accuracy']:.1f}" for row in thinned(curve)),
        *(f"{100 * s['accuracy']:.2f} ± {100 * s['interval']:.2f} %" if s else "–" for s in scores),
        protocol(configuration(config), result),
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.training")
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--commit", metavar="REV")
    parser.add_argument("--stopped", action="store_true")
    given = parser.parse_args(arguments)
    run, path = given.run, FOLDER / f"{given.name}.json"
    needed = ["config.json", "log.jsonl", "latest.pt" if given.stopped else "result.json"]
    if missing := [name for name in needed if not (run / name).is_file()]:
        cure = "give a run" if given.stopped else "give a finished run, or --stopped"
        print(f"error: {run} has no {', '.join(missing)}; {cure}", file=sys.stderr)
        return 2
    if given.stopped and (run / "result.json").is_file():
        print(f"error: {run} has come to its end; leave --stopped out", file=sys.stderr)
        return 2
    made = partial(record, run, given.other, given.commit, given.stopped)
    return results.kept(lambda: results.save(made(), path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
