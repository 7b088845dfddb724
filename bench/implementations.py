"""The implementations of a row, made ready to run on it from the same parameters and batch.

Each has `iterations(count)`, so many outer iterations, which answers the last one's mean loss over
the tasks and waits for the device no more than the implementation itself does, `iteration()`, one
of them, and `checked()`, which also answers that iteration's gradients by group and name. Ours and
the loop have `evaluation()`, which answers the target loss of the adapted networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench import modules
from bench.baselines import htym
from bench.baselines.cudnn_graph import CudnnGraph
from bench.baselines.loop import Loop
from bench.baselines.outer import BaselineConfig, dense
from bench.baselines.vmap import Vmap
from bench.cases import PRECISIONS, Row, cast, episode
from engine.config import Config
from engine.episodes import Episode
from engine.learner import Learner
from engine.meta import State, init_state, loss_weights, meta_gradient, meta_step, second_order
from engine.models.backbone import Backbone
from engine.models.interface import Params
from engine.runtime.workers import over_tasks
from engine.unroll import adapt_and_predict
from kernels import native


class Ours:
    """The engine: `meta_step` on a state that it carries on."""

    def __init__(
        self,
        cfg: Config,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.cfg = cfg
        self.state: State = cast(init_state(cfg, device), dtype)
        self.batch = episode(cfg, dtype, device)

    def iterations(self, count: int) -> float:
        for _ in range(count):
            self.state, metrics = meta_step(self.state, self.batch, self.cfg)
        return metrics.loss

    def iteration(self) -> float:
        return self.iterations(1)

    def checked(self) -> tuple[float, dict[str, dict[str, Tensor]]]:
        gradient = meta_gradient(self.state, self.batch, self.cfg).gradient
        return self.iteration(), by_name(self.cfg, gradient)._asdict()

    def evaluation(self) -> float:
        """As `engine.evaluate` predicts a batch of tasks."""
        cfg, model, state = self.cfg, Backbone.of(self.cfg), self.state

        def predict(block: Episode) -> Tensor:
            return adapt_and_predict(model, state.params, state.running, block, steps=cfg.steps)

        with kernels.only_kernels():
            logits = torch.cat(over_tasks(predict, self.batch))
        return F.cross_entropy(logits.flatten(0, 1), self.batch.target_y.flatten()).item()


class OursLearner(Ours):
    """The engine as a script of one's own runs it: `Learner`, an optimiser of torch's."""

    def __init__(self, cfg: Config, *placed):
        super().__init__(cfg, *placed)
        norm = "per-step" if cfg.norm_weights == "per-step" else "shared"
        kept = {"steps": cfg.steps, "rate": cfg.inner_rate, "rates": cfg.rates, "norm": norm}
        self.learner = Learner(Backbone.of(cfg), **kept).to(self.state.params.theta)
        self.learner.load(self.state.params, self.state.running)
        self.order = 2 if second_order(0, cfg) else 1
        self.weights = list(loss_weights(0, cfg))
        betas = cfg.beta1, cfg.beta2
        self.optimizer = torch.optim.Adam(self.learner.parameters(), cfg.lr, betas)

    def iterations(self, count: int) -> float:
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = self.learner(self.batch, self.weights, self.order).loss
            loss.backward()
            if self.cfg.clamp:
                torch.nn.utils.clip_grad_value_(self.learner.parameters(), self.cfg.clamp)
            self.optimizer.step()
        return loss.item()

    def checked(self) -> tuple[float, dict[str, dict[str, Tensor]]]:
        loss = self.iteration()
        theta, norm, rates = self.learner.theta, self.learner.norm, self.learner.rates
        learned = rates.requires_grad
        gradient = Params(theta.grad, norm.grad, rates.grad if learned else rates.detach())
        groups = by_name(self.cfg, gradient)._asdict()
        return loss, {name: g for name, g in groups.items() if learned or name != "rates"}


class OursAvx2(Ours):
    """The engine on a processor without AVX-512, as far as the native kernels go."""

    def iterations(self, count: int) -> float:
        with _limited_to_avx2():
            return super().iterations(count)

    def checked(self) -> tuple[float, dict[str, dict[str, Tensor]]]:
        with _limited_to_avx2():
            return super().checked()


@contextmanager
def _limited_to_avx2() -> Iterator[None]:
    used = native.module.isa()
    native.module.limit_isa(native.module.Isa.avx2)
    try:
        yield
    finally:
        native.module.limit_isa(used)


class OursNarrow(Ours):
    """The engine with products in a precision of bfloat16."""

    def __init__(self, precision: str, cfg: Config, *placed):
        super().__init__(replace(cfg, precision=precision), *placed)


class Theirs(ABC):
    """A baseline from the same initial state, on the same batch in its own layout."""

    def __init__(
        self,
        cfg: Config,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        state = cast(init_state(cfg, device), dtype)
        self.baseline = self.make(cfg, state)
        batch = episode(cfg, dtype, device)
        self.batch = (
            dense(batch.support_x),
            batch.support_y,
            dense(batch.target_x),
            batch.target_y,
        )

    @abstractmethod
    def make(self, cfg: Config, state: State):
        """The baseline itself."""

    def iterations(self, count: int) -> float:
        for _ in range(count):
            loss = self.baseline.step(*self.batch)
        return float(loss)

    def iteration(self) -> float:
        return self.iterations(1)

    def checked(self) -> tuple[float, dict[str, dict[str, Tensor]]]:
        return self.iteration(), self.baseline.gradients()

    def evaluation(self) -> float:
        return self.baseline.evaluation(*self.batch)


class TheLoop(Theirs):
    """With convolution biases, which batch norm cancels, at zero, and running statistics."""

    kind = Loop

    def make(self, cfg: Config, state: State) -> Loop:
        network, norm, rates = starting_point(cfg, state)
        for i in range(cfg.stages):
            network[f"conv{i}.bias"] = network["linear.bias"].new_zeros(cfg.filters)
            rates[f"conv{i}.bias"] = rates[f"conv{i}.weight"]
        stats = {
            f"norm{i}.{name}": values.unflatten(1, (cfg.stages, cfg.filters))[:, i]
            for name, values in zip(("mean", "var"), state.running, strict=True)
            for i in range(cfg.stages)
        }
        if cfg.norm_weights != "per-step":
            stats = {name: t[0] for name, t in stats.items()}
        return self.kind(baseline_config(cfg), network, norm, rates, stats)


class TheCudnnGraph(TheLoop):
    kind = CudnnGraph


class TheVmap(Theirs):
    def make(self, cfg: Config, state: State) -> Vmap:
        return Vmap(baseline_config(cfg), *starting_point(cfg, state))


class TheAuthors(Theirs):
    def make(self, cfg: Config, state: State) -> htym.Htym:
        return htym.Htym(cfg, *starting_point(cfg, state))


class Package(Theirs):
    """A baseline whose module needs a package that may not be there."""

    module: str
    name: str

    @classmethod
    def load(cls) -> type:
        return getattr(import_module(f"bench.baselines.{cls.module}"), cls.name)

    def make(self, cfg: Config, state: State):
        return self.load()(baseline_config(cfg), *starting_point(cfg, state))


class TheParallelMetalearn(Package):
    module, name = "parallel_metalearn", "ParallelMetalearn"


class TheJax(Package):
    """JAX keeps the batch where it computes, the first of its own devices."""

    module, name = "jax_", "Jax"

    def __init__(self, cfg: Config, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        super().__init__(cfg, dtype)
        self.batch = self.baseline.placed(*self.batch)


IMPLEMENTATIONS: dict[str, Callable[..., Ours | Theirs]] = {
    "ours": Ours,
    "ours, learner": OursLearner,
    "ours, AVX2": OursAvx2,
    **{name: partial(OursNarrow, precision) for name, precision in PRECISIONS.items()},
    "loop": TheLoop,
    "cuDNN graph": TheCudnnGraph,
    "authors' code": TheAuthors,
    "vmap": TheVmap,
    "parallel-metalearn": TheParallelMetalearn,
    "JAX": TheJax,
}


def made(
    row: Row | modules.ModuleRow,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
):
    """An implementation, ready for a row."""
    if isinstance(row, modules.ModuleRow):
        return modules.IMPLEMENTATIONS[name](row, dtype)
    return IMPLEMENTATIONS[name](row.config(), dtype, device)


PACKAGES = {"parallel-metalearn": "parallel-metalearn", "JAX": "jax"}  # as pip names them


def load(name: str) -> None:
    """Import what an implementation needs."""
    if name in PACKAGES:
        IMPLEMENTATIONS[name].load()


def missing(name: str, device: torch.device | str = "cpu") -> str | None:
    """Why an implementation cannot run on a device here, in one line; `None` if it can."""
    on_gpu = torch.device(device).type == "cuda"
    if name == "cuDNN graph" and not on_gpu:
        return "it captures CUDA graphs, which needs a GPU"
    if name in ("ours, AVX2", "parallel-metalearn") and on_gpu:
        return "it runs on a CPU only"
    if name == "authors' code":
        return "it runs on a CPU only" if on_gpu else htym.missing()
    if name in PACKAGES and not versions()[PACKAGES[name]]:
        return f"the package {PACKAGES[name]} is not installed"
    if name == "ours, AVX2":
        if native.module is None:
            return f"no native module: {native.reason}"
        if native.module.isa().name in ("portable", "neon", "avx2"):
            return "this processor has no AVX-512 to do without"
    if name in PRECISIONS:
        return kernels.refusal(PRECISIONS[name], device)
    return None


def versions() -> dict[str, str | None]:
    """Of the packages that peers need."""
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def baseline_config(cfg: Config) -> BaselineConfig:
    return BaselineConfig(
        stages=cfg.stages,
        steps=cfg.steps,
        max_pool=cfg.downsample == "pool",
        per_step_norm=cfg.norm_weights == "per-step",
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


class Groups(NamedTuple):
    """The engine's parameters, or anything of their shape, under the baselines' names."""

    network: dict[str, Tensor]
    norm: dict[str, Tensor]  # rows kept: [K or 1, filters]
    rates: dict[str, Tensor]  # [K]


def by_name(cfg: Config, params: Params) -> Groups:
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


def starting_point(cfg: Config, state: State) -> Groups:
    """The initial parameters as the baselines take them: a norm that is shared has no rows."""
    groups = by_name(cfg, state.params)
    if cfg.norm_weights == "per-step":
        return groups
    return groups._replace(norm={name: t[0] for name, t in groups.norm.items()})
