"""The baseline: MAML++ as its authors' implementation is structured, in plain PyTorch.

One task at a time, one step at a time: `F.conv2d` with a bias, `F.batch_norm` that also updates
running statistics, leaky ReLU, max pool; inner gradients by `torch.autograd.grad`, with a graph of
their own for second order; rates in a dictionary, one vector per tensor (LSLR); a target pass after
every step while the multi-step loss is on; mean over tasks, one backward pass, clamp, Adam. Left
out is what that code does beside the computation: logging, device checks, copies of predictions.
It knows nothing of the engine.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LoopConfig:
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


class Loop:
    """Parameters, running statistics and optimiser, and one outer iteration over them.

    `network`: "conv{i}.weight" [F, C, 3, 3], "conv{i}.bias" [F], "linear.weight" [ways, D],
    "linear.bias" [ways]; adapted in the inner loop. `norm`: "norm{i}.weight", "norm{i}.bias"
    [K, F], or [F] when shared. `rates`: [K] or more for every tensor of the network. `stats`:
    "norm{i}.mean" and "norm{i}.var", shaped as the norm's rows.
    """

    def __init__(
        self,
        cfg: LoopConfig,
        network: dict[str, Tensor],
        norm: dict[str, Tensor],
        rates: dict[str, Tensor],
        stats: dict[str, Tensor],
    ):
        self.cfg = cfg
        self.network = {name: leaf(t) for name, t in network.items()}
        self.norm = {name: leaf(t) for name, t in norm.items()}
        self.rates = {name: leaf(t, cfg.learned_rates) for name, t in rates.items()}
        self.stats = {name: t.clone() for name, t in stats.items()}
        learned = [*self.network.values(), *self.norm.values()]
        learned += self.rates.values() if cfg.learned_rates else []
        self.optimiser = torch.optim.Adam(learned, lr=cfg.lr, betas=cfg.betas)

    def forward(self, x: Tensor, weights: dict[str, Tensor], step: int) -> Tensor:
        """Logits [N, ways] of images [N, C, H, W], with the step's row of the norm."""
        cfg = self.cfg
        row = step if cfg.per_step_norm else ...
        for i in range(cfg.stages):
            x = F.conv2d(
                x,
                weights[f"conv{i}.weight"],
                weights[f"conv{i}.bias"],
                stride=1 if cfg.max_pool else 2,
                padding=1,
            )
            x = F.batch_norm(
                x,
                self.stats[f"norm{i}.mean"][row],
                self.stats[f"norm{i}.var"][row],
                self.norm[f"norm{i}.weight"][row],
                self.norm[f"norm{i}.bias"][row],
                training=True,
                momentum=cfg.norm_momentum,
                eps=cfg.norm_eps,
            )
            x = F.leaky_relu(x, cfg.negative_slope)
            if cfg.max_pool:
                x = F.max_pool2d(x, 2)
        if not cfg.max_pool:
            x = F.avg_pool2d(x, x.shape[2])
        return F.linear(x.flatten(1), weights["linear.weight"], weights["linear.bias"])

    def adapt(self, weights: dict[str, Tensor], x: Tensor, y: Tensor, step: int):
        """One inner step on a support set: new weights, differentiable in the old ones."""
        loss = F.cross_entropy(self.forward(x, weights, step), y)
        grads = torch.autograd.grad(
            loss, list(weights.values()), create_graph=self.cfg.second_order
        )
        return {
            name: w - self.rates[name][step] * g
            for (name, w), g in zip(weights.items(), grads, strict=True)
        }

    def task_loss(self, support_x: Tensor, support_y: Tensor, target_x: Tensor, target_y: Tensor):
        """Weighted target loss of one task, and the last step's logits."""
        weights, losses = self.network, []
        importance = self.cfg.loss_weights or (0.0,) * (self.cfg.steps - 1) + (1.0,)
        for step in range(self.cfg.steps):
            weights = self.adapt(weights, support_x, support_y, step)
            if self.cfg.loss_weights or step == self.cfg.steps - 1:
                logits = self.forward(target_x, weights, step)
                losses.append(importance[step] * F.cross_entropy(logits, target_y))
        return torch.stack(losses).sum(), logits

    def loss(self, support_x: Tensor, support_y: Tensor, target_x: Tensor, target_y: Tensor):
        """Mean over the tasks of sets [T, N, ...], and the last step's logits [T, N, ways]."""
        sets = zip(support_x, support_y, target_x, target_y, strict=True)
        losses, logits = zip(*(self.task_loss(*task) for task in sets), strict=True)
        return torch.stack(losses).mean(), torch.stack(logits).detach()

    def iteration(self, support_x, support_y, target_x, target_y) -> float:
        """One outer iteration: gradients of the loss, clamp, Adam."""
        loss, _ = self.loss(support_x, support_y, target_x, target_y)
        self.optimiser.zero_grad()
        loss.backward()
        if self.cfg.clamp:
            for parameter in (*self.network.values(), *self.norm.values()):
                parameter.grad.clamp_(-self.cfg.clamp, self.cfg.clamp)
        self.optimiser.step()
        return loss.item()

    def gradients(self) -> dict[str, dict[str, Tensor]]:
        """Of the last iteration, by group and name; only of what is learned."""
        groups = {"network": self.network, "norm": self.norm}
        if self.cfg.learned_rates:
            groups["rates"] = self.rates
        return {group: {n: t.grad for n, t in named.items()} for group, named in groups.items()}

    def evaluation(self, support_x, support_y, target_x, target_y) -> float:
        """Target loss after adapting to the support sets, without gradients beyond those; mean over
        the tasks.
        """
        losses = []
        for task in zip(support_x, support_y, target_x, target_y, strict=True):
            weights = {name: leaf(t) for name, t in self.network.items()}
            for step in range(self.cfg.steps):
                weights = self.adapt(weights, *task[:2], step)
                weights = {name: leaf(t) for name, t in weights.items()}
            with torch.no_grad():
                losses.append(F.cross_entropy(self.forward(task[2], weights, step), task[3]))
        return torch.stack(losses).mean().item()


def leaf(t: Tensor, requires_grad: bool = True) -> Tensor:
    return t.detach().clone().requires_grad_(requires_grad)
