"""The published package `parallel-metalearn` (0.5), through its own interface.

Its `MAML` class with the `vmap` backend, one chunk, its `InnerSGD` with a rate a tensor and step,
its `BatchNorm` with running statistics a step, its cross-entropy, and torch's Adam. It differs from
the other implementations in what it cannot express:

* gains and biases of the batch norm are shared by the steps (BNWB is not there); at the equal
  initial values of all rows the loss is the same, and the gradient is the rows' sum;
* its multi-step loss divides by the weights where the paper multiplies. At the first epoch, where
  all weights are 1/K, that is K² times the loss, so `loss` and `gradients` divide by it;
* it has no clamp.
"""

import torch
from metalearn.algorithms import MAML
from metalearn.algorithms.MetaUtils import get_per_step_loss_weights
from metalearn.inner_optimizers import InnerSGD
from metalearn.loss import CategoricalAccuracy, CrossEntropy
from metalearn.model_wrappers import MAML_Model
from metalearn.nn_models.basic_layers.BatchNormalization import BatchNorm
from torch import Tensor, nn

from bench.baselines.outer import BaselineConfig


class Features(nn.Module):
    """The convolutions; the package passes `num_step` and `training` to every module."""

    def __init__(self, cfg: BaselineConfig, shapes: dict[str, torch.Size]):
        super().__init__()
        self.cfg = cfg
        for i in range(cfg.stages):
            filters, channels = shapes[f"conv{i}.weight"][:2]
            stride = 1 if cfg.max_pool else 2
            conv = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
            norm = BatchNorm(
                filters,
                cfg.norm_eps,
                cfg.norm_momentum,
                use_per_step_stats=cfg.per_step_norm,
                max_inner_steps=cfg.steps,
            )
            self.add_module(f"conv{i}", conv)
            self.add_module(f"norm{i}", norm)
        self.activation = nn.LeakyReLU(cfg.negative_slope)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor, **options) -> Tensor:
        for i in range(self.cfg.stages):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x), **options)
            x = self.activation(x)
            x = self.pool(x) if self.cfg.max_pool else x
        return x if self.cfg.max_pool else x.mean((2, 3))


class Classifier(nn.Module):
    def __init__(self, shapes: dict[str, torch.Size]):
        super().__init__()
        ways, width = shapes["linear.weight"]
        self.linear = nn.Linear(width, ways)

    def forward(self, x: Tensor, **options) -> Tensor:
        return self.linear(x)


class ParallelMetalearn:
    """The package made ready with given parameters; names and shapes as `Outer`'s."""

    def __init__(
        self,
        cfg: BaselineConfig,
        network: dict[str, Tensor],
        norm: dict[str, Tensor],
        rates: dict[str, Tensor],
    ):
        shapes = {name: t.shape for name, t in network.items()}
        model = MAML_Model(Features(cfg, shapes), Classifier(shapes))
        model.to(network["linear.weight"].dtype)
        values = network | {name: t[0] if t.dim() > 1 else t for name, t in norm.items()}
        self.parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[_inside(name)].copy_(value)
        model.fast_weights = [_inside(name) for name in network]
        self.inner = InnerSGD(
            model.get_fast_weights(),
            first_order=not cfg.second_order,
            inner_lr=float(rates["linear.bias"][0]),
            max_inner_steps=cfg.steps,
            per_layer=cfg.learned_rates,
            per_step=cfg.learned_rates,
            learn_lr=cfg.learned_rates,
        ).to(network["linear.weight"].dtype)
        self.cfg, self.names = cfg, {"network": tuple(network), "norm": tuple(norm)}
        weight = float(get_per_step_loss_weights(cfg.steps, 0, 1)[0])  # 1/K in float32
        self.scale = cfg.steps / weight if cfg.loss_weights else 1
        self.algorithm = MAML(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=cfg.lr, betas=cfg.betas),
            inner_optimizer=self.inner,
            support_loss_fn=CrossEntropy(metric_fn=CategoricalAccuracy()),
            inner_steps=cfg.steps,
            multi_step_loss=cfg.loss_weights is not None,
            device=torch.device("cpu"),
        )

    def step(self, support_x, support_y, target_x, target_y) -> float:
        batch = support_x, {"labels": support_y}, target_x, {"labels": target_y}
        loss, _ = self.algorithm.step(iter([batch]), training=True, epoch=0, epochs=1)
        return loss / self.scale

    def gradients(self) -> dict[str, dict[str, Tensor]]:
        """Of the last iteration, by group and name; only of what is learned."""
        groups = {
            group: {name: self.parameters[_inside(name)].grad / self.scale for name in names}
            for group, names in self.names.items()
        }
        if self.cfg.learned_rates:
            groups["rates"] = {
                name: self.inner.lrs[f"lr_{_inside(name).replace('.', '_')}"].grad / self.scale
                for name in self.names["network"]
            }
        return groups


def _inside(name: str) -> str:
    """The package's name of a parameter."""
    return f"head.{name}" if name.startswith("linear.") else f"backbone.{name}"
