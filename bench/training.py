"""Keeps a finished training run in bench/results/training: configuration, curve and test.

    python -m bench.training runs/FOLDER NAME

`python -m bench.report` makes the README's table of all that are kept.
"""

import json
import sys
from pathlib import Path

from bench import results

FOLDER = results.FOLDER / "training"
# Of the machine that trained, not of what was trained.
_LOCAL = {"data", "cache", "run", "device", "threads", "prefetch", "log_every", "fresh"}


def record(run: Path) -> dict:
    """What to keep of a run folder."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows, machine = [json.loads(line) for line in lines], results.describe(full=False)
    return {
        "machine": {name: machine[name] for name in ("processor", "cores", "system", "torch")}
        | {"threads": config["threads"]},
        "config": {name: value for name, value in config.items() if name not in _LOCAL},
        "curve": [row for row in rows if row["kind"] == "validation"],
        "result": json.loads((run / "result.json").read_text(encoding="utf-8")),
    }


def table_rows() -> list[list[str]]:
    """One row a kept run, for the README."""
    return [_row(results.load(path)) for path in sorted(FOLDER.glob("*.json"))]


HEAD = ["data, task", "iterations × tasks", "validation by epoch", "best model", "ensemble"]


def _row(run: dict) -> list[str]:
    config, result, curve = run["config"], run["result"], run["curve"]
    return [
        f"{result['data']}, {config['ways']}-way {config['shots']}-shot",
        f"{config['epochs'] * config['iterations']:,} × {config['tasks']}",
        " ".join(f"{100 * row['accuracy']:.1f}" for row in curve),
        *(
            f"{100 * result[name]['accuracy']:.2f} ± {100 * result[name]['interval']:.2f} %"
            for name in ("best", "ensemble")
        ),
    ]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m bench.training RUN_FOLDER NAME", file=sys.stderr)
        return 2
    run, path = Path(arguments[0]), FOLDER / f"{arguments[1]}.json"
    missing = [n for n in ("config.json", "log.jsonl", "result.json") if not (run / n).is_file()]
    if missing:
        print(f"error: {run} has no {', '.join(missing)}; give a finished run", file=sys.stderr)
        return 2
    results.save(record(run), path)
    print(f"saved in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
