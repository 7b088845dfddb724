"""python -m engine.data fetch omniglot|mini, python -m engine.data info PATH."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from pathlib import Path

from engine.config import Parser
from engine.data import default_path
from engine.data.fetch import FILES, LICENCES, fetch
from engine.data.info import describe
from engine.errors import say
from engine.interrupt import Interrupt, answered


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
        "--to", type=_path, default=None, help="folder (default: datasets/<dataset>)"
    )
    info = commands.add_parser("info", help="say what lies at a path and how to train on it")
    info.add_argument("path", type=_path)
    return parser


def _path(text: str) -> Path:
    if not text:  # pathlib would take the working directory
        raise ArgumentTypeError("is empty: name a path")
    return Path(text)


def _run(argv: list[str] | None, interrupt: Interrupt) -> None:
    interrupt.phase = "unwind"
    args = _parser().parse_args(argv)
    if args.command == "info":
        say(*describe(args.path).splitlines())
    else:
        folder = args.to or default_path(args.dataset)
        fetch(FILES[args.dataset], folder)
        say(f"{folder} is complete. {LICENCES[args.dataset]}")


if __name__ == "__main__":
    sys.exit(main())
