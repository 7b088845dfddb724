"""The same algorithm in JAX: one jitted function of the state and the batch.

`jax.grad` of the support loss inside the unrolled inner loop, `vmap` of the unroll over the tasks,
`value_and_grad` of their mean loss, clamp and Adam. Images are NHWC, filters HWIO; pooling is a
maximum over a reshape, which differentiates better there than a window reduction. No convolution
biases and no running statistics, as in `vmap`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from bench.baselines.outer import BaselineConfig

Tree = dict[str, dict[str, jax.Array]]


class Jax:
    """Parameters and Adam's moments, and one outer iteration over them; names and shapes outside as
    `Outer`'s. The first iteration compiles.
    """

    def __init__(
        self,
        cfg: BaselineConfig,
        network: dict[str, Tensor],
        norm: dict[str, Tensor],
        rates: dict[str, Tensor],
    ):
        if network["linear.weight"].dtype == torch.float64:
            jax.config.update("jax_enable_x64", True)
        self.cfg = cfg
        groups = {"network": network, "norm": norm, "rates": rates}
        self.side = _feature_side(network)
        self.params = jax.tree.map(jnp.asarray, {g: _inside(named) for g, named in groups.items()})
        self.params["network"]["linear.weight"] = _reordered(
            self.params["network"]["linear.weight"], (-1, self.side, self.side), (0, 2, 3, 1)
        )
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        self.moments, self.count = (zeros, zeros), 0
        self._step = jax.jit(partial(_step, cfg))

    def placed(self, support_x, support_y, target_x, target_y) -> tuple[jax.Array, ...]:
        """A batch as `step` takes it, on JAX's device."""
        images = (_numpy(x).transpose(0, 1, 3, 4, 2) for x in (support_x, target_x))
        support, target = zip(images, (_numpy(support_y), _numpy(target_y)), strict=True)
        return tuple(jnp.asarray(array) for array in (*support, *target))

    def step(self, *batch: jax.Array) -> jax.Array:
        """One outer iteration on a batch from `placed`; answers the mean loss."""
        self.count += 1
        state = self.params, self.moments, self.count
        loss, self.params, self.moments, self._gradients = self._step(*state, *batch)
        return loss

    def gradients(self) -> dict[str, dict[str, Tensor]]:
        """Of the last iteration, by group and name; only of what is learned."""
        groups = {g: dict(named) for g, named in self._gradients.items()}
        network = groups["network"]
        network["linear.weight"] = _reordered(
            network["linear.weight"], (self.side, self.side, -1), (0, 3, 1, 2)
        )
        if not self.cfg.learned_rates:
            del groups["rates"]
        for name, value in network.items():
            network[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        return jax.tree.map(lambda value: torch.from_numpy(np.array(value)), groups)


def _forward(cfg: BaselineConfig, weights: dict, norm: dict, x: jax.Array, step: int) -> jax.Array:
    """Logits [N, ways] of images [N, H, W, C]."""
    row = step if cfg.per_step_norm else ...
    for i in range(cfg.stages):
        stride, padding = ((1, 1) if cfg.max_pool else (2, 2)), ((1, 1), (1, 1))
        layout = ("NHWC", "HWIO", "NHWC")
        filters = weights[f"conv{i}.weight"]
        x = jax.lax.conv_general_dilated(x, filters, stride, padding, dimension_numbers=layout)
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        gain, bias = norm[f"norm{i}.weight"][row], norm[f"norm{i}.bias"][row]
        x = (x - mean) * (jax.lax.rsqrt(var + cfg.norm_eps) * gain) + bias
        x = jax.nn.leaky_relu(x, cfg.negative_slope)
        if cfg.max_pool:
            n, h, w, c = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
    x = x.reshape(len(x), -1) if cfg.max_pool else x.mean((1, 2))
    return x @ weights["linear.weight"].T + weights["linear.bias"]


def _task_loss(cfg: BaselineConfig, params: Tree, support_x, support_y, target_x, target_y):
    """Weighted target loss of one task."""

    def loss(weights, x, y, step):
        log_p = jax.nn.log_softmax(_forward(cfg, weights, params["norm"], x, step))
        return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

    weights, total = params["network"], 0.0
    for step in range(cfg.steps):
        grads = jax.grad(loss)(weights, support_x, support_y, step)
        if not cfg.second_order:
            grads = jax.lax.stop_gradient(grads)
        weights = {n: w - params["rates"][n][step] * grads[n] for n, w in weights.items()}
        if importance := cfg.importance[step]:
            total += importance * loss(weights, target_x, target_y, step)
    return total


def _step(cfg: BaselineConfig, params: Tree, moments, count, *batch):
    tasks = jax.vmap(partial(_task_loss, cfg), (None, *[0] * len(batch)))
    loss, gradients = jax.value_and_grad(lambda p: tasks(p, *batch).mean())(params)
    used = dict(gradients)
    if cfg.clamp:
        for group in ("network", "norm"):
            used[group] = jax.tree.map(lambda g: g.clip(-cfg.clamp, cfg.clamp), used[group])
    if not cfg.learned_rates:
        used["rates"] = jax.tree.map(jnp.zeros_like, used["rates"])
    (beta1, beta2), (first, second) = cfg.betas, moments
    first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, used)
    second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, second, used)

    def moved(p, m, v):
        scale = jnp.sqrt(v / (1 - beta2**count)) + 1e-8
        return p - cfg.lr * m / (1 - beta1**count) / scale

    return loss, jax.tree.map(moved, params, first, second), (first, second), gradients


def _numpy(t: Tensor) -> np.ndarray:
    return t.detach().numpy()


def _inside(named: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Arrays of a group, filters [F, C, 3, 3] as [3, 3, C, F]."""
    arrays = {name: _numpy(t) for name, t in named.items()}
    return {n: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for n, a in arrays.items()}


def _feature_side(network: dict[str, Tensor]) -> int:
    filters = network["conv0.weight"].shape[0]
    return round((network["linear.weight"].shape[1] / filters) ** 0.5)


def _reordered(weight: jax.Array, shape: tuple[int, ...], order: tuple[int, ...]) -> jax.Array:
    """The classifier's weights [ways, D] for features whose axes lie in another order."""
    return weight.reshape(len(weight), *shape).transpose(order).reshape(len(weight), -1)
