"""The baseline: MAML++ as its authors' implementation is structured, in plain PyTorch.

One task at a time, one step at a time: `F.conv2d` with a bias, `F.batch_norm` that also updates
running statistics, leaky ReLU, max pool; inner gradients by `torch.autograd.grad`, with a graph of
their own for second order; rates in a dictionary, one vector per tensor (LSLR); a target pass after
every step while the multi-step loss is on; mean over tasks; then, in `Outer`, one backward pass,
clamp, Adam. Left out is what that code does beside the computation: logging, device checks, copies
of predictions. It knows nothing of the engine.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.baselines.outer import BaselineConfig, Outer, leaf


class Loop(Outer):
    """The network has a "conv{i}.bias" [F] too, with rates of its own. `stats`: "norm{i}.mean" and
    "norm{i}.var", shaped as the norm's rows.
    """

    def __init__(
        self,
        cfg: BaselineConfig,
        network: dict[str, Tensor],
        norm: dict[str, Tensor],
        rates: dict[str, Tensor],
        stats: dict[str, Tensor],
    ):
        super().__init__(cfg, network, norm, rates)
        self.stats = {name: t.clone() for name, t in stats.items()}

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
        for step in range(self.cfg.steps):
            weights = self.adapt(weights, support_x, support_y, step)
            if self.cfg.loss_weights or step == self.cfg.steps - 1:
                logits = self.forward(target_x, weights, step)
                losses.append(self.cfg.importance[step] * F.cross_entropy(logits, target_y))
        return torch.stack(losses).sum(), logits

    def loss(self, support_x: Tensor, support_y: Tensor, target_x: Tensor, target_y: Tensor):
        """Mean over the tasks of sets [T, N, ...], and the last step's logits [T, N, ways]."""
        sets = zip(support_x, support_y, target_x, target_y, strict=True)
        losses, logits = zip(*(self.task_loss(*task) for task in sets), strict=True)
        return torch.stack(losses).mean(), torch.stack(logits).detach()

    def mean_loss(self, support_x, support_y, target_x, target_y) -> Tensor:
        return self.loss(support_x, support_y, target_x, target_y)[0]

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
