"""The READMEs' tables and picture, which are made of committed JSON.

python -m bench.report bench/results/NAME.json    shows that run in bench/README.md, and its first
                                                  table in README.md, from now on
python -m bench.report                            writes all of it again
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import curves, methods, published, results, roofline, scaling, tables, training, weights
from bench.gpu import report as gpu

README = results.ROOT / "bench" / "README.md"
FRONT = results.ROOT / "README.md"
PICTURE = "roofline.svg"  # in the folder of the results
MARKED = re.compile(r"<!-- benchmark: *(\S*?) *-->\n.*?<!-- /benchmark -->", re.DOTALL)


def _of_each(folder: str, text: Callable[[dict], str]) -> str:
    """The tables of each run of a folder of the results."""
    paths = sorted((results.FOLDER / folder).glob("*.json"))
    return "\n".join(text(results.load(path)) for path in paths)


KEPT = {  # what fills the part of the README marked so
    "processors": partial(_of_each, "processors", tables.iterations),
    "modules": partial(_of_each, "modules", tables.text),
    "methods": partial(_of_each, "methods", methods.text),
    "scaling": partial(_of_each, "scaling", scaling.text),
    "training": training.text,
    "published": partial(_of_each, "tables", published.text),
    "curves": curves.text,
    "gpu": gpu.text,
}


def shown(readme: str) -> str:
    """Name of the JSON whose tables the README shows; empty when it shows none."""
    found = MARKED.search(readme)
    if found is None:
        raise ValueError(
            "bench/README.md has no <!-- benchmark: NAME.json --> ... <!-- /benchmark -->"
        )
    return found[1]


def with_benchmark(readme: str, name: str, run: dict) -> str:
    """The README with the tables of the run of that name."""
    block = f"<!-- benchmark: {name} -->\n{_block(run)}<!-- /benchmark -->"
    return MARKED.sub(lambda _: block, readme)


def _block(run: dict) -> str:
    parts = [tables.machine(run)]
    for title, short, full in tables.sections(run):
        if short:
            parts.append(short)
        if full:
            title += ", all rows" if short else ""
            parts.append(f"<details><summary>{title}</summary>\n\n{full}\n</details>\n")
    if roofline.picture(run):
        parts.append(f"![Roofline of the ops and passes](results/{PICTURE})\n")
    return "\n".join(parts)


def headline(run: dict) -> str:
    """The machine and the first table, for the front page."""
    _, short, _ = tables.sections(run)[0]
    return f"{tables.machine(run)}\n{short}"


def with_kept(readme: str) -> str:
    """The README with the tables of the trainings and comparisons that are kept."""
    for mark, text in KEPT.items():
        readme = _filled(readme, mark, text())
    return readme


def _filled(readme: str, mark: str, text: str) -> str:
    marked = re.compile(rf"<!-- {mark} -->\n.*?<!-- /{mark} -->", re.DOTALL)
    return marked.sub(lambda _: f"<!-- {mark} -->\n{text}<!-- /{mark} -->", readme)


def main(arguments: list[str]) -> int:
    readme = README.read_text(encoding="utf-8")
    name = Path(arguments[0]).name if arguments else shown(readme)
    if name or arguments:
        path = results.FOLDER / name
        if not path.is_file():
            print(f"error: no file {path}; give the name of a JSON in that folder", file=sys.stderr)
            return 2
        run = results.load(path)
        readme = with_benchmark(readme, name, run)
        (results.FOLDER / PICTURE).write_text(roofline.picture(run), encoding="utf-8")
        front = FRONT.read_text(encoding="utf-8")
        front = _filled(front, "headline", headline(run))
        authors = "\n".join([tables.authors(run), _of_each("processors", tables.authors)])
        FRONT.write_text(_filled(front, "authors", authors), encoding="utf-8")
    README.write_text(with_kept(readme), encoding="utf-8")
    for path, text in gpu.pages().items():
        path.write_text(text, encoding="utf-8")
    shipped = weights.README.read_text(encoding="utf-8")
    weights.README.write_text(_filled(shipped, "weights", weights.text()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
