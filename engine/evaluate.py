"""Tests a trained model on fixed tasks: its mean accuracy with the 95 % interval.

    python -m engine.evaluate CHECKPOINT [--dataset folder --data PATH --eval-steps 10 ...]

CHECKPOINT is a run folder (its best model and the ensemble of its best), one ``.pt`` file, or the
name of a network that comes with the package.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import weights
from engine.combinations import refuse_without_effect
from engine.commandline import Parser, a_path, add_flags, parse
from engine.config import Config
from engine.errors import Diverged, UserError, listed, say
from engine.files import output, write
from engine.runs.interrupt import Interrupt, answered

if TYPE_CHECKING:
    from engine.data import Dataset
    from engine.data.preparation import Preparation
    from engine.runs.checkpoint import Checkpoint

FLAGS = (
    "dataset data cache strict_data split split_ratio skip_small_classes rotations ways shots "
    "targets eval_steps norm_statistics protocol eval_tasks device threads backend precision "
    "no_graph"
).split()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _evaluate_checkpoint(argv, interrupt), stopped="stopped")


def _flags(argv: list[str]) -> dict[str, Any]:
    parser = Parser(
        prog="python -m engine.evaluate",
        usage="%(prog)s CHECKPOINT [flags]",
        description=__doc__.split("\n\n")[0],
        epilog="What is not given is as the model was trained, but for --on.",
    )
    parser.add_argument(
        "checkpoint",
        type=a_path,
        metavar="CHECKPOINT",
        help=f"run folder, .pt file, {listed(weights.names())}",
    )
    parser.group("data").add_argument(
        "--on",
        choices=("test", "val", "train"),
        default="test",
        metavar="test|val|train",
        help="classes to evaluate on (default: test)",
    )
    add_flags(parser, FLAGS)
    for kind, form in (("json", "in lists"), ("csv", "a row each")):
        parser.group("results").add_argument(
            f"--{kind}",
            type=partial(output, f"--{kind}"),
            metavar="FILE",
            default=None,
            help=f"write the settings, the accuracy in each task and of each class, and how often "
            f"each class was taken for which, {form}",
        )
    return parse(parser, argv)


def _evaluate_checkpoint(argv: list[str], interrupt: Interrupt) -> None:
    explicit = _flags(argv)
    path, part = explicit.pop("checkpoint"), explicit.pop("on")
    files = {kind: explicit.pop(kind) for kind in ("json", "csv")}
    if files["json"] and files["json"] == files["csv"]:
        raise UserError(f"--json and --csv are both {files['csv']}: give two files")
    # torch takes seconds to import; a wrong flag is answered before
    from engine import meta
    from engine.breakdown import breakdown
    from engine.runs import seen
    from engine.runs.log import test_table
    from engine.runs.saved import load_trained, preparation, restore
    from engine.runtime import ranks
    from engine.runtime.machine import machine, settled
    from engine.scoring import predictions, summary, with_ways

    interrupt.phase = "unwind"
    saved = load_trained(path)
    trained, cfg = _configurations(path, saved[0], explicit)
    with ranks.joined() as team, machine(cfg) as device:
        cfg = settled(cfg, device, saved[0].precisions or {})
        with team.node_by_node():
            dataset = _data(cfg, part, "split_ratio" in explicit, preparation(saved[0]))
        other = "" if dataset.identity == saved[0].data_identity else ", other data"
        say(f"{path}: trained on {saved[0].data_name}, tested on {dataset.name}{other}")
        # The test classes of its own data are none of its training, but may be of its --init.
        known = saved[0].seen or {}
        if part == "test" and not other:
            known = {"before": known.get("before", [])}
        again = seen.tell(known, dataset.banks[part].names, part)
        members = restore(meta.layout(trained), saved, device)
        if cfg.ways != trained.ways:
            members = {n: with_ways(state, trained, cfg) for n, state in members.items()}
        try:
            found = predictions(cfg, [*members.values()], dataset, part, cfg.eval_tasks)
        except Diverged as error:
            raise UserError(
                f"{path}: {error}; give other --eval-steps or --norm-statistics, or a network that "
                "was trained to its end"
            ) from None
        result = summary(cfg, [*members], dataset, part, found)
        say(*test_table(result))
        if any(files.values()) and team.first:
            about = {"checkpoint": str(path), "trained_on": saved[0].data_name}
            about["seen_classes"] = again
            _write(files, about | breakdown(cfg, dataset, part, found, result))


def _data(cfg: Config, part: str, asked: bool, seen: Preparation) -> Dataset:
    """Data that have splits of their own need none of the training's ``--split-ratio``."""
    from engine.data.layout import OwnSplits
    from engine.runs.problem import load_dataset

    try:
        return load_dataset(cfg, part, preparation=seen, evaluation=True)
    except OwnSplits:
        if asked:
            raise
        own = dataclasses.replace(cfg, split_ratio=None)
        return load_dataset(own, part, preparation=seen, evaluation=True)


def _configurations(
    path: Path, saved: Checkpoint, explicit: dict[str, Any]
) -> tuple[Config, Config]:
    """What the model of a checkpoint was trained with, and what it is to be tested with."""
    from engine.runs.saved import own_data

    trained = Config.from_dict(saved.config)
    if explicit.get("ways", trained.ways) != trained.ways and not trained.any_ways:
        raise UserError(
            f"--ways is {explicit['ways']}: the classifier of {path} has {trained.ways} outputs; "
            "leave --ways out"
        )
    if explicit.get("dataset", trained.dataset) != trained.dataset:
        # what belongs to the other kind of data is of no use for this one
        other = {"data": None, "split": "paper", "split_ratio": None, "rotations": "none"}
        explicit = other | explicit
    if explicit.get("dataset") == "omniglot" and trained.channels != 1:
        raise UserError(
            f"--dataset is omniglot, which is grey: the network of {path} takes "
            f"{trained.channels} channels; give other data, or train with --channels 1"
        )
    if "targets" in explicit:
        explicit["eval_targets"] = 0
    cfg = dataclasses.replace(trained, **own_data(path, trained) | explicit)
    refuse_without_effect(cfg, explicit, vars(trained))
    if cfg.data is None and cfg.dataset == trained.dataset:
        cfg = _at_default(cfg, path, saved.data_name)
    return trained, cfg


def _write(files: dict[str, Path | None], details: dict[str, Any]) -> None:
    from engine.breakdown import as_csv, as_json

    for kind, make in (("json", as_json), ("csv", as_csv)):
        if (path := files[kind]) is not None:
            write(path, make(details))
            say(f"saved in {path}")


def _at_default(cfg: Config, path: Path, data_name: str) -> Config:
    """Data at its default place only, and no stand-in for real data: nobody asked for another."""
    from engine.data import default_path, standin

    if data_name == standin.NAME:
        return cfg
    if cfg.dataset == "folder" or not default_path(cfg.dataset).exists():
        raise UserError(
            f"{path} was trained on {data_name} and does not say where it lies on this machine; "
            "name it with --data"
        )
    return dataclasses.replace(cfg, strict_data=True)


if __name__ == "__main__":
    sys.exit(main())
