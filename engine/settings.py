"""Where the values of a training's configuration come from: a flag, a file, the preset, a default.

    python -m engine.train --config FILE [--ways 20 ...]

FILE is TOML or JSON, its keys the names of Config's fields; config.json of a run is such a file.
A flag wins over the file, the file over the preset; `under` says what in the file follows a flag.
"""

from __future__ import annotations

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NamedTuple

from engine.allowed import PATH, check, check_type
from engine.commandline import FIELDS, Parser, add_flags, asks_for_help, defaults, parse
from engine.config import DATASET, PRESET, Config, completed
from engine.errors import UserError, explained, flag, nearest
from engine.methods import METHODS
from engine.presets import PRESETS, preset_fields, scale_epochs

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

_PROG = "python -m engine.train"
# What most people need of the flags; --help-all shows the others, too.
_COMMON = (
    "dataset data ways shots steps epochs iterations seed device preset method run init fresh"
).split()
_CODES = (
    "Exit code: 0 done, 2 a mistake to correct, 3 NaN or Inf met, 129, 130 and 143 stopped by a "
    "closed terminal, Ctrl-C and SIGTERM (saved: the same command continues)."
)


class Resolved(NamedTuple):
    cfg: Config
    # Of each field: flag, file, followed (in the file, and changed by a flag), method, preset or
    # default.
    sources: dict[str, str]
    file: Path | None  # of --config
    show: bool  # whether to say what would be done, instead of doing it


def resolve(argv: list[str]) -> Resolved:
    """What a command line of ``engine.train`` says.

    Raises UserError on an unknown flag or key, or a value that is not allowed.
    """
    given = parse(_parser(argv), argv)
    show, file = given.pop("show", False), given.pop("config", None)
    written, followed = {}, {}
    if file is not None:
        found, where = read(file), f"--config {file}"
        _refuse_half(given, found, where)
        written = under(given, found, where)
        followed = {name: value for name, value in written.items() if value != found[name]}
    cfg = Config.of(**(written | given))
    preset = preset_fields(cfg.preset, cfg.dataset, written | given)
    method = METHODS[cfg.method].settings(vars(cfg))
    places = {
        "flag": given,
        "followed": followed,
        "file": written,
        "method": method,
        "preset": preset,
    }
    sources = {name: _source(name, places) for name in FIELDS}
    return Resolved(cfg, sources, file, show)


def _source(name: str, places: dict[str, dict[str, Any]]) -> str:
    return next((place for place, values in places.items() if name in values), "default")


def _parser(argv: list[str]) -> Parser:
    everything = "--help-all" in argv
    shown, protocol = defaults(_PROG, argv) if asks_for_help(argv) else ({}, "")
    parser = Parser(
        prog=_PROG,
        usage="%(prog)s [flags]",
        description="Train MAML++, or another --method, and test it. The same command continues a "
        "stopped run.",
        epilog=f"Values by preset are those of {protocol}; name others on the same line for "
        f"theirs. Rows of the log go to <run>/log.jsonl, and to TensorBoard if installed. {_CODES}",
    )
    text = "show every flag, not only those that most people need, and exit"
    parser.add_argument("--help-all", action="help", help=text)
    hidden = () if everything else FIELDS.keys() - {*_COMMON}
    add_flags(parser, FIELDS, shown, hidden)
    run = parser.group("run")
    run.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help="TOML or JSON with settings by name, as a run's config.json; flags win over it",
    )
    run.add_argument(
        "--show",
        action="store_true",
        help="say each setting and where it comes from, parameters, memory, seconds an iteration "
        "and hours here, and stop",
    )
    return parser


def _path(text: str) -> Path:
    check("config", text, PATH)
    return Path(text).expanduser()


def under(given: dict[str, Any], written: dict[str, Any], where: str) -> dict[str, Any]:
    """Settings that ``where`` has, under others that win: of another length the schedule keeps its
    shape, and without annealing there is none at another rate.

    Raises UserError when nothing is left for another preset to say.
    """
    preset = written.get("preset")
    if _whole(written) and given.get("preset", preset) != preset:
        raise UserError(
            f"--preset is {given['preset']} with {where}, which has every setting, as {preset} has "
            "them: leave --preset out, and give what is to differ"
        )
    found = dict(written)
    chosen = given.get("preset", preset or PRESET)
    if "epochs" in given and chosen in PRESETS:  # another is refused later
        dataset = {**written, **given}.get("dataset", DATASET)
        usual = preset_fields(chosen, dataset, written)["epochs"]
        scale_epochs(found, given["epochs"], written.get("epochs", usual))
    if "lr" in given and "lr" in written and written.get("min_lr") == written["lr"]:
        found["min_lr"] = given["lr"]
    return found


# Flags that a preset says more of.
_FOLLOWED = ("dataset", "ways", "shots", "network")


def _refuse_half(given: dict[str, Any], written: dict[str, Any], where: str) -> None:
    """Raises UserError where a preset would follow a flag in other settings, which the file has as
    they were. A method refuses by itself what does not go with it.
    """
    followed = {name: given[name] for name in _FOLLOWED if name in given}
    if not followed or "method" in given or not _whole(written):
        return
    preset = written["preset"]
    if preset not in PRESETS:
        return
    before = preset_fields(preset, written["dataset"], written)
    after = preset_fields(preset, given.get("dataset", written["dataset"]), written | followed)
    moved = [
        name
        for name in after
        if name not in given and written[name] == before.get(name) != after[name]
    ]
    method = METHODS.get(written["method"])
    idle = {*method.ignored(written | followed)} if method else set()
    if moved := [name for name in moved if name not in idle]:
        flags = " ".join(f"{flag(name)} {value}" for name, value in followed.items())
        now = ", ".join(f"{name} {written[name]}" for name in moved)
        then = ", ".join(f"{name} {after[name]}" for name in moved)
        raise UserError(
            f"{flags} with {where}, which has every setting: {now}, where {preset} then has "
            f"{then}; say these too, one way or the other"
        )


def _whole(values: dict[str, Any]) -> bool:
    """Whether they have all fields that every version wrote."""
    return {name for name, f in FIELDS.items() if f.metadata["neutral"] is MISSING} <= values.keys()


def read(path: Path) -> dict[str, Any]:
    """The settings in a file, by name; a path or the like that is null is as if it were left out.

    A file that has all fields that every version wrote is the configuration of a run: what its
    version had not takes the neutral value. Raises UserError, which names the file and the key.
    """
    return typed(path, parsed(path))


def typed(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Settings as ``read`` has them, of a table that the file holds."""
    for name, value in values.items():
        if name not in FIELDS:
            raise UserError(
                f"{path}: there is no setting {name!r}: {nearest(name, FIELDS)}"
                f"{_PROG} --help-all lists them"
            )
        try:
            check_type(name, value, FIELDS[name].type)
            check(name, value, FIELDS[name].metadata["allowed"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if _whole(values):
        values = completed(values)
    return {
        name: float(value) if FIELDS[name].type == "float" else value
        for name, value in values.items()
        if value is not None
    }


def parsed(path: Path, what: str = "--config") -> dict[str, Any]:
    """The table that a file holds; ``what`` named it. Raises UserError when it cannot be read."""
    kind = path.suffix.lower()
    if kind not in (".toml", ".json"):
        raise UserError(f"{what} is {path}: give a file whose name ends in .toml or .json")
    if kind == ".toml" and tomllib is None:
        raise UserError(
            f"{what} is {path}: Python reads TOML from 3.11 on; give the same as JSON, or use a "
            "newer Python"
        )
    with explained(f"cannot read {path}", f"correct {what}"):
        if path.exists() and not path.is_file():
            raise UserError(f"{what} is {path}, which is no regular file: give one")
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        if kind == ".toml":
            found = tomllib.loads(text)
        else:
            found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "nested too deeply"
        name = kind[1:].upper()
        raise UserError(f"{path} cannot be read as {name}: {why}; correct it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no table of names and values: begin it with {{")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found
