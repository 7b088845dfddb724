"""The tables of a benchmark run; `python -m bench.report` writes those of the committed JSON into
README.md, between its markers; with `--check` it only says whether they are there already."""

import sys

from bench import results

README = results.ROOT / "README.md"
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"


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


_META = ["case", "order", "steps", "seconds", "loop", "speed-up", "memory", "loop", "share"]
_EPISODES = ["batches of", "tasks/s", "tasks/s, prefetched", "images/s"]


def _meta(row: dict) -> list[str]:
    memory = ["", "", ""]
    if row["memory"]:
        ours, loop = row["memory"]["ours"], row["memory"]["loop"]
        memory = [f"{ours / 2**20:,.0f} MiB", f"{loop / 2**20:,.0f} MiB", f"{ours / loop:.2f}"]
    return [
        f"{row['case']} {row['algorithm']}",
        row["order"],
        str(row["steps"]),
        f"{row['seconds']['ours']:.3f}",
        f"{row['seconds']['loop']:.3f}",
        f"{row['seconds']['loop'] / row['seconds']['ours']:.2f}×",
        *memory,
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


def updated(readme: str, run: dict) -> str:
    """The README with the run's tables between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables(run)}{END}{after}"


def main(arguments: list[str]) -> int:
    run = results.load()
    if run is None:
        print(f"error: no short.json or full.json in {results.FOLDER}", file=sys.stderr)
        return 2
    old = README.read_text(encoding="utf-8")
    new = updated(old, run)
    if arguments == ["--check"]:
        if old != new:
            print("README.md differs from the JSON: run python -m bench.report", file=sys.stderr)
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
