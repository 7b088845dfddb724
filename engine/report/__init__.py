"""One page of a run or several: what was trained, how it went and what it answers.

`recorded` says what a run folder tells, `groups` which runs are seeds of one configuration;
`figures`, `epochs` and `confusion` draw for plotly.js, `sections` writes the rest, `page` puts all
into one HTML file that needs no other, `browser` prints it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.errors import UserError, printable
from engine.files import REPORT, is_report, write
from engine.report.page import document, missing
from engine.report.recorded import read


def make(folders: Sequence[Path], output: Path) -> None:
    """Raises UserError when there is nothing to report, or it cannot be written."""
    write(output, document(read(folders)))


def beside(folder: Path) -> str:
    """At the end of a training: makes the page in the run folder, and says so, or in a line why
    there is none. Raises nothing: the training is done and saved.
    """
    path = folder / REPORT
    try:
        if why := missing():
            return f"no {REPORT}: {why}; then python -m engine.report {folder}"
        if path.exists() and not is_report(path):
            return f"no report: {path} is not one of this program, and stays as it is"
        make([folder], path)
    except Exception as error:  # of a fault here nobody shall lose a training
        told = str(error) if isinstance(error, UserError) else repr(error)
        return printable(f"no {REPORT}: {told}")
    return f"a page of it in {path}"
