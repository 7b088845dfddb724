"""python -m engine.data fetch omniglot|mini, info PATH, or cache [--clear]."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engine.commandline import Parser, a_path
from engine.data import default_path, shelf
from engine.data.bank import default_cache
from engine.data.fetch import FILES, LICENCES, fetch
from engine.data.info import describe
from engine.errors import explained, say
from engine.runs.interrupt import Interrupt, answered


def main(argv: list[str] | None = None) -> int:
    return answered(
        lambda interrupt: _run(argv, interrupt), stopped="stopped; the same command continues"
    )


def _parser() -> Parser:
    parser = Parser(prog="python -m engine.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download, or continue a download")
    fetching.add_argument("dataset", choices=sorted(FILES))
    fetching.add_argument(
        "--to", type=a_path, default=None, help="folder (default: datasets/<dataset>)"
    )
    info = commands.add_parser("info", help="say what lies at a path and how to train on it")
    info.add_argument("path", type=a_path)
    cache = commands.add_parser("cache", help="list the decoded data that is kept, or remove it")
    cache.add_argument("--clear", action="store_true", default=False, help="remove all of it")
    cache.add_argument(
        "--cache",
        type=a_path,
        default=None,
        help="folder (default: $MAMLPP_CACHE or ~/.cache/mamlpp)",
    )
    return parser


def _run(argv: list[str] | None, interrupt: Interrupt) -> None:
    interrupt.phase = "unwind"
    args = _parser().parse_args(argv)
    if args.command == "info":
        say(*describe(args.path))
    elif args.command == "cache":
        say(*_cache(args.cache or default_cache(), args.clear))
    else:
        folder = args.to or default_path(args.dataset)
        fetch(FILES[args.dataset], folder)
        say(f"{folder} is complete. {LICENCES[args.dataset]}")


def _cache(folder: Path, clear: bool) -> list[str]:
    with explained(f"cannot read the cache {folder}", "name another folder with --cache"):
        found = [(file, file.stat()) for file in shelf.banks(folder)]
    total = sum(stat.st_size for _, stat in found)
    if clear:
        gone = shelf.clear(folder)
        return [f"{folder}: removed {len(gone)} files, {_size(total)}"]
    lines = [f"  {file.name}  {_size(st.st_size)}, last used {_day(st)}" for file, st in found]
    return [f"{folder}: {len(found)} data sets, {_size(total)}", *lines]


def _day(stat: os.stat_result) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(stat.st_mtime))


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
