"""Ships the best epoch of a finished training with the package, as engine/weights/NAME.pt.

    python -m bench.weights runs/FOLDER NAME

It is the checkpoint without Adam's moments. ``python -m bench.training runs/FOLDER NAME`` is to
keep the training under the same name: of that ``python -m bench.report`` makes the table of
engine/weights/README.md.
"""

import dataclasses
import sys
from pathlib import Path

import torch

from bench import results, tables, training
from engine import weights
from engine.runs import checkpoint
from engine.runs.saved import load_trained
from engine.tables.results import protocol

README = weights.FOLDER / "README.md"
HEAD = ["name", "data, task", "iterations × tasks", "best model", "KiB", "protocol"]


def ship(run: Path, name: str) -> Path:
    """Writes it. Raises UserError when the run has no validated epoch."""
    best = load_trained(run)[0]
    state = dict(best.state)
    for moments in ("first", "second"):
        # one zero in the file, whatever the shape
        state[moments] = {n: torch.zeros(()).expand(t.shape) for n, t in state[moments].items()}
    path = weights.FOLDER / f"{name}.pt"
    checkpoint.save(path, dataclasses.replace(best, state=state))
    return path


def text() -> str:
    """The table of what is shipped."""
    return tables.table(HEAD, [_row(name) for name in weights.names()])


def _row(name: str) -> list[str]:
    run = results.load(training.FOLDER / f"{name}.json")
    result, best = run["result"], run["result"]["best"]
    return [
        f"`{name}`",
        *training.task(result["data"], run["config"], result.get("stopped")),
        f"{100 * best['accuracy']:.2f} ± {100 * best['interval']:.2f} %",
        f"{(weights.FOLDER / f'{name}.pt').stat().st_size / 1024:.0f}",
        protocol(training.configuration(run["config"]), result),
    ]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m bench.weights RUN_FOLDER NAME", file=sys.stderr)
        return 2
    return results.kept(lambda: ship(Path(arguments[0]), arguments[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
