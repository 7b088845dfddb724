"""What the baselines share: their configuration, and the outer loop of those written in PyTorch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BaselineConfig:
    stages: int
    steps: int
    max_pool: bool  # False: stride-2 convolutions, then the mean over the image
    per_step_norm: bool
    learned_rates: bool
    second_order: bool
    loss_weights: tuple[float, ...] | None  # per step; None: only the last step's target loss
    negative_slope: float = 0.01
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clamp: float = 0.0  # of all gradients but the rates'; 0: none

    @property
    def importance(self) -> tuple[float, ...]:
        """Weight of the target loss after each step."""
        return self.loss_weights or (0.0,) * (self.steps - 1) + (1.0,)


class Outer(ABC):
    """Parameters and optimiser, and one outer iteration over them.

    `network`: "conv{i}.weight" [F, C, 3, 3], "linear.weight" [ways, D], "linear.bias" [ways];
    adapted in the inner loop. `norm`: "norm{i}.weight", "norm{i}.bias" [K, F], or [F] when shared.
    `rates`: [K] or more for every tensor of the network.
    """

    def __init__(
        self,
        cfg: BaselineConfig,
        network: dict[str, Tensor],
        norm: dict[str, Tensor],
        rates: dict[str, Tensor],
    ):
        self.cfg = cfg
        self.network = {name: leaf(t) for name, t in network.items()}
        self.norm = {name: leaf(t) for name, t in norm.items()}
        self.rates = {name: leaf(t, cfg.learned_rates) for name, t in rates.items()}
        learned = [*self.network.values(), *self.norm.values()]
        learned += self.rates.values() if cfg.learned_rates else []
        self.optimiser = torch.optim.Adam(learned, lr=cfg.lr, betas=cfg.betas)

    @abstractmethod
    def mean_loss(self, support_x, support_y, target_x, target_y) -> Tensor:
        """Weighted target loss after adapting to sets [T, N, ...], mean over the tasks."""

    def step(self, support_x, support_y, target_x, target_y) -> Tensor:
        """One outer iteration: gradients of the loss, clamp, Adam. Answers the mean loss."""
        loss = self.mean_loss(support_x, support_y, target_x, target_y)
        self.optimiser.zero_grad()
        loss.backward()
        if self.cfg.clamp:
            for parameter in (*self.network.values(), *self.norm.values()):
                parameter.grad.clamp_(-self.cfg.clamp, self.cfg.clamp)
        self.optimiser.step()
        return loss.detach()

    def gradients(self) -> dict[str, dict[str, Tensor]]:
        """Of the last iteration, by group and name; only of what is learned."""
        groups = {"network": self.network, "norm": self.norm}
        if self.cfg.learned_rates:
            groups["rates"] = self.rates
        return {group: {n: t.grad for n, t in named.items()} for group, named in groups.items()}


def leaf(t: Tensor, requires_grad: bool = True) -> Tensor:
    return dense(t).requires_grad_(requires_grad)


def dense(t: Tensor) -> Tensor:
    """A copy as PyTorch lays out a new tensor. Ours lie otherwise: with filters and images like
    them its convolutions take up to 1.8 times as long.
    """
    return torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t.detach())
