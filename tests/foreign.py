"""Networks, losses and episodes of other people, and a loop of plain autograd as an oracle."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from engine.episodes import Episode, each
from engine.models.interface import Params
from engine.models.module import Module


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.silu(x + self.norm(self.conv(x)))


class ResNet(nn.Sequential):
    def __init__(self, ways: int = 3, width: int = 4):
        super().__init__(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            Residual(width),
            Residual(width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, ways),
        )


class Transformer(nn.Module):
    """Over token ids; its output projection is its embedding, positions are frozen."""

    def __init__(self, tokens: int = 7, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.randn(5, width), requires_grad=False)
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, 0.0, F.gelu, batch_first=True)
        self.out = nn.Linear(width, tokens, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids, mask=None):
        hidden = self.layer(self.embedding(ids) + self.positions, src_key_padding_mask=mask)
        return self.out(hidden.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x).tanh()


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.LayerNorm(64),
        nn.Linear(64, 3),
    )  # fmt: skip


class Problem(NamedTuple):
    module: nn.Module
    criterion: object
    episode: Episode


def _classes(tasks: int, n: int, ways: int) -> Tensor:
    return (torch.arange(tasks * n) % ways).view(tasks, n)


def _of(make, support: int, target: int) -> Episode:
    (sx, sy), (tx, ty) = make(support), make(target)
    return Episode(sx, sy, tx, ty)


def problem(name: str, tasks: int = 2) -> Problem:
    """In float64, its weights and values by a fixed seed."""
    torch.manual_seed(7)
    real = {"dtype": torch.float64}

    def pictures(n):
        return torch.randn(tasks, n, 2, 6, 6, **real), _classes(tasks, n, 3)

    def points(n, width=1):
        x = torch.randn(tasks, n, width, **real)
        return x, x.sin().sum(-1, keepdim=True)

    def ids(n):
        return torch.randint(7, (tasks, n, 5)), _classes(tasks, n, 7)

    def named(n):
        x, y = ids(n)
        return {"ids": x, "mask": torch.arange(5) >= 4 - (x[..., :1] % 2)}, y

    def series(n):
        return torch.randn(tasks, n, 4, 3, **real), _classes(tasks, n, 2)

    def uneven(n):
        xs = [torch.randn(n + t, 2, 6, 6, **real) for t in range(tasks)]
        return xs, [torch.arange(len(x)) % 3 for x in xs]

    mlp = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    drop = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))
    module, criterion, make = {
        "mlp": (mlp, F.mse_loss, points),
        "resnet": (ResNet(), F.cross_entropy, pictures),
        "transformer": (Transformer(), F.cross_entropy, ids),
        "dict": (Transformer(), F.cross_entropy, named),
        "lstm": (Recurrent(), F.cross_entropy, series),
        "norms": (normed(), F.cross_entropy, pictures),
        "dropout": (drop, F.mse_loss, points),
        "uneven": (ResNet(), F.cross_entropy, uneven),
        "unused": (Unused(), lambda o, y: (o - y).square().mean(), lambda n: points(n, 4)),
    }[name]
    return Problem(module.double(), criterion, _of(make, 6, 9))


PROBLEMS = ("mlp", "resnet", "transformer", "dict", "lstm", "norms", "dropout", "uneven", "unused")


def start(model: Module, steps: int, rates: str = "learned") -> Params:
    """Parameters that differ between steps and tensors."""
    values = dict(model.module.named_parameters())
    flat = [values[n].detach().flatten() for n in model.shapes]
    row = [values[n].detach().flatten() for n in model.outer]
    theta = torch.cat(flat)
    norm = torch.cat([theta.new_empty(0), *row]).repeat(steps, 1)
    width = len(theta) if rates == "per-parameter" else len(model.sizes)
    norm = norm + 0.1 * torch.randn_like(norm)
    return Params(theta, norm, 0.05 + 0.1 * torch.rand(steps, width, dtype=theta.dtype))


def plain_loop(
    model: Module, params: Params, episode: Episode, weights: list[float], order: int
) -> tuple[Tensor, Params, list]:
    """Loss and gradient summed over the tasks, and last predictions: ordinary torch, one graph."""
    module = copy.deepcopy(model.module)
    theta, norm, rates = leaves = [p.clone().requires_grad_() for p in params]
    total, outputs = theta.new_zeros(()), []
    fields = [each(values) for values in vars(episode).values()]
    for sx, sy, tx, ty in zip(*fields, strict=True):
        fast = _named(theta, model.shapes)
        for k, weight in enumerate(weights):
            row = _named(norm[k], model.outer)

            def loss(x, y, fast, row=row):
                buffers = {n: b.clone() for n, b in module.named_buffers()}
                args, named = ((), x) if isinstance(x, dict) else ((x,), {})
                output = functional_call(module, {**buffers, **fast, **row}, args, named)
                return model.criterion(output, y), output

            gradient = torch.autograd.grad(
                loss(sx, sy, fast)[0],
                list(fast.values()),
                create_graph=order == 2,
                materialize_grads=True,
            )
            if rates.shape[1] == len(fast):
                step = list(rates[k])
            else:
                step = list(_named(rates[k], model.shapes).values())
            fast = {
                n: p - rate * g
                for (n, p), rate, g in zip(fast.items(), step, gradient, strict=True)
            }
            if weight:
                value, output = loss(tx, ty, fast)
                total = total + weight * value
        outputs.append(output.detach())
    gradient = torch.autograd.grad(total, leaves, materialize_grads=True)
    return total.detach(), Params(*gradient), outputs


def _named(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
