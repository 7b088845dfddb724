"""One frozen dataclass is the whole configuration; presets and the command line derive from it.

A preset names a published protocol and fills every field for a data set; explicit flags win.
This module does not import torch, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from engine.allowed import PATH, RATIO, check, check_type
from engine.errors import UserError, listed, say
from engine.presets import PRESETS, preset_fields

__all__ = ["Config", "Parser", "UserError", "add_flags", "check", "parse"]

DATASETS = ("omniglot", "mini", "folder")
SPLITS = ("paper", "background")
ROTATIONS = ("none", "classes", "augment")
CHANNELS = (1, 3)
# What a finished run that is trained on has anew: its length, and what follows from that.
SCHEDULE = ("epochs", "msl_epochs", "first_order_epochs")


def _flag(
    help: str,
    allowed=None,
    *,
    default: Any = MISSING,
    free: bool = False,
    neutral: Any = MISSING,
):
    """A field that is a flag. ``allowed``: tuple of choices, a key of allowed.RANGES or PATH;
    ``free``: the value cannot change what a run learns beyond rounding, so a resumed run may change
    it; ``neutral``, if it is not the default: the value under which the engine does what it did
    before it had the field. Every field added from now on has one, for files of older versions."""
    neutral = default if neutral is MISSING else neutral
    metadata = {"help": help, "allowed": allowed, "free": free, "neutral": neutral}
    return field(metadata=metadata, **({} if default is MISSING else {"default": default}))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. Build one with ``Config.of`` or ``Config.resolve``."""

    preset: str = _flag("published protocol that fills every other field", PRESETS, free=True)
    # data
    dataset: str = _flag("kind of data", DATASETS)
    data: str | None = _flag(
        "path of the data (default: datasets/<dataset>)", PATH, default=None, free=True
    )
    cache: str | None = _flag(
        "folder of decoded data (default: $MAMLPP_CACHE or ~/.cache/mamlpp)",
        PATH,
        default=None,
        free=True,
    )
    strict_data: bool = _flag(
        "fail, instead of using the stand-in, when mini finds no data", default=False, free=True
    )
    split: str = _flag("Omniglot: classes shuffled, or its own two sets", SPLITS)
    split_ratio: str | None = _flag(
        "classes to train, validate and test, as 64/16/20, of data without such splits; of data "
        "without val, its part of the training classes",
        RATIO,
        default=None,
    )
    skip_small_classes: bool = _flag(
        "leave out classes that have too few images for a task, instead of failing", default=False
    )
    rotations: str = _flag(
        "multiples of 90 degrees: none, as new classes on every split, or one per class and "
        "training task",
        ROTATIONS,
    )
    image_size: int = _flag("height and width in pixels", ">= 1")
    channels: int = _flag("1 grey, 3 RGB", CHANNELS)
    # task
    ways: int = _flag("classes of a task", ">= 2")
    shots: int = _flag("support images per class", ">= 1")
    targets: int = _flag("target images per class", ">= 1")
    tasks: int = _flag("tasks per outer iteration", ">= 1")
    # network
    filters: int = _flag("filters of each convolution", ">= 1")
    stages: int = _flag("number of convolutions", "in [1, 16]")
    downsample: str = _flag(
        "2x2 max pool after, or stride 2 in, each convolution", ("pool", "stride")
    )
    negative_slope: float = _flag("slope of the leaky ReLU below zero", ">= 0")
    # inner loop
    steps: int = _flag("inner steps in training", ">= 1")
    eval_steps: int = _flag("inner steps in evaluation, 0: as in training", ">= 0")
    inner_rate: float = _flag("(initial) inner learning rate", "> 0")
    rates: str = _flag(
        "inner rates per tensor and step (LSLR): learned or fixed", ("learned", "fixed")
    )
    norm_weights: str = _flag("rows of gains and biases (BNWB)", ("per-step", "shared"))
    norm_stats: str = _flag("rows of running statistics (BNRS)", ("per-step", "shared"))
    norm_momentum: float = _flag("momentum of the running statistics", "in (0, 1]")
    norm_eps: float = _flag("added to the variance", "> 0")
    train_norm_statistics: str = _flag("what normalises in training", ("batch", "running"))
    # outer loop
    epochs: int = _flag(
        "epochs; without their own flags, the preset's MSL and first-order epochs shrink or grow "
        "in proportion",
        ">= 1",
    )
    iterations: int = _flag("outer iterations per epoch", ">= 1")
    lr: float = _flag("learning rate of Adam", "> 0")
    min_lr: float = _flag("cosine annealing ends here; equal to lr: no annealing", "> 0")
    beta1: float = _flag("first-moment decay of Adam", "in [0, 1)")
    beta2: float = _flag("second-moment decay of Adam", "in [0, 1)")
    clamp: float = _flag("bound on each entry of the network's gradient, 0: none", ">= 0")
    msl_epochs: int = _flag("epochs of multi-step loss, 0: off", ">= 0")
    first_order_epochs: int = _flag("first epochs without second derivatives, 0: none", ">= 0")
    task_reduction: str = _flag("outer loss over the tasks of a batch", ("mean", "sum"))
    seed: int = _flag("of the initial weights and the training tasks", ">= 0")
    # evaluation
    norm_statistics: str = _flag("what normalises in evaluation", ("batch", "running"))
    protocol: str = _flag(
        "normalise a target with the others (transductive) or without",
        ("transductive", "inductive"),
    )
    eval_tasks: int = _flag("tasks of a validation and of the final test", ">= 2")
    ensemble: int = _flag("best checkpoints kept, and averaged in the final test", ">= 1")
    # machine
    device: str = _flag("where to compute", ("auto", "cpu", "cuda"), default="auto", free=True)
    threads: int = _flag(
        "CPU threads, at most one a core; 0: torch's choice", "in [0, 1024]", default=0, free=True
    )
    unroll: str = _flag(
        "closed-form adjoint, or torch.autograd as its oracle",
        ("adjoint", "autograd"),
        default="adjoint",
        free=True,
    )
    backend: str = _flag(
        "of the kernels", ("auto", "native", "triton", "cuda", "plain"), default="auto", free=True
    )
    no_graph: bool = _flag(
        "on a GPU, launch kernels one by one instead of as a CUDA graph", default=False, free=True
    )
    precision: str = _flag(
        "of the convolutions' products: as they are, of operands rounded to TF32 or bfloat16, or "
        "in two parts of either, as good as float32; auto: on a GPU tf32, on a CPU the fastest as "
        "good as float32",
        ("auto", "fp32", "tf32", "tf32x3", "bf16x3", "bf16"),
        default="auto",
    )
    prefetch: int = _flag("batches prepared ahead, 0: none", ">= 0", default=2, free=True)
    # run
    run: str | None = _flag(
        "run folder (default: runs/<data>-<ways>w<shots>s-<preset>-seed<seed>)",
        PATH,
        default=None,
        free=True,
    )
    init: str | None = _flag(
        "run folder (of which the best epoch) or .pt file whose weights, gains, inner rates and "
        "running statistics this run starts from (default: random ones)",
        PATH,
        default=None,
        free=True,
    )
    log_every: int = _flag("iterations per row of the log", ">= 1", default=50, free=True)
    fresh: bool = _flag("start over: remove the run's own files first", default=False, free=True)

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            check_type(f.name, value, f.type)
            check(f.name, value, f.metadata["allowed"])
        _check_combinations(self)

    @classmethod
    def of(cls, preset: str = "maml++", dataset: str = "mini", **explicit: Any) -> Config:
        """The preset for the data set, with explicit fields in place of its own."""
        check("preset", preset, PRESETS)
        check("dataset", dataset, DATASETS)
        values = {"preset": preset, "dataset": dataset}
        return cls(**values | preset_fields(preset, dataset, explicit) | explicit)

    @classmethod
    def resolve(cls, argv: list[str]) -> Config:
        """The configuration of a command line.

        Raises UserError on an unknown flag or a value that is not allowed.
        """
        parser = Parser(
            prog="python -m engine.train",
            description="Train MAML++ and test it. The same command continues a stopped run.",
            epilog="Rows of the log go to <run>/log.jsonl, and to TensorBoard if it is installed. "
            "Exit code: 0 done, 2 a mistake to correct, 3 NaN or Inf met, 129, 130 and 143 stopped "
            "by a closed terminal, Ctrl-C and SIGTERM (saved: the same command continues).",
        )
        add_flags(parser, [f.name for f in fields(cls)])
        return cls.of(**parse(parser, argv))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of ``to_dict``, of this version or an older one.

        Raises UserError when the fields are those of a newer version, or of something else.
        """
        return cls(**_completed(values))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def without_paths(self) -> Config:
        """What may be given to others: nothing of where this machine keeps its files."""
        return replace(
            self, **{f.name: None for f in fields(self) if f.metadata["allowed"] == PATH}
        )

    def differences(self, saved: dict[str, Any], besides: tuple[str, ...] = ()) -> list[str]:
        """``field: saved -> now`` for each field in which a resumed run may not differ, ``besides``
        these.

        Raises UserError as ``from_dict`` does.
        """
        saved = _completed(saved)
        fixed = [f.name for f in fields(self) if not (f.metadata["free"] or f.name in besides)]
        return [
            f"{name}: {saved[name]} -> {getattr(self, name)}"
            for name in fixed
            if saved[name] != getattr(self, name)
        ]

    def lines(self) -> list[str]:
        """Three aligned columns, then a line for each path and switch that is set."""
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        lines = {"data", "cache", "run", "init", "strict_data", "fresh", "no_graph"}
        cells = [f"{name:<21} {value!s:<13}" for name, value in values if name not in lines]
        rows = math.ceil(len(cells) / 3)
        table = ["  " + " ".join(cells[row::rows]).rstrip() for row in range(rows)]
        table += [f"  {name:<21} {value}" for name, value in values if name in lines and value]
        return table


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the neutral value of each field that its version had not."""
    neutral = {f.name: f.metadata["neutral"] for f in fields(Config)}
    if unknown := saved.keys() - neutral.keys():
        raise UserError(
            f"the configuration has fields that this version does not know: "
            f"{listed(sorted(map(str, unknown)))}; a newer version made it, use that one"
        )
    lost = [name for name, value in neutral.items() if value is MISSING and name not in saved]
    if lost:
        raise UserError(
            f"the configuration lacks {listed(lost)}, which every version wrote; it is damaged, "
            "or not of this program: give another"
        )
    return neutral | saved


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line, by UserError."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        say(*self.format_help().splitlines())


def add_flags(parser: Parser, names: list[str]) -> None:
    """One flag per named field of Config. A flag not given leaves no trace in the namespace."""
    by_name = {f.name: f for f in fields(Config)}
    for name in names:
        f, flag = by_name[name], "--" + name.replace("_", "-")
        help, allowed = f.metadata["help"], f.metadata["allowed"]
        if f.type == "bool":
            parser.add_argument(flag, action="store_true", help=help)
            continue
        kind = {"int": int, "float": float}.get(f.type, str)
        metavar = {int: "INT", float: "FLOAT"}.get(kind, "A/B/C" if allowed == RATIO else "PATH")
        if isinstance(allowed, tuple):
            kind, metavar = type(allowed[0]), "|".join(map(str, allowed))
        parser.add_argument(flag, type=kind, metavar=metavar, help=help)


def parse(parser: Parser, argv: list[str]) -> dict[str, Any]:
    """The flags that were given, by field name."""
    return vars(parser.parse_args(argv))


def _check_combinations(cfg: Config) -> None:
    if cfg.min_lr > cfg.lr:
        raise UserError(
            f"--min-lr is {cfg.min_lr}, above --lr {cfg.lr}: annealing only goes down; "
            f"give --min-lr {cfg.lr} (no annealing) or less"
        )
    smallest = 2**cfg.stages if cfg.downsample == "pool" else 1
    if cfg.image_size < smallest:
        raise UserError(
            f"--image-size is {cfg.image_size}: {cfg.stages} stages of pooling need at least "
            f"{smallest} pixels; give fewer --stages or a larger --image-size"
        )
    if cfg.unroll == "autograd" and cfg.precision not in ("fp32", "auto"):
        raise UserError(
            f"--precision is {cfg.precision} with --unroll autograd: its ops are float32; give "
            "--unroll adjoint or --precision fp32"
        )
    if cfg.split == "background" and cfg.dataset != "omniglot":
        raise UserError(
            f"--split background with --dataset {cfg.dataset}: only omniglot has these two sets; "
            "leave --split out"
        )
    if cfg.split_ratio and cfg.dataset == "omniglot":
        raise UserError("--split-ratio with --dataset omniglot: it has its own; leave it out")
    if cfg.dataset == "omniglot" and cfg.channels != 1:
        raise UserError(f"--channels is {cfg.channels} with --dataset omniglot: it is grey, give 1")


def default_run(cfg: Config, data_name: str) -> Path:
    """The run folder when --run is not given."""
    data = data_name.replace(":", "-").replace("/", "-")
    return Path("runs") / f"{data}-{cfg.ways}w{cfg.shots}s-{cfg.preset}-seed{cfg.seed}"
