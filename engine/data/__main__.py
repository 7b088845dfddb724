"""python -m engine.data fetch omniglot|mini, python -m engine.data info PATH."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from engine.config import Parser
from engine.data import default_path
from engine.data.fetch import FILES, LICENCES, fetch
from engine.data.info import describe
from engine.errors import UserError


def main(argv: list[str] | None = None) -> int:
    try:
        return _run(_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130


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


def _run(args: Namespace) -> int:
    if args.command == "info":
        print(describe(args.path))
    else:
        folder = args.to or default_path(args.dataset)
        fetch(FILES[args.dataset], folder)
        print(f"{folder} is complete. {LICENCES[args.dataset]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
