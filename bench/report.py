"""The tables of a benchmark run, and the README's, which are made of committed JSON.

python -m bench.report bench/results/NAME.json    shows that run in README.md from now on
python -m bench.report                            writes all tables of README.md again
"""

import re
import sys
from pathlib import Path

from bench import results, training

README = results.ROOT / "README.md"
MARKED = re.compile(r"<!-- benchmark: *(\S*?) *-->\n.*?<!-- /benchmark -->", re.DOTALL)
TRAINED = re.compile(r"<!-- training -->\n.*?<!-- /training -->", re.DOTALL)


def tables(run: dict) -> str:
    """Markdown: one line about the machine, the meta-iterations, the episodes."""
    changed = " with uncommitted changes" if run["changed"] else ""
    parts = [
        f"{run['processor']}, {run['cores']} cores, {run['threads']} threads, "
        f"torch {run['torch']}, commit {run['commit'][:8] or 'unknown'}{changed}, "
        f"{run['date'][:10]}: `{run['command']}`\n"
    ]
    if run["meta"]:
        parts.append(_table(_META, [_meta(row) for row in run["meta"]]))
    if run["episodes"]:
        parts.append(_table(_EPISODES, [_episodes(row) for row in run["episodes"]]))
    return "\n".join(parts)


_META = [
    "outer iteration", "order", "steps", "s", "s, loop", "speed-up", "peak", "peak, loop", "ratio",
]  # fmt: skip
_EPISODES = ["the sampler", "tasks/s", "tasks/s, prefetched", "images/s"]


def _meta(row: dict) -> list[str]:
    ours, loop = row["memory"]["ours"], row["memory"]["loop"]
    return [
        f"{row['case']} {row['algorithm']}",
        row["order"],
        str(row["steps"]),
        f"{row['seconds']['ours']:.3f}",
        f"{row['seconds']['loop']:.3f}",
        f"{row['seconds']['loop'] / row['seconds']['ours']:.2f}×",
        f"{ours / 2**20:,.0f} MiB",
        f"{loop / 2**20:,.0f} MiB",
        f"{ours / loop:.2f}",
    ]


def _episodes(row: dict) -> list[str]:
    rates = [row["tasks"] / row["seconds"][how] for how in ("direct", "prefetched")]
    return [
        f"{row['case']}, {row['tasks']} tasks",
        *(f"{rate:,.0f}" for rate in rates),
        f"{row['images'] / row['seconds']['direct']:,.0f}",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Text left, numbers right, columns aligned so that it also reads well in a terminal."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    pad = ["<"] + [">"] * (len(head) - 1)
    rule = ["-" * w if p == "<" else "-" * (w - 1) + ":" for w, p in zip(widths, pad, strict=True)]
    lines = [head, rule, *rows]
    return "".join(
        "| " + " | ".join(f"{c:{p}{w}}" for c, p, w in zip(r, pad, widths, strict=True)) + " |\n"
        for r in lines
    )


def shown(readme: str) -> str:
    """Name of the JSON whose tables the README shows; empty when it shows none."""
    found = MARKED.search(readme)
    if found is None:
        raise ValueError("README.md has no <!-- benchmark: NAME.json --> ... <!-- /benchmark -->")
    return found[1]


def with_benchmark(readme: str, name: str, run: dict) -> str:
    """The README with the tables of the run of that name."""
    block = f"<!-- benchmark: {name} -->\n{tables(run)}<!-- /benchmark -->"
    return MARKED.sub(lambda _: block, readme)


def with_trainings(readme: str) -> str:
    """The README with the table of the trainings that are kept."""
    rows = training.table_rows()
    trained = _table(training.HEAD, rows) if rows else ""
    return TRAINED.sub(lambda _: f"<!-- training -->\n{trained}<!-- /training -->", readme)


def main(arguments: list[str]) -> int:
    readme = README.read_text(encoding="utf-8")
    name = Path(arguments[0]).name if arguments else shown(readme)
    if name or arguments:
        path = results.FOLDER / name
        if not path.is_file():
            print(f"error: no file {path}; give the name of a JSON in that folder", file=sys.stderr)
            return 2
        readme = with_benchmark(readme, name, results.load(path))
    README.write_text(with_trainings(readme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
