"""What the command lines of the scripts have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.errors import UserError, say
from engine.runs.interrupt import MISTAKES, failed


def run(main: Callable[..., Any], text: str, *names: str, iterations: int | None = None) -> None:
    """Calls ``main`` with the arguments on the command line: those of these names, then the number
    of iterations, for which there is a default; without one whatever else is there."""
    given = sys.argv[1:]
    if {"-h", "--help"} & {*given}:
        say(*text.splitlines() if os.environ.get("RANK", "0") == "0" else ())
        return
    try:
        if missing := names[len(given) :]:
            raise UserError(f"{missing[0]} is missing: see --help")
        if iterations is not None:
            given = [*given[: len(names)], _number(given[len(names) :] or [str(iterations)])]
        main(*given)
    except MISTAKES as error:
        sys.exit(failed(error))


def _number(words: list[str]) -> int:
    if len(words) > 1:
        raise UserError(f"{words[1]!r} is one argument too many: see --help")
    try:
        if (number := int(words[0])) >= 1:
            return number
    except ValueError:
        pass
    raise UserError(f"iterations is {words[0]!r}: give a whole number >= 1")


def require_ways(cfg: Config, folder: str | Path) -> None:
    """Raises UserError when the network has fewer outputs than there are classes in a folder."""
    from engine.data.pictures import labelled

    classes = len({*labelled(Path(folder)).labels})
    if classes > cfg.ways and not cfg.any_ways:
        raise UserError(
            f"{folder} has {classes} classes, and --ways is {cfg.ways}: give --ways {classes}"
        )
