"""Makes a page of one run or several: ``python -m engine.report RUN... [-o F.html] [--pdf F]``.

The page is one file that needs no other and no network: summary, curves over seeds, inner rates
by epoch, accuracy by inner step, test tasks, confusion, seconds and memory. Runs that differ in
nothing but the seed are drawn together.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from engine.commandline import Parser, a_path, parse
from engine.errors import UserError, explained, say
from engine.files import REPORT, is_report, output
from engine.report import browser, make
from engine.report.page import INSTALL
from engine.runs.interrupt import Interrupt, answered


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _report(argv, interrupt), stopped="nothing was written")


def _report(argv: list[str], interrupt: Interrupt) -> None:
    parser = Parser(
        prog="python -m engine.report",
        usage="%(prog)s RUN... [flags]",
        description="Make a page of one run or several: curves, inner rates, tasks, confusion.",
        epilog="The page is one file that needs no other and no network. To make it needs plotly: "
        f"{INSTALL}.",
    )
    parser.add_argument("runs", type=a_path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "-o",
        "--output",
        type=partial(output, "-o", ending=".html"),
        metavar="FILE.html",
        help=f"the page (default: {REPORT} in the run folder, of several runs here)",
    )
    parser.add_argument(
        "--pdf",
        type=partial(output, "--pdf", ending=".pdf"),
        metavar="FILE.pdf",
        help="print the page too, by a Chromium or Chrome that is installed",
    )
    given = parse(parser, argv)
    interrupt.phase = "unwind"
    if "pdf" in given:
        browser.required()
    page = given.get("output") or _default(given["runs"])
    make(given["runs"], page)
    say(f"saved in {page}")
    if "pdf" in given:
        browser.print_pdf(page, given["pdf"])
        say(f"saved in {given['pdf']}")


def _default(runs: list[Path]) -> Path:
    """Raises UserError where another file lies, which nobody asked to be written over."""
    path = (runs[0] if len(runs) == 1 else Path()) / REPORT
    with explained(f"cannot read {path}", "name another run, or a file by -o"):
        there = path.exists()
    if there and not is_report(path):
        raise UserError(f"{path} is there and not a report of this program: name another by -o")
    return path


if __name__ == "__main__":
    sys.exit(main())
