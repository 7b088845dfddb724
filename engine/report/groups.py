"""Which runs are seeds of one configuration, and what to call them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.errors import printable
from engine.presets import METHOD
from engine.report.recorded import Recorded, last_parts

# Okabe and Ito's, which the colour-blind tell apart; without yellow, which paper does not show.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#7b3294")


WEIGHTS = "initial weights"
_DIGITS = 12  # of an identity that are shown
_OF_PICTURES = ("data", "task", "network")  # groups of settings of the engine's own network


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    name: str
    colour: str
    runs: list[Recorded]
    settings: dict[str, Any]  # those that decide what is learned, but for the seed

    def label(self, run: Recorded) -> str:
        """Of a run beside the others of the group."""
        seeds = [other.cfg.seed for other in self.runs]
        twice = seeds.count(run.cfg.seed) > 1
        return printable(run.name) if twice else f"seed {run.cfg.seed}"


def grouped(runs: list[Recorded]) -> list[Group]:
    """In the order of their first runs; the runs of a group by their seeds."""
    found: dict[str, tuple[dict[str, Any], list[Recorded]]] = {}
    for run, settings in zip(runs, deciding(runs), strict=True):
        found.setdefault(json.dumps(settings), (settings, []))[1].append(run)
    every, alike = zip(*found.values(), strict=True)
    names = _names([_named(of[0].cfg.preset, s) for of, s in zip(alike, every, strict=True)])
    return [
        Group(name, COLOURS[i % len(COLOURS)], sorted(of, key=lambda run: run.cfg.seed), settings)
        for i, (name, of, settings) in enumerate(zip(names, alike, every, strict=True))
    ]


def deciding(runs: list[Recorded]) -> list[dict[str, Any]]:
    """What decides what each run learns, but for its seed, and of which content its data are: by
    name, as much of a path as tells it from others."""
    sources = [*dict.fromkeys(Path(run.cfg.init) for run in runs if run.cfg.init)]
    weights = dict(zip(sources, (f"of {name}" for name in last_parts(sources)), strict=True))
    every, known = [_settings(run) for run in runs], {}
    for run, settings in zip(runs, every, strict=True):
        source = run.cfg.init and Path(run.cfg.init)
        settings[WEIGHTS] = weights[source] if source else "random"
        same = {other.origin for other in runs if source and Path(other.cfg.init or "") == source}
        if len(same - {None}) > 1:  # what lies there has changed
            settings[WEIGHTS] += f" ({run.origin[:_DIGITS] if run.origin else 'not known'})"
        known.setdefault(json.dumps(settings), set()).add(run.identity)
    # A run that is not tested yet is taken for one of those that it is like, if these are of one.
    alike = [known[json.dumps(settings)] - {None} for settings in every]
    for run, settings, found in zip(runs, every, alike, strict=True):
        identity = run.identity or (min(found) if len(found) == 1 else None)
        content = "network and data" if run.own else "pictures"
        settings[content] = identity[:_DIGITS] if identity else "not tested yet"
    return every


def _settings(run: Recorded) -> dict[str, Any]:
    """Of a script's own network and tasks those that mean something."""
    kept = [f for f in fields(Config) if not f.metadata["free"] and f.name != "seed"]
    if run.own:
        kept = [f for f in kept if f.metadata["group"] not in _OF_PICTURES]
    settings = {"data": run.data} | {f.name: getattr(run.cfg, f.name) for f in kept}
    return settings | {"schedule": run.schedule}


def differing(every: list[dict[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all, those that say most first."""
    first = "method", "preset", "data", "ways", "shots"
    names = dict.fromkeys([*first, *(name for settings in every for name in settings)])
    return [name for name in names if len({repr(s.get(name)) for s in every}) > 1]


def _named(preset: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings to call a group by. Many presets have the method maml++, and are told by their own
    names: the one of plain MAML is that with its tricks at their neutral values."""
    method = settings["method"]
    told = preset if method == METHOD else method
    return {"preset": preset} | settings | {"method": told, "--method": method}


def _names(every: list[dict[str, Any]]) -> list[str]:
    """By as few of the settings that differ as tell one from another."""
    if len(every) == 1:
        (one,) = every
        task = f", {one['ways']}-way {one['shots']}-shot" if "ways" in one else ""
        weights = f", {_told(WEIGHTS, one[WEIGHTS])}" if one[WEIGHTS] != "random" else ""
        return [printable(one["method"] + task + weights)]
    different, chosen = differing(every), []

    def parted(names: list[str]) -> int:
        return len({tuple(repr(settings.get(name)) for name in names) for settings in every})

    while parted(chosen) < parted(different):  # the first of those that part most
        chosen.append(max(different, key=lambda name: parted([*chosen, name])))
    return [
        printable(", ".join(_told(name, s[name]) for name in chosen if name in s)) for s in every
    ]


def _told(name: str, value: Any) -> str:
    return f"{value}" if name == "method" else f"{name.replace('_', ' ')} {value}"
