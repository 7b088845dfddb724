"""Flags made from the fields of Config, help in groups with each default, mistakes in one line.

Imports nothing heavy, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

from engine.allowed import PATH, RATIO, WIDTHS, check, check_path
from engine.config import DATASET, GROUPS, PRESET, Config
from engine.errors import UserError, flag, nearest, say
from engine.presets import of_method, preset_fields

FIELDS: dict[str, Field] = {f.name: f for f in fields(Config)}
_HELP = ("-h", "--help", "--help-all")
_NUMBERS = {int: "a whole number", float: "a number"}
_METAVARS = {PATH: "PATH", RATIO: "A/B/C", WIDTHS: "A,B,C,D"}
# What the values that a preset gives to other fields depend on.
_DECIDING = ("preset", "method", "dataset", "network", "ways", "shots", "epochs", "lr")


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line, by UserError."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)
        self.fields: set[str] = set()  # of Config, that have a flag

    def group(self, title: str) -> Any:
        """The part of the help under a title, made when first asked for."""
        found = [group for group in self._action_groups if group.title == title]
        return found[0] if found else self.add_argument_group(title)

    def parse_known_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        for name, value in vars(namespace).items():
            if name in self.fields:
                check(name, value, FIELDS[name].metadata["allowed"])
        return namespace, unknown

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        return self._known(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        return self._known(*self.parse_known_intermixed_args(args, namespace))

    def _known(self, namespace: Any, unknown: list[str]) -> Any:
        if unknown:
            raise UserError(f"{self._unknown(unknown)}see {self.prog} --help")
        return namespace

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        say(*self.format_help().splitlines())

    def flags(self) -> list[str]:
        """Those of its subcommands, too."""
        below = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        parsers = [parser for action in below for parser in action.choices.values()]
        return [f for f in self._option_string_actions if f.startswith("--")] + [
            flag for parser in parsers for flag in parser.flags()
        ]

    def _unknown(self, words: list[str]) -> str:
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        if not flags:
            return f"{words[0]!r} is one argument too many; "
        near = nearest(flags[0].lstrip("-"), (flag[2:] for flag in self.flags()), prefix="--")
        return f"there is no flag {flags[0]}: {near}"

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError:
            if action.type in _NUMBERS:
                self.error(f"{_named(action)} is {text!r}: give {_NUMBERS[action.type]}")
            raise

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As ``allowed.check`` says it, of choices that are no field's."""
        if action.choices is not None and value not in action.choices:
            choices = [*map(str, action.choices)]
            near = nearest(str(value), choices)
            self.error(f"{_named(action)} is {value!r}: {near}choose one of {', '.join(choices)}")


def _named(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else action.dest


def add_flags(
    parser: Parser,
    names: Iterable[str],
    defaults: dict[str, str] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """One flag per named field of Config, in its group. A flag not given leaves no trace in the
    namespace, and one that is has a value that its field may have.

    ``defaults``: what the help says of some; ``hidden``: those that it leaves out.
    """
    chosen = [FIELDS[name] for name in names]
    parser.fields |= {f.name for f in chosen}
    for f in sorted(chosen, key=lambda f: GROUPS.index(f.metadata["group"])):
        help = f"{f.metadata['help']} {(defaults or {}).get(f.name, '')}".rstrip()
        options: dict[str, Any] = {"help": argparse.SUPPRESS if f.name in hidden else help}
        allowed = f.metadata["allowed"]
        if f.type == "bool":
            options |= {"action": "store_true"}
        elif isinstance(allowed, tuple):
            options |= {"type": type(allowed[0]), "metavar": "|".join(map(str, allowed))}
        elif f.type in ("int", "float"):
            kind = {"int": int, "float": float}[f.type]
            options |= {"type": kind, "metavar": f.type.upper()}
        else:
            options |= {"metavar": _METAVARS[allowed]}
        parser.group(f.metadata["group"]).add_argument(flag(f.name), **options)


def a_path(text: str) -> Path:
    """An argument's, ``~`` expanded."""
    try:
        check_path("it", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("it ")) from error
    return Path(text).expanduser()


def parse(parser: Parser, argv: list[str]) -> dict[str, Any]:
    """The flags that were given, by field name."""
    return vars(parser.parse_args(argv))


def asks_for_help(argv: list[str]) -> bool:
    return any(word in _HELP for word in argv)


def defaults(prog: str, argv: list[str]) -> tuple[dict[str, str], str]:
    """What each field is when it is not given, for the help; and of what preset and data that is:
    those on the line, with what else there decides its values.

    Raises UserError when one of these has no such value.
    """
    parser = Parser(prog=prog, add_help=False)
    add_flags(parser, _DECIDING)
    given = vars(parser.parse_known_args([word for word in argv if word not in _HELP])[0])
    preset, dataset = given.get("preset", PRESET), given.get("dataset", DATASET)
    shown = {"preset": f"(default: {PRESET})", "dataset": f"(default: {DATASET})"}
    for f in FIELDS.values():
        if f.default is not MISSING and f.default is not None and f.type != "bool":
            shown[f.name] = f"(default: {f.default})"
    values = preset_fields(preset, dataset, given)
    by_method = of_method(given | values)
    for name, value in values.items():
        shown[name] = f"(by {'method' if name in by_method else 'preset'}: {value})"
    of = f" --method {given['method']}" if "method" in given else ""
    return shown, f"--preset {preset}{of} --dataset {dataset}"
