"""The Markdown of a run, and the README's part, both from the JSON alone."""

from pathlib import Path

from bench import results
from bench.gpu import sections
from bench.gpu.progress import Progress, write

FOLDER = results.FOLDER / "gpu"
NOT_YET = """\
Not measured yet: no GPU was at hand. `python -m bench.gpu` on a machine with one checks, tunes,
times and trains in under ten minutes a call, and `python -m bench.report` then makes this section.
"""


def write_page(progress: Progress) -> Path:
    """Beside the JSON."""
    path = progress.path.with_suffix(".md")
    write(path, page(progress.data))
    return path


def pages() -> dict[Path, str]:
    """Of all kept runs, each beside its JSON."""
    return {p.with_suffix(".md"): page(results.load(p)) for p in sorted(FOLDER.glob("*.json"))}


def page(run: dict) -> str:
    """All of a run."""
    parts = [f"# {run['name']}\n", sections.machine(run)]
    for title, make in sections.ALL.items():
        if text := make(run):
            parts.append(f"## {title}\n\n{text}")
    return "\n".join(parts)


def summary(run: dict) -> list[str]:
    """For the console: what the checks found, and how much failed."""
    lines = sections.verdict(run).splitlines()
    failed = sum("failed" in item for part in run["parts"].values() for item in part.values())
    return lines + ([f"{failed} failed; the same command tries again"] if failed else [])


def text() -> str:
    """For the README: of each kept run of a GPU what counts most, or that there is none."""
    runs = [(path, results.load(path)) for path in sorted(FOLDER.glob("*.json"))]
    shown = [_shown(path, run) for path, run in runs if run["device"] == "cuda"]
    return "\n".join(shown) if shown else NOT_YET


def _shown(path: Path, run: dict) -> str:
    page = path.with_suffix(".md").relative_to(FOLDER.parents[1]).as_posix()  # of the README
    shown = sections.verdict, sections.iterations, sections.networks, sections.training
    tables = [make(run) for make in shown]
    rest = f"Errors, launches, rates, memory and what was left out: [{page}]({page}).\n"
    return "\n".join([sections.machine(run), *filter(None, tables), rest])
