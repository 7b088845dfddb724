"""The commands of mamlpp: ``python -m engine``, or ``mamlpp``, lists and runs them."""

from __future__ import annotations

import sys
from importlib import import_module, metadata

from engine.errors import UserError, nearest, say
from engine.runs.interrupt import Interrupt, answered

# Of each the module, whose `main` takes the arguments, and what it does.
COMMANDS = {
    "train": ("engine.train", "train a model and test it, or continue a training"),
    "sweep": ("engine.sweep", "train every combination of settings that a file lists"),
    "table": ("engine.table", "train a table of the paper and print it beside the paper's figures"),
    "evaluate": ("engine.evaluate", "test a trained model again, on any data"),
    "report": ("engine.report.__main__", "make a page of one run or several"),
    "adapt": ("engine.adapt", "adapt a trained model to classes of your own pictures"),
    "predict": ("engine.predict", "label pictures by an adapted model"),
    "data": ("engine.data.__main__", "fetch data, say what lies at a path, list decoded data"),
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _run(argv, interrupt), stopped="stopped")


def _run(argv: list[str], interrupt: Interrupt) -> int:
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        say(*_help())
    elif name == "--version":
        say(f"mamlpp {_version()}")
    elif name in COMMANDS:
        return import_module(COMMANDS[name][0]).main(rest)
    else:
        raise UserError(
            f"there is no command {name}: {nearest(name, COMMANDS)}choose one of "
            f"{', '.join(COMMANDS)}; see python -m engine"
        )
    return 0


def _help() -> list[str]:
    return [
        "usage: mamlpp COMMAND [arguments], or python -m engine COMMAND [arguments]",
        "",
        *(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()),
        "",
        "mamlpp COMMAND --help says what a command takes, mamlpp --version which version this is.",
    ]


def _version() -> str:
    try:
        return metadata.version("mamlpp")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
