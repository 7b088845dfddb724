"""Trains every combination of settings that a file lists.

    python -m engine.sweep FILE [--list | --status]

FILE is TOML or JSON. It has ``[base]``: settings by name, as engine.train --config takes them;
``[vary]``: lists of values, each combination a run; ``seeds`` of each; ``[[extra]]``: settings of
more runs; ``runs``: where their folders go. engine/README.md has an example.

A run folder has the name of what varies, as shots-1_inner-rate-0.1_seed-0. The runs come one after
the other as engine.train does each; one that is finished is passed by, one that was stopped is
continued, and one that fails is told in a line, before the next begins.

Exit code: 0 done; 2 a mistake to correct, or runs that failed; 3 runs that met NaN or Inf; 129, 130
and 143 stopped, saved: the same command continues.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

from engine.allowed import PATH, check, shown
from engine.commandline import FIELDS, Parser, a_path, parse
from engine.config import Config
from engine.errors import UserError, complain, explained, flag, listed, nearest, printable, say
from engine.files import CONFIG, LATEST, RESULT, read_json, trained_on
from engine.runs.interrupt import MISTAKES, Interrupt, answered, failed
from engine.settings import parsed, typed, under

PARTS = {"runs": str, "seeds": list, "base": dict, "vary": dict, "extra": list}
MOST = 10_000  # runs: a slip in a list is told, and not expanded
# Settings that the content of the data follows from.
_OF_DATA = (
    "dataset data cache strict_data split split_ratio skip_small_classes image_size channels"
).split()
LONGEST = 200  # bytes of a folder's name; file systems take 255


class Member(NamedTuple):
    """A run of a sweep."""

    name: str
    settings: dict[str, Any]  # those that the file gives it, and its folder
    cfg: Config

    @property
    def folder(self) -> Path:
        return Path(self.settings["run"]).expanduser()

    def command(self) -> str:
        """The line of a shell that trains it. Raises UserError when no line can hold it."""
        words = [
            flag(name) if value is True else f"{flag(name)}={value}"
            for name, value in self.settings.items()
            if value is not False
        ]
        line = shlex.join(["python", "-m", "engine.train", *words])
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        if printable(line).encode(encoding, "replace").decode(encoding) != line:
            raise UserError(
                f"{line}: no line of this console ({encoding}) holds all its characters; give "
                "paths of visible ones"
            )
        return line


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(
        lambda interrupt: _asked(argv, interrupt),
        stopped="the sweep is stopped; the same command continues",
    )


def _asked(argv: list[str], interrupt: Interrupt) -> int:
    parser = Parser(
        prog="python -m engine.sweep",
        usage="%(prog)s FILE [flags]",
        description=__doc__.split("\n\n")[0],
        epilog="engine/README.md has an example. The same command continues a stopped sweep.",
    )
    parser.add_argument("file", type=a_path, metavar="FILE", help="TOML or JSON")
    parser.add_argument("--runs", metavar="PATH", help="folder of the run folders, not the file's")
    looks = parser.add_mutually_exclusive_group()
    text = "only print the command of each run, a line each: for GNU parallel, xargs, job arrays"
    looks.add_argument("--list", action="store_true", help=text)
    looks.add_argument("--status", action="store_true", help="only show how far each run is")
    given = parse(parser, argv)
    members = expand(given["file"], given.get("runs"))
    if "list" in given:
        say(*[member.command() for member in members])
        return 0
    if "status" in given:
        say(*status(members))
        return 0
    interrupt.phase = "unwind"
    refuse_other_data(members)
    return run(members, interrupt)


def expand(path: Path, runs: str | None = None) -> list[Member]:
    """The runs of a file in its order, the seeds changing fastest, then what is extra.

    Raises UserError when a part or a setting does not exist, a run's configuration is not allowed,
    or two have the same folder.
    """
    found = _parts(path)
    base = _settings(path, "[base]", found.get("base", {}))
    seeds = [{}]  # the base's, or the preset's
    if "seeds" in found:
        seeds = [{"seed": s} for s in _values(path, "seed", found["seeds"], "seeds")]
    for part in ("base", "vary"):
        if "seed" in found.get(part, {}) and (part == "vary" or "seeds" in found):
            raise UserError(f"{path}: [{part}] has seed: leave it out, and give seeds = [...]")
    lists = [
        [{name: value} for value in _values(path, name, values, f"[vary] {name}")]
        for name, values in found.get("vary", {}).items()
    ]
    if (count := math.prod(map(len, [*lists, seeds]))) > MOST:
        raise UserError(f"{path}: [vary] and seeds make {count} runs: give at most {MOST}")
    varied = [functools.reduce(or_, chosen) for chosen in itertools.product(*lists, seeds)]
    for number, given in enumerate(found.get("extra", []), 1):
        own = _settings(path, f"[[extra]] {number}", given)
        varied += [own] if "seed" in own else [own | seed for seed in seeds]
    root = found.get("runs", str(Path("runs") / path.stem)) if runs is None else runs
    check("runs", root, PATH)
    if not found.keys() - {"runs"}:
        what = "has runs alone" if found else "is empty"
        raise UserError(f"{path} {what}: give [base] or [vary]")
    members: dict[str, Member] = {}
    for own in varied:
        member = _member(path, root, base, own)
        # a file system may not tell capital letters from small ones
        if members.setdefault(member.name.casefold(), member) is not member:
            raise UserError(
                f"{path}: two runs have the folder {member.settings['run']}, the second by "
                f"{_told(own)}: leave one out"
            )
    return [*members.values()]


def _parts(path: Path) -> dict[str, Any]:
    found = parsed(path, "the sweep")
    for name, value in found.items():
        if name not in PARTS:
            near = nearest(name, PARTS)
            if name in FIELDS:
                near = "settings stand below [base] or [vary]; "
            raise UserError(
                f"{path}: there is no part {name!r}: {near}a sweep has {', '.join(PARTS)}"
            )
        if not isinstance(value, PARTS[name]):
            kind = {str: "a path", list: "a list", dict: "a table"}[PARTS[name]]
            raise UserError(f"{path}: {name} is {shown(value)}: give {kind}")
    return found


def _values(path: Path, name: str, values: Any, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: {where} is {shown(values)}: give a list of values")
    return [_settings(path, where, {name: value}).get(name) for value in values]


def _settings(path: Path, where: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{path}: {where} is {shown(values)}: give a table of settings")
    if names := [name for name in ("run", "fresh") if values.get(name)]:
        raise UserError(
            f"{path}: {where} has {names[0]}: a sweep names the folders itself and continues what "
            "is in them; leave it out"
        )
    return typed(path, values)


def _member(path: Path, root: str, base: dict[str, Any], own: dict[str, Any]) -> Member:
    """Of the base and what is a run's own; None stands for a setting that is left out."""
    try:
        given = {name: value for name, value in own.items() if value is not None}
        base = under(given, base, "[base]")
        settings = {name: value for name, value in base.items() if name not in own} | given
        cfg = Config.of(**settings)
    except UserError as error:
        raise UserError(f"{path}: {_told(own)}: {error}") from error
    names = [name for name in FIELDS if name in own and name != "seed"]
    name = "_".join(f"{n.replace('_', '-')}-{_slug(getattr(cfg, n))}" for n in [*names, "seed"])
    if len(name.encode()) > LONGEST:
        raise UserError(
            f"{path}: {name:.40}... is too long for a folder's name: vary fewer settings, or "
            "shorter paths"
        )
    run = str(Path(root) / name)
    return Member(name, settings | {"run": run}, replace(cfg, run=run))


def _slug(value: Any) -> str:
    """As a folder's name may have it."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")


def _told(own: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in own.items()) or "the base"


def run(
    members: list[Member], interrupt: Interrupt, *, after: Callable[[], None] = lambda: None
) -> int:
    """Trains what is left, one after the other, and calls ``after`` each that it trained; the
    largest exit code of those that failed."""
    from engine.train import train

    codes: dict[str, int] = {}
    for number, member in enumerate(members, 1):
        head = f"run {number} of {len(members)}: {member.name}"
        if result := finished(member):
            say(f"{head}, already finished: {scores(result)}")
            continue
        say(head)
        try:
            train(member.cfg, interrupt)
        except MISTAKES as error:
            codes[member.name] = failed(error, f"{member.name}: ")
        interrupt.phase = "unwind"
        after()
        interrupt.check()  # a signal that came after the run's last look
    if codes:
        complain(f"{len(codes)} of {len(members)} runs failed: {listed(codes)}")
    return max(codes.values(), default=0)


def refuse_other_data(members: list[Member]) -> None:
    """Raises UserError when a finished run is of other data than there are now, by their content.
    Says so where these cannot be read; a run that needs them then fails by itself."""
    from engine.runs.problem import load_dataset

    found: dict[tuple, tuple[str, str] | None] = {}  # name and identity
    for member in members:
        if not (result := finished(member)) or "identity" not in result:
            continue
        key = tuple(getattr(member.cfg, name) for name in _OF_DATA)
        if key not in found:
            found[key] = None
            try:
                now = load_dataset(member.cfg)
                found[key] = now.name, now.identity
            except UserError as error:
                complain(f"whether finished runs are of the same data is not known: {error}")
        if found[key] and found[key][1] != result["identity"]:
            name, identity = found[key]
            raise UserError(
                f"{member.folder} was trained on {_data(result)}, the data now is {name} "
                f"({identity:.12}): give that data, other --runs, or remove the folder"
            )


def _data(result: dict[str, Any]) -> str:
    return f"{result['data']} ({result.get('identity', 'not known'):.12})"


def scores(result: dict[str, Any]) -> str:
    """What a finished run was tested to."""
    from engine.runs.log import percent

    text = f"best {percent(result['best'])}, ensemble {percent(result['ensemble'])}"
    return ", ".join(filter(None, [text, trained_on(result)]))


def finished(member: Member) -> dict[str, Any] | None:
    """The result of a run with these very settings; None when it is to be trained, or when what it
    left cannot be read, which training tells."""
    if not os.path.exists(member.folder / RESULT):
        return None
    cfg, unreadable = member.cfg, (OSError, ValueError, LookupError, TypeError, OverflowError)
    with contextlib.suppress(*unreadable, AttributeError, UserError):
        saved = read_json(member.folder / CONFIG)
        if cfg.differences(saved) or _began_otherwise(member, saved):
            return None
        result = read_json(member.folder / RESULT)
        if scores(result) and _data(result):
            return result
    return None


def _began_otherwise(member: Member, saved: dict[str, Any]) -> bool:
    """Of a run with this config.json, whether its --init was another."""
    if member.cfg.init in (None, saved.get("init")):
        return False
    from engine.runs import checkpoint
    from engine.runs.beginning import otherwise

    origin = checkpoint.load(member.folder / LATEST).origin
    return otherwise(member.cfg.init, member.folder, origin) is not None


def status(members: list[Member]) -> list[str]:
    """A table of how far each run is. Writes nothing."""
    states = [state(member) for member in members]
    width = max(len(member.name) for member in members)
    rows = zip(members, states, strict=True)
    lines = [f"{m.name:<{width}}  {word:<9}  {text}".rstrip() for m, (word, text) in rows]
    results = list(filter(None, map(finished, members)))
    done = f"{len(results)} of {len(members)} finished"
    of = f", on {listed(sorted({*map(_data, results)}))}" if results else ""
    return [*lines, f"{done}{of}; ± is the 95 % interval over tasks"]


def state(member: Member) -> tuple[str, str]:
    """A word for how far a run is, and what is to be said of it."""
    if result := finished(member):
        return "finished", scores(result)
    if not os.path.lexists(member.folder):
        return "not begun", ""
    from engine.runs import checkpoint, locks
    from engine.runs.beginning import otherwise
    from engine.runs.run import differing

    try:
        with explained(f"cannot read run folder {member.folder}", "make it a readable folder"):
            word = "running" if locks.held(member.folder / checkpoint.LOCK) else "stopped"
            if not (files := checkpoint.files(member.folder)):
                return (word, "nothing is saved yet") if word == "running" else ("not begun", "")
        if LATEST not in files:
            return "damaged", f"{listed(files)} without {LATEST}"
        saved = checkpoint.load(member.folder / LATEST)
        different, longer = differing(member.cfg, saved)
        began = otherwise(member.cfg.init, member.folder, saved.origin)
        different += [f"init: began {began} -> {member.cfg.init}"] * bool(began)
    except UserError as error:
        return "damaged", str(error)
    if different:
        return "other", f"has other settings than the sweep: {'; '.join(different)}"
    if longer:
        return "shorter", f"finished {saved.epoch} epochs, to be trained on to {member.cfg.epochs}"
    done, total = saved.state.get("iteration"), member.cfg.epochs * member.cfg.iterations
    return word, f"at epoch {saved.epoch} of {member.cfg.epochs}, iteration {done} of {total}"


if __name__ == "__main__":
    sys.exit(main())
