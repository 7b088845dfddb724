"""What is measured: the rows, the inputs of one, both implementations made ready to run on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.baselines.loop import Loop, LoopConfig
from engine.config import Config
from engine.episodes import Episode
from engine.meta import State, init_state, loss_weights, meta_step, second_order
from engine.model import Backbone, Params

# The task and batch of each case; filters and image size are those of the data set's preset.
CASES = {
    "mini 5w1s": dict(dataset="mini", ways=5, shots=1, targets=15, tasks=2),
    "omniglot 20w1s": dict(dataset="omniglot", ways=20, shots=1, targets=1, tasks=8),
}
ALGORITHMS = ("MAML", "MAML++")
ORDERS = ("first", "second")
STEPS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    algorithm: str
    order: str
    steps: int

    def __str__(self) -> str:
        """An identifier for pytest's -k."""
        return f"{self.case.replace(' ', '-')}-{self.algorithm}-{self.order}-K{self.steps}"

    @property
    def short(self) -> bool:
        """Whether the default run times it, not only the full one."""
        return self.steps == 5 or (self.steps == 1 and self.order == "second")

    def config(self) -> Config:
        """MAML has every trick at its neutral value; MAML++ has the multi-step loss, per-step norm
        and learned rates on, which is its most expensive phase."""
        plus = self.algorithm == "MAML++"
        return Config.of(
            "htym-head" if plus else "maml",
            **CASES[self.case],
            steps=self.steps,
            # On noise, five steps at 0.1 diverge, and the losses of any two float32 runs with them.
            inner_rate=0.01,
            msl_epochs=1 if plus else 0,
            first_order_epochs=1 if self.order == "first" else 0,
            task_reduction="mean",
        )


ROWS = [Row(c, a, o, k) for c in CASES for a in ALGORITHMS for o in ORDERS for k in STEPS]


def reduced(cfg: Config) -> Config:
    """The same algorithm at a size for float64, without the clamp, which would hide gradients."""
    return replace(
        cfg, image_size=min(cfg.image_size, 28), filters=6, ways=5, targets=2, tasks=2, clamp=0.0
    )


def episode(cfg: Config, dtype: torch.dtype = torch.float32) -> Episode:
    """A batch of noise: without ties, so that both implementations pool the same winners."""
    generator = torch.Generator().manual_seed(1)

    def images(samples: int) -> Tensor:  # [T, N, C, H, W], NHWC in memory
        size = (cfg.tasks, cfg.ways * samples, cfg.image_size, cfg.image_size, cfg.channels)
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        return x.to(dtype).permute(0, 1, 4, 2, 3)

    def labels(samples: int) -> Tensor:  # [T, N], class-major
        return torch.arange(cfg.ways).repeat_interleave(samples).repeat(cfg.tasks, 1)

    return Episode(images(cfg.shots), labels(cfg.shots), images(cfg.targets), labels(cfg.targets))


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The same nest of named tuples with its floating tensors in another type."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, tuple):
        return type(tree)(*(cast(leaf, dtype) for leaf in tree))
    return tree


class Ours:
    """The engine: `meta_step` on a state that it carries on."""

    def __init__(self, cfg: Config, dtype: torch.dtype = torch.float32):
        self.cfg = cfg
        self.state: State = cast(init_state(cfg), dtype)
        self.batch = episode(cfg, dtype)

    def iteration(self) -> float:
        self.state, metrics = meta_step(self.state, self.batch, self.cfg)
        return metrics.loss


class Theirs:
    """The loop from the same initial state, on the same batch in its own layout."""

    def __init__(self, cfg: Config, dtype: torch.dtype = torch.float32):
        self.loop = loop_from(cfg, cast(init_state(cfg), dtype))
        batch = episode(cfg, dtype)
        self.batch = (
            batch.support_x.contiguous(),
            batch.support_y,
            batch.target_x.contiguous(),
            batch.target_y,
        )

    def iteration(self) -> float:
        return self.loop.iteration(*self.batch)


IMPLEMENTATIONS: dict[str, Callable[[Config], Ours | Theirs]] = {"ours": Ours, "loop": Theirs}


def loop_from(cfg: Config, state: State) -> Loop:
    """The baseline with the engine's parameters; its convolution biases, which batch norm cancels,
    are zero."""
    per_step = cfg.norm_weights == "per-step"
    loop_cfg = LoopConfig(
        stages=cfg.stages,
        steps=cfg.steps,
        max_pool=cfg.downsample == "pool",
        per_step_norm=per_step,
        learned_rates=cfg.rates == "learned",
        second_order=second_order(0, cfg),
        loss_weights=tuple(loss_weights(0, cfg)) if cfg.msl_epochs else None,
        negative_slope=cfg.negative_slope,
        norm_eps=cfg.norm_eps,
        norm_momentum=cfg.norm_momentum,
        lr=cfg.lr,
        betas=(cfg.beta1, cfg.beta2),
        clamp=cfg.clamp,
    )
    network, norm, rates = unflatten(cfg, state.params)
    for i in range(cfg.stages):
        network[f"conv{i}.bias"] = network["linear.bias"].new_zeros(cfg.filters)
        rates[f"conv{i}.bias"] = rates[f"conv{i}.weight"]
    stats = {
        f"norm{i}.{name}": values.unflatten(1, (cfg.stages, cfg.filters))[:, i]
        for name, values in zip(("mean", "var"), state.running, strict=True)
        for i in range(cfg.stages)
    }
    if not per_step:
        norm, stats = ({name: t[0] for name, t in group.items()} for group in (norm, stats))
    return Loop(loop_cfg, network, norm, rates, stats)


class Groups(NamedTuple):
    """The engine's parameters, or anything of their shape, under the loop's names."""

    network: dict[str, Tensor]
    norm: dict[str, Tensor]  # rows kept: [K or 1, filters]
    rates: dict[str, Tensor]  # [K]


def unflatten(cfg: Config, params: Params) -> Groups:
    model = Backbone.of(cfg)
    parts = model.weights(params.theta.unsqueeze(0))
    rows = params.norm.unflatten(1, (cfg.stages, 2, cfg.filters))
    return Groups(
        {n: p[0] for n, p in zip(model.shapes, parts, strict=True)},
        {
            f"norm{i}.{name}": rows[:, i, j]
            for i in range(cfg.stages)
            for j, name in enumerate(("weight", "bias"))
        },
        dict(zip(model.shapes, params.rates.unbind(1), strict=True)),
    )


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
