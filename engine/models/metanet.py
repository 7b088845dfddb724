"""The networks of meta networks (Munkhdalai & Yu 2017, §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.methods.heads import cosines
from engine.models.whole import TaskNetwork

_CONVOLUTIONS = 5
_HIDDEN = 20  # of what makes fast weights of gradients
_LEAST = 7.0  # p: gradients below e^−p are told by their size
_GROUPS = 5  # of the support set, of which d reads one after the other


class MetaNetwork(TaskNetwork):
    """An embedder u and a base learner b of the same layers, each five convolutions of F filters
    and two linear layers, all without biases (F = 64 as published), and the functions d and m that
    make their fast weights.
    """

    def __init__(self, channels: int, image_size: int, filters: int, ways: int):
        super().__init__()
        widths, side = [channels] + [filters] * _CONVOLUTIONS, image_size
        for _ in range(_CONVOLUTIONS):
            side = -(-side // 2)
        shapes = [(b, a, 3, 3) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        shapes += [(filters, filters * side**2), (ways, filters)]
        self.embedder, self.base = (_first_weights(shapes) for _ in range(2))
        self.d = nn.ModuleList(_OfSeveral() for _ in range(2))  # of convolutions, and linear layers
        self.m = nn.ModuleList(_OfOne() for _ in range(2))
        # of u the fast weights but for its classifier's, of each image its key and b's fast weights
        sizes = [math.prod(shape) for shape in shapes]
        self.remembered_sizes = sum(sizes[:-1]), filters + sum(sizes)
        self.shapes = shapes

    def learn(self, x: Tensor, labels: Tensor, second_order: bool = True) -> Tensor:
        of_u = _gradients(self.embedder, x, labels, second_order)[:-1]
        fast_u = _made(self.d, [_grouped(g) for g in of_u])
        fast_b = _made(self.m, _gradients(self.base, x, labels, second_order))
        keys = key(self.embedder, self._split(fast_u), x)
        return torch.cat([fast_u, torch.cat([keys, fast_b], 1).flatten()])

    def answer(self, remembered: Tensor, x: Tensor, ways: int) -> Tensor:
        once, each = self.remembered_sizes
        fast_u, of_images = remembered[:once], remembered[once:].unflatten(0, (-1, each))
        width = self.shapes[-1][1]
        keys, fast_b = of_images[:, :width], of_images[:, width:]
        likeness = cosines(key(self.embedder, self._split(fast_u), x)[None], keys[None])[0]
        return logits(self.base, x, self._split(likeness.softmax(1) @ fast_b))[:, :ways]

    def loss(
        self, x: Tensor, labels: Tensor, target_x: Tensor, target_y: Tensor, second_order: bool
    ) -> tuple[Tensor, Tensor]:
        ways = int(labels.max()) + 1
        answers = self.answer(self.learn(x, labels, second_order), target_x, ways)
        return F.cross_entropy(answers, target_y), answers

    def _split(self, fast: Tensor) -> list[Tensor]:  # [..., P] or without the classifier's
        sizes = [math.prod(shape) for shape in self.shapes]
        sizes = sizes if fast.shape[-1] == sum(sizes) else sizes[:-1]
        parts = fast.split(sizes, -1)
        return [part.unflatten(-1, s) for part, s in zip(parts, self.shapes, strict=False)]


def key(weights: Sequence[Tensor], fast: Sequence[Tensor] | None, x: Tensor) -> Tensor:  # [N, F]
    """The layers before the classifier, of which the linear one has no ReLU here. Weights and fast
    ones may be of all images, or [N, ...] of each its own.
    """
    return sum(_hidden(weights, fast, x))


def logits(weights: Sequence[Tensor], x: Tensor, fast: Sequence[Tensor] | None = None) -> Tensor:
    h = sum(part.relu() for part in _hidden(weights, fast, x))
    last = [weights[-1]] if fast is None else [weights[-1], fast[-1]]
    return sum(_multiplied(h, w) for w in last)


def _hidden(
    weights: Sequence[Tensor], fast: Sequence[Tensor] | None, x: Tensor
) -> list[Tensor]:  # [N, F] each
    """What the slow and the fast weights of the first linear layer make of pooled maps, each of
    which is relu(slow ∗ x) + relu(fast ∗ x).
    """
    # With the strides of a new tensor, as torch in float64 wants them to differentiate twice.
    x = x.flatten().view(x.shape)
    of_layers = list(zip(weights, *([] if fast is None else [fast]), strict=False))
    for layer in of_layers[:_CONVOLUTIONS]:
        x = F.max_pool2d(sum(_convolved(x, w).relu() for w in layer), 2, ceil_mode=True)
    x = x.flatten(1)
    return [_multiplied(x, w) for w in of_layers[_CONVOLUTIONS]]


def _convolved(x: Tensor, w: Tensor) -> Tensor:
    if w.dim() == 4:
        return F.conv2d(x, w, padding=1)
    side_by_side = x.flatten(0, 1).unsqueeze(0), w.flatten(0, 1)
    return F.conv2d(*side_by_side, padding=1, groups=len(x))[0].unflatten(0, (len(x), -1))


def _multiplied(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.T if w.dim() == 2 else (w @ x.unsqueeze(2)).squeeze(2)


@torch.enable_grad()
def _gradients(
    weights: nn.ParameterList, x: Tensor, labels: Tensor, second_order: bool
) -> tuple[Tensor, ...]:  # [n, ...] each
    """Of the loss of each image by itself; constants to the outer loop without second order."""
    learned = torch.is_grad_enabled() and weights[0].requires_grad
    slow = [w if learned else w.detach().requires_grad_() for w in weights]
    own = [w.expand(len(x), *w.shape) for w in slow]
    answers = logits(own, x)[:, : int(labels.max()) + 1]
    loss = F.cross_entropy(answers, labels, reduction="sum")
    return torch.autograd.grad(loss, own, create_graph=second_order and learned)


def _grouped(g: Tensor) -> Tensor:  # [n, ...] → [groups, ...]
    """Of the mean loss of each of so many groups of the images, in their order."""
    return torch.stack([part.mean(0) for part in g.tensor_split(min(_GROUPS, len(g)))])


def _made(functions: nn.ModuleList, gradients: Sequence[Tensor]) -> Tensor:
    """Fast weights of gradients, one function for convolutions, one for the others."""
    parts = gradients[:_CONVOLUTIONS], gradients[_CONVOLUTIONS:]
    flat = (torch.cat([g.flatten(1) for g in part], 1) for part in parts)
    return torch.cat([f(told(g)) for f, g in zip(functions, flat, strict=True)], -1)


def told(g: Tensor) -> Tensor:  # [..., 2]
    """(log|g| / p, sign g) where |g| ≥ e^−p, else (−1, e^p g)."""
    least = math.exp(-_LEAST)
    large = g.abs() >= least
    size = torch.where(large, g.abs().clamp(min=least).log() / _LEAST, -1)
    return torch.stack([size, torch.where(large, g.sign(), g / least)], -1)


class _OfSeveral(nn.Module):
    """d: from gradients of groups of images [n, P, 2], in their order, a weight each [P]."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, _HIDDEN), _last(_HIDDEN)

    def forward(self, g: Tensor) -> Tensor:
        return self.out(self.lstm(g)[0][-1]).squeeze(1)


class _OfOne(nn.Sequential):
    """m: from gradients of each image [n, P, 2] its weights [n, P]."""

    def __init__(self):
        layers = [nn.Linear(2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()]
        super().__init__(*layers, _last(_HIDDEN))

    def forward(self, g: Tensor) -> Tensor:
        return super().forward(g).squeeze(-1)


def _last(width: int) -> nn.Linear:
    """So that fast weights begin small beside the slow ones, also where all have one sign and the
    products of a map add up. Not as zeros: through their ReLU no gradient would come back.
    """
    layer = nn.Linear(width, 1)
    nn.init.normal_(layer.weight, 0, 0.001)
    nn.init.zeros_(layer.bias)
    return layer


def _first_weights(shapes: Sequence[tuple[int, ...]]) -> nn.ParameterList:
    found = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)
    for weight in found:
        nn.init.kaiming_normal_(weight, nonlinearity="linear")  # 1/√inputs
    return found
