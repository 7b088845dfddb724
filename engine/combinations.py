"""Which settings go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import UserError, flag
from engine.methods import METHODS, those

if TYPE_CHECKING:
    from engine.config import Config

# What one network has and another has not.
OF_NETWORKS = {
    "conv4": ("filters", "stages", "downsample"),
    "resnet12": ("widths",),
    "own": ("filters",),
}
# What one method has and no other.
_OF_METHODS = {setting: method.name for method in METHODS.values() for setting in method.only}


def without_effect(cfg: Config) -> dict[str, str]:
    """Settings that change nothing of a run, and those by which they do not."""
    found = dict.fromkeys(cfg.of_others, "network")
    found |= dict.fromkeys(METHODS[cfg.method].ignored(vars(cfg)), "method")
    if cfg.optimizer == "sgd":
        found |= dict.fromkeys(("beta1", "beta2"), "optimizer")
    if cfg.annealing != "halving":
        found["halving_epochs"] = "annealing"
    if cfg.init is not None and not METHODS[cfg.method].by_rate:
        found.setdefault("inner_rate", "init")
    if cfg.steps == 1:
        found.setdefault("msl_epochs", "steps")
    if cfg.norm_statistics == "running":
        found.setdefault("protocol", "norm_statistics")
    if cfg.min_lr == cfg.lr:
        found |= dict.fromkeys(("annealing", "halving_epochs"), "min_lr")
    return found


def not_its_own(cfg: Config) -> set[str]:
    """Settings of which another value is refused: those that its method or network fixes or has
    not."""
    method = METHODS[cfg.method]
    found = {*method.fixed} | {name for name, of in _OF_METHODS.items() if of != cfg.method}
    found |= {"train_ways"} if not method.closed_form else set()
    return found | ({"precision"} if not cfg.fused else set())


def refuse_without_effect(cfg: Config, explicit: dict, usual: dict[str, Any]) -> None:
    """They are not to be given, but for the usual value, which a file may have."""
    for name, other in without_effect(cfg).items():
        if (value := explicit.get(name, usual[name])) != usual[name]:
            if other == "network" and METHODS[cfg.method].fixed.get(other) == cfg.network:
                other = "method"  # which alone decides the network
            none = f"{flag(other)} {getattr(cfg, other)}, which has none"
            if other == "min_lr":
                none = f"--min-lr equal to --lr, {cfg.lr}, so that nothing is annealed"
            if other == "init":
                none = f"--init {cfg.init}, which has inner rates"
            raise UserError(
                f"{flag(name)} is {value} with {none}: leave it out, or give another {flag(other)}"
            )


def check_combinations(cfg: Config) -> None:
    """Raises UserError of settings that are allowed, but not together."""
    METHODS[cfg.method].check(vars(cfg))
    _check_method(cfg)
    if cfg.min_lr > cfg.lr:
        raise UserError(
            f"--min-lr is {cfg.min_lr}, above --lr {cfg.lr}: annealing only goes down; "
            f"give --min-lr {cfg.lr} (no annealing) or less"
        )
    _check_network(cfg)
    _check_data(cfg)


def _check_method(cfg: Config) -> None:
    if cfg.network == "own" and not METHODS[cfg.method].remembers:
        raise UserError(
            f"--network is own with --method {cfg.method}, which has none: leave it out, or give "
            f"--method {' or '.join(those(lambda m: m.remembers))}"
        )
    if cfg.train_ways and (cfg.train_ways < 2 or not METHODS[cfg.method].closed_form):
        raise UserError(
            f"--train-ways is {cfg.train_ways} with --method {cfg.method}: give 2 or more with "
            f"--method {' or '.join(those(lambda m: m.closed_form))}, or leave it out"
        )
    for name, owner in _OF_METHODS.items():
        value = getattr(cfg, name)
        if owner != cfg.method and value != cfg.__dataclass_fields__[name].default:
            raise UserError(
                f"{flag(name)} is {value} with --method {cfg.method}, which has "
                f"none: leave it out, or give --method {owner}"
            )


def _check_network(cfg: Config) -> None:
    pools = {"conv4": cfg.stages * (cfg.downsample == "pool"), "resnet12": 4, "own": 0}[cfg.network]
    if cfg.image_size < 2**pools:
        raise UserError(
            f"--image-size is {cfg.image_size}: {pools} stages of pooling need at least "
            f"{2**pools} pixels; give fewer --stages or a larger --image-size"
        )
    if not cfg.fused and cfg.precision not in ("fp32", "auto"):
        composed = "--unroll autograd" if cfg.unroll == "autograd" else f"--network {cfg.network}"
        raise UserError(
            f"--precision is {cfg.precision} with {composed}: its ops are float32; give "
            "--precision fp32, or leave it out"
        )


def _check_data(cfg: Config) -> None:
    if cfg.split == "background" and cfg.dataset != "omniglot":
        raise UserError(
            f"--split background with --dataset {cfg.dataset}: only omniglot has these two sets; "
            "leave --split out"
        )
    if cfg.split_ratio and cfg.dataset == "omniglot":
        raise UserError("--split-ratio with --dataset omniglot: it has its own; leave it out")
    if cfg.dataset == "omniglot" and cfg.channels != 1:
        raise UserError(f"--channels is {cfg.channels} with --dataset omniglot: it is grey, give 1")
