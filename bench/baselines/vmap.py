"""The same algorithm, vectorised over the tasks by `torch.func`.

An ordinary module run by `functional_call` with one task's weights; `grad` of the support loss
inside the unrolled inner loop; `vmap` of the whole unroll over the tasks; one backward pass, clamp,
Adam. Unlike the loop it has no convolution biases, whose gradient is 0, and no running statistics,
which normalise nothing in training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.baselines.outer import BaselineConfig, Outer


class Network(nn.Module):
    """Its own weights are never read; they give the names and the shapes."""

    def __init__(self, cfg: BaselineConfig, shapes: dict[str, torch.Size]):
        super().__init__()
        self.cfg = cfg
        for i in range(cfg.stages):
            filters, channels = shapes[f"conv{i}.weight"][:2]
            stride = 1 if cfg.max_pool else 2
            conv = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False, device="meta")
            self.add_module(f"conv{i}", conv)
        ways, width = shapes["linear.weight"]
        self.linear = nn.Linear(width, ways, device="meta")

    def forward(self, x: Tensor, norm: dict[str, Tensor]) -> Tensor:
        """Logits [N, ways] of images [N, C, H, W], with one step's gains and biases [F]."""
        cfg = self.cfg
        for i in range(cfg.stages):
            x = getattr(self, f"conv{i}")(x)
            affine = norm[f"norm{i}.weight"], norm[f"norm{i}.bias"]
            x = F.batch_norm(x, None, None, *affine, training=True, eps=cfg.norm_eps)
            x = F.leaky_relu(x, cfg.negative_slope)
            if cfg.max_pool:
                x = F.max_pool2d(x, 2)
        if not cfg.max_pool:
            x = x.mean((2, 3), keepdim=True)
        return self.linear(x.flatten(1))


class Vmap(Outer):
    def __init__(
        self,
        cfg: BaselineConfig,
        network: dict[str, Tensor],
        norm: dict[str, Tensor],
        rates: dict[str, Tensor],
    ):
        super().__init__(cfg, network, norm, rates)
        self.model = Network(cfg, {name: t.shape for name, t in network.items()})

    def loss(self, weights: dict[str, Tensor], x: Tensor, y: Tensor, step: int) -> Tensor:
        row = step if self.cfg.per_step_norm else ...
        norm = {name: t[row] for name, t in self.norm.items()}
        return F.cross_entropy(functional_call(self.model, weights, (x, norm)), y)

    def task_loss(self, support_x: Tensor, support_y: Tensor, target_x: Tensor, target_y: Tensor):
        """Weighted target loss of one task."""
        cfg, weights, total = self.cfg, self.network, 0.0
        for step in range(cfg.steps):
            at = weights if cfg.second_order else {n: w.detach() for n, w in weights.items()}
            grads = grad(self.loss)(at, support_x, support_y, step)
            if not cfg.second_order:
                grads = {name: g.detach() for name, g in grads.items()}
            weights = {n: w - self.rates[n][step] * grads[n] for n, w in weights.items()}
            if importance := cfg.importance[step]:
                total = total + importance * self.loss(weights, target_x, target_y, step)
        return total

    def mean_loss(self, support_x, support_y, target_x, target_y) -> Tensor:
        return vmap(self.task_loss)(support_x, support_y, target_x, target_y).mean()
