"""One frozen dataclass is the whole configuration; presets and the command line derive from it.

A preset names a published protocol and fills every field for a data set; explicit flags win.
This module does not import torch, so that ``--help`` and a wrong flag are answered at once.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.allowed import PATH, RATIO, WIDTHS, check, check_type
from engine.combinations import (
    OF_NETWORKS,
    check_combinations,
    refuse_without_effect,
    without_effect,
)
from engine.errors import UserError, listed
from engine.methods import METHODS
from engine.presets import METHOD, PRESETS, RESNET12_SLOPE, preset_fields

__all__ = ["Config", "UserError", "check"]

# What --help shows together, in this order.
GROUPS = "data", "task", "network", "inner loop", "outer loop", "evaluation", "machine", "run"
PRESET, DATASET = "maml++", "mini"  # when none is given
DATASETS = ("omniglot", "mini", "folder")
SPLITS = ("paper", "background")
ROTATIONS = ("none", "classes", "augment")
PROTOCOLS = ("transductive", "inductive")
CHANNELS = (1, 3)
# What a finished run that is trained on has anew: its length, and what follows from that.
SCHEDULE = ("epochs", "msl_epochs", "first_order_epochs")


def _flag(
    help: str,
    allowed=None,
    *,
    group: str,
    default: Any = MISSING,
    free: bool = False,
    neutral: Any = MISSING,
):
    """A field that is a flag, of one of GROUPS. ``allowed``: tuple of choices, a key of
    allowed.RANGES or PATH; ``free``: the value cannot change what a run learns beyond rounding, so
    a resumed run may change it; ``neutral``, if it is not the default: the value under which the
    engine does what it did before it had the field. Every field added from now on has one, for
    files of older versions."""
    neutral = default if neutral is MISSING else neutral
    metadata = {
        "help": help,
        "allowed": allowed,
        "group": group,
        "free": free,
        "neutral": neutral,
    }
    return field(metadata=metadata, **({} if default is MISSING else {"default": default}))


_data, _task, _network, _inner, _outer, _evaluation, _machine, _run = (
    partial(_flag, group=group) for group in GROUPS
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. Build one with ``Config.of`` or ``Config.resolve``."""

    preset: str = _run("published protocol that fills every other field", PRESETS, free=True)
    method: str = _run(
        "what is trained: a set of choices in place of the preset's, of which flags change those "
        "that do not make the method",
        tuple(METHODS),
        default=METHOD,
    )
    dataset: str = _data("kind of data", DATASETS)
    data: str | None = _data(
        "path of the data (default: datasets/<dataset>)", PATH, default=None, free=True
    )
    cache: str | None = _data(
        "folder of decoded data (default: $MAMLPP_CACHE or ~/.cache/mamlpp)",
        PATH,
        default=None,
        free=True,
    )
    strict_data: bool = _data(
        "fail, instead of using the stand-in, when mini finds no data", default=False, free=True
    )
    split: str = _data("Omniglot: classes shuffled, or its own two sets", SPLITS)
    split_ratio: str | None = _data(
        "classes to train, validate and test, as 64/16/20, of data without such splits; of data "
        "without val, its part of the training classes",
        RATIO,
        default=None,
    )
    skip_small_classes: bool = _data(
        "leave out classes that have too few images for a task, instead of failing", default=False
    )
    rotations: str = _data(
        "multiples of 90 degrees: none, as new classes on every split, or one per class and "
        "training task",
        ROTATIONS,
    )
    image_size: int = _data("height and width in pixels", ">= 1")
    channels: int = _data("1 grey, 3 RGB", CHANNELS)
    ways: int = _task("classes of a task", ">= 2")
    train_ways: int = _task(
        "classes of a training task of a method without inner steps, 0: as of any other task",
        ">= 0",
        default=0,
    )
    shots: int = _task("support images per class", ">= 1")
    train_shots: int = _task(
        "support images per class of a training task, 0: as of any other task", ">= 0", default=0
    )
    targets: int = _task("target images per class", ">= 1")
    tasks: int = _task("tasks per outer iteration", ">= 1")
    network: str = _network(
        "conv4: the paper's, of so many filters and stages; resnet12: ResNet-12 of these widths, "
        "in float32; own: the method's, of so many filters in the first convolution",
        tuple(OF_NETWORKS),
        default="conv4",
    )
    filters: int = _network("filters of each convolution", ">= 1")
    stages: int = _network("number of convolutions", "in [1, 16]")
    downsample: str = _network(
        "2x2 max pool after, or stride 2 in, each convolution", ("pool", "stride")
    )
    widths: str = _network(
        "filters of the four blocks of resnet12; 64,128,256,512 is the other common choice",
        WIDTHS,
        default="64,160,320,640",
    )
    negative_slope: float = _network("slope of the leaky ReLU below zero", ">= 0")
    steps: int = _inner("inner steps in training", ">= 1")
    eval_steps: int = _inner("inner steps in evaluation, 0: as in training", ">= 0")
    inner_rate: float = _inner("(initial) inner learning rate", "> 0")
    rates: str = _inner(
        "inner rates: learned per tensor and step (LSLR), fixed, or learned per parameter, the "
        "same in all steps (Meta-SGD)",
        ("learned", "fixed", "per-parameter"),
    )
    adapt: str = _inner(
        "tensors that the inner loop changes: all, the classifier (head), or all but it (body)",
        ("all", "head", "body"),
        default="all",
    )
    inner_optimizer: str = _inner(
        "what reptile's steps are: Adam without first moment, or gradient descent",
        ("sgd", "adam"),
        default="sgd",
    )
    inner_batch: int = _inner(
        "support images of a step of reptile, 0: all of them", ">= 0", default=0
    )
    eval_batch: int = _inner("the same in evaluation, 0: as in training", ">= 0", default=0)
    proximal: float = _inner("weight of imaml's proximal term", ">= 0", default=0.0)
    cg_steps: int = _inner("conjugate gradients of imaml", ">= 0", default=0)
    temperature: float = _inner(
        "that matching multiplies cosines by, 1: the paper's", "> 0", default=1.0
    )
    class_scores: str = _inner(
        "of matching: shares of attention, or sums of cosines (Ravi & Larochelle)",
        ("attention", "sum"),
        default="attention",
    )
    context: int = _inner(
        "steps of matching's full context embeddings, 0: without them", ">= 0", default=0
    )
    norm_weights: str = _inner("rows of gains and biases (BNWB)", ("per-step", "shared"))
    norm_gains: str = _inner(
        "gains of batch norm: learned, or fixed at 1", ("learned", "fixed"), default="learned"
    )
    norm_stats: str = _inner("rows of running statistics (BNRS)", ("per-step", "shared"))
    norm_momentum: float = _inner("momentum of the running statistics", "in (0, 1]")
    norm_eps: float = _inner("added to the variance", "> 0")
    train_norm_statistics: str = _inner("what normalises in training", ("batch", "running"))
    epochs: int = _outer(
        "epochs; without their own flags, the preset's MSL and first-order epochs shrink or grow "
        "in proportion",
        ">= 1",
    )
    iterations: int = _outer("outer iterations per epoch", ">= 1")
    optimizer: str = _outer(
        "of the outer loop: Adam, or gradient descent", ("adam", "sgd"), default="adam"
    )
    lr: float = _outer("learning rate of the outer loop", "> 0")
    min_lr: float = _outer("annealing ends here; equal to lr: no annealing", ">= 0")
    annealing: str = _outer(
        "how the outer rate falls, epoch by epoch: along a cosine, a line, or by half at a time",
        ("cosine", "linear", "halving"),
        default="cosine",
    )
    halving_epochs: int = _outer("epochs after which it is halved", ">= 1", default=20)
    beta1: float = _outer("first-moment decay of Adam", "in [0, 1)")
    beta2: float = _outer("second-moment decay of Adam", "in [0, 1)")
    clamp: float = _outer("bound on each entry of the network's gradient, 0: none", ">= 0")
    max_norm: float = _outer(
        "bound on the norm of the whole gradient, 0: none", ">= 0", default=0.0
    )
    msl_epochs: int = _outer("epochs of multi-step loss, 0: off", ">= 0")
    first_order_epochs: int = _outer("first epochs without second derivatives, 0: none", ">= 0")
    task_reduction: str = _outer("outer loss over the tasks of a batch", ("mean", "sum"))
    seed: int = _outer("of the initial weights and the training tasks", ">= 0")
    norm_statistics: str = _evaluation("what normalises in evaluation", ("batch", "running"))
    protocol: str = _evaluation(
        "by batch statistics, normalise a target with the others (transductive) or without",
        PROTOCOLS,
    )
    eval_targets: int = _evaluation(
        "target images per class in evaluation, 0: as in training", ">= 0", default=0
    )
    eval_tasks: int = _evaluation("tasks of a validation and of the final test", ">= 2")
    ensemble: int = _evaluation("best checkpoints kept, and averaged in the final test", ">= 1")
    device: str = _machine("where to compute", ("auto", "cpu", "cuda"), default="auto", free=True)
    threads: int = _machine(
        "CPU threads, at most one a core; 0: torch's choice", "in [0, 1024]", default=0, free=True
    )
    unroll: str = _machine(
        "closed-form adjoint, or torch.autograd as its oracle",
        ("adjoint", "autograd"),
        default="adjoint",
        free=True,
    )
    backend: str = _machine(
        "of the kernels", ("auto", "native", "triton", "cuda", "plain"), default="auto", free=True
    )
    no_graph: bool = _machine(
        "on a GPU, launch kernels one by one instead of as a CUDA graph", default=False, free=True
    )
    precision: str = _machine(
        "of the convolutions' products: as they are, of operands rounded to TF32 or bfloat16, or "
        "in two parts of either (bf16x3: 16 bits); auto: on a GPU tf32, on a CPU the faster one of "
        "fp32 and bf16x3",
        ("auto", "fp32", "tf32", "tf32x3", "bf16x3", "bf16"),
        default="auto",
    )
    prefetch: int = _machine("batches prepared ahead, 0: none", ">= 0", default=2, free=True)
    run: str | None = _run(
        "run folder (default: runs/<data>-<ways>w<shots>s-<preset>-seed<seed>)",
        PATH,
        default=None,
        free=True,
    )
    init: str | None = _run(
        "run folder (of which the best epoch), .pt file or network of the package whose weights, "
        "gains, inner rates and running statistics this run starts from (default: random ones)",
        PATH,
        default=None,
        free=True,
    )
    log_every: int = _run("iterations per row of the log", ">= 1", default=50, free=True)
    no_report: bool = _run(
        "make no report.html at the end, and keep no pictures of test tasks in the run folder",
        default=False,
        free=True,
    )
    fresh: bool = _run("start over: remove the run's own files first", default=False, free=True)

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            check_type(f.name, value, f.type)
            check(f.name, value, f.metadata["allowed"])
        check_combinations(self)

    @classmethod
    def of(cls, preset: str = PRESET, dataset: str = DATASET, **explicit: Any) -> Config:
        """The preset for the data set, with explicit fields in place of its own."""
        check("preset", preset, PRESETS)
        check("dataset", dataset, DATASETS)
        for name in explicit.keys() & cls.__dataclass_fields__.keys():
            check_type(name, explicit[name], cls.__dataclass_fields__[name].type)
        values = {"preset": preset, "dataset": dataset}
        values |= preset_fields(preset, dataset, explicit)
        cfg = cls(**values | explicit)
        defaults = {f.name: f.default for f in fields(cls)}
        refuse_without_effect(cfg, explicit, defaults | values)
        return cfg

    @classmethod
    def resolve(cls, argv: list[str]) -> Config:
        """The configuration of a command line of ``engine.train``.

        Raises UserError on an unknown flag or a value that is not allowed.
        """
        from engine.settings import resolve  # which imports this module

        return resolve(argv).cfg

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of ``to_dict``, of this version or an older one.

        Raises UserError when the fields are those of a newer version, or of something else.
        """
        return cls(**completed(values))

    @property
    def any_ways(self) -> bool:
        """Whether its network takes tasks of any number of classes; rates of the classifier's
        parameters have their number.
        """
        return METHODS[self.method].any_ways and self.rates != "per-parameter"

    @property
    def fused(self) -> bool:
        """Whether the network may run in whole passes of a backend, and not by single ops."""
        return self.network == "conv4" and self.unroll != "autograd"

    @property
    def other_protocol(self) -> str | None:
        """In which the best model is tested, too; None where it makes no difference."""
        if "protocol" in without_effect(self):
            return None
        return "inductive" if self.protocol == "transductive" else "transductive"

    def evaluations(self, epochs: int) -> int:
        """Of a run of so many epochs: its validations, and in the test one of each checkpoint and
        one in the other protocol."""
        return epochs + min(self.ensemble, epochs) + (self.other_protocol is not None)

    @property
    def of_others(self) -> tuple[str, ...]:
        """Fields that mean nothing to the network."""
        others = dict.fromkeys(name for names in OF_NETWORKS.values() for name in names)
        return tuple(name for name in others if name not in OF_NETWORKS[self.network])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def without_paths(self) -> Config:
        """What may be given to others: nothing of where this machine keeps its files."""
        return replace(
            self, **{f.name: None for f in fields(self) if f.metadata["allowed"] == PATH}
        )

    def differences(
        self, saved: dict[str, Any], besides: tuple[str, ...] = (), also: tuple[str, ...] = ()
    ) -> list[str]:
        """``field: saved -> now`` for each field in which a resumed run may not differ, ``besides``
        these; ``also`` in these.

        Raises UserError as ``from_dict`` does.
        """
        saved = completed(saved)
        free = {f.name for f in fields(self) if f.metadata["free"]} - {*also} | {*besides}
        free |= without_effect(self).keys()
        fixed = [f.name for f in fields(self) if f.name not in free]
        return [
            f"{name}: {saved[name]} -> {getattr(self, name)}"
            for name in fixed
            if saved[name] != getattr(self, name)
        ]

    def lines(self) -> list[str]:
        """Three aligned columns, then a line for each path and switch that is set."""
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        lines = {"data", "cache", "run", "init", "strict_data", "fresh", "no_graph", "no_report"}
        cells = [f"{name:<21} {value!s:<13}" for name, value in values if name not in lines]
        rows = math.ceil(len(cells) / 3)
        table = ["  " + " ".join(cells[row::rows]).rstrip() for row in range(rows)]
        table += [f"  {name:<21} {value}" for name, value in values if name in lines and value]
        return table


def completed(saved: dict[str, Any]) -> dict[str, Any]:
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
    if saved.get("network") == "resnet12" and "widths" not in saved:  # its slope was no setting
        saved = saved | {"negative_slope": RESNET12_SLOPE}
    return neutral | saved


def default_run(cfg: Config, data_name: str) -> Path:
    """The run folder when --run is not given."""
    data = data_name.replace(":", "-").replace("/", "-")
    network = "" if cfg.network == "conv4" else f"-{cfg.network}"
    task = f"{data}{network}-{cfg.ways}w{cfg.shots}s"
    method = "" if cfg.method == METHOD else f"-{cfg.method}"
    return Path("runs") / f"{task}-{cfg.preset}{method}-seed{cfg.seed}"
