"""Meta networks against their algorithm, an image at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.config import Config
from engine.methods.loops import loop
from engine.models import network
from engine.models.metanet import MetaNetwork, logits, told
from tests.own_networks import alone, config, filled, problem
from tests.test_methods import close

__all__ = ["alone"]


def test_each_meta_network_is_as_large_as_published() -> None:
    net = network(Config.of("maml++", "omniglot", method="metanet")).module
    assert [sum(p.numel() for p in of) for of in (net.embedder, net.base)] == [152_448] * 2
    assert [sum(p.numel() for p in of.parameters()) for of in (*net.d, *net.m)] == [1941] * 2 + [
        501
    ] * 2


def test_gradients_are_constants_unless_it_is_told_otherwise() -> None:
    cfg = Config.of("maml++", "omniglot", method="metanet")
    assert cfg.first_order_epochs == cfg.epochs and cfg.max_norm == 10
    second = Config.of("maml++", "omniglot", method="metanet", first_order_epochs=0)
    assert second.first_order_epochs == 0


def test_a_gradient_is_told_by_its_size_and_sign() -> None:
    least = math.exp(-7)
    g = torch.tensor([0.0, 1.0, -math.exp(-3.5), least / 2], dtype=torch.float64)
    expected = [[-1, 0], [0, 1], [-0.5, -1], [-1, 0.5]]
    close(told(g), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("order", [1, 2])
def test_meta_networks_are_their_plain_algorithm(order) -> None:
    """An image at a time, layer by layer, differentiated by autograd."""
    cfg = config("metanet")
    model, params, episode, _ = problem(cfg)
    episode = episode.slice(0, 1)
    found = loop(cfg, model).adjoint(model, params, episode, [1.0], order == 2)
    net = filled(model, params.theta).requires_grad_()
    x, y, target_x, target_y = (values[0] for values in vars(episode).values())
    by_images = [
        [
            torch.autograd.grad(loss, [*weights], create_graph=True)
            for loss in (
                F.cross_entropy(plain_meta(weights, None, one)[1], label[None])
                for one, label in zip(x, y, strict=True)
            )
        ]
        for weights in (net.embedder, net.base)
    ]
    if order == 1:
        by_images = [[[g.detach() for g in of] for of in images] for images in by_images]
    of_u, of_b = by_images
    fast_u = [
        plain_lstm(net.d[i > 4], grouped([g[i].flatten() for g in of_u])).view(weight.shape)
        for i, weight in enumerate(net.embedder[:-1])
    ]
    fast_b = [
        [net.m[i > 4](told(part.flatten())).view(part.shape) for i, part in enumerate(of)]
        for of in of_b
    ]
    keys = [plain_meta(net.embedder, fast_u, one)[0] for one in x]
    rows = []
    for one in target_x:
        r, _ = plain_meta(net.embedder, fast_u, one)
        a = torch.stack([F.cosine_similarity(r, k)[0] for k in keys]).softmax(0)
        mixed = [
            sum(w * part for w, part in zip(a, of, strict=True)) for of in zip(*fast_b, strict=True)
        ]
        rows.append(plain_meta(net.base, mixed, one)[1][0])
    loss = F.cross_entropy(torch.stack(rows), target_y)
    close(found.logits[0], torch.stack(rows).detach())
    close(found.loss[0], loss.detach())
    exact = torch.autograd.grad(loss, [*net.parameters()], materialize_grads=True)
    close(found.gradient.theta[0], torch.cat([g.flatten() for g in exact]))


@pytest.mark.parametrize("filters", [16, 32])
@pytest.mark.parametrize("seed", range(4))
def test_it_begins_near_b_with_its_slow_weights(filters, seed) -> None:
    torch.manual_seed(seed)
    net = MetaNetwork(1, 28, filters, 5)
    x, target_x, labels = *(torch.rand(2, 5, 1, 28, 28) > 0.1).float(), torch.arange(5)
    loss, _ = net.loss(x, labels, target_x, labels, False)
    slow = F.cross_entropy(logits(net.base, target_x), labels)
    assert (loss - slow).abs() < 0.1


def plain_meta(weights, fast, x):
    """Key and logits of an image."""
    x = x.clone(memory_format=torch.contiguous_format).view(1, 1, 14, 14)
    for i in range(5):
        slow = F.conv2d(x, weights[i], padding=1)
        x = slow.relu() if fast is None else slow.relu() + F.conv2d(x, fast[i], padding=1).relu()
        x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2)
    h = x.flatten(1) @ weights[5].T
    quick = 0 * h if fast is None else x.flatten(1) @ fast[5].T
    last = weights[6] if fast is None or len(fast) == 6 else weights[6] + fast[6]
    return h + quick, (h.relu() + quick.relu()) @ last.T


def grouped(gradients):
    """Their means over five groups, the first ones larger where it does not divide."""
    groups = np.array_split(range(len(gradients)), min(5, len(gradients)))
    return [sum(gradients[i] for i in group) / len(group) for group in groups]


def plain_lstm(d, gradients):
    """Of gradients [P] of the images in turn, a weight each."""
    w, u, b, c = (getattr(d.lstm, f"{n}_l0") for n in "weight_ih weight_hh bias_ih bias_hh".split())
    h = cell = torch.zeros(len(gradients[0]), 20, dtype=torch.float64)
    for g in gradients:
        i, f, new, o = (told(g) @ w.T + b + h @ u.T + c).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * new.tanh()
        h = o.sigmoid() * cell.tanh()
    return (h @ d.out.weight.T + d.out.bias)[:, 0]


def test_meta_networks_without_fast_weights_are_a_plain_network() -> None:
    cfg = config("metanet")
    model, params, episode, running = problem(cfg)
    theta = dict(zip(model.shapes, params.theta.split(model.sizes), strict=True))
    for name in ("d.0.out", "d.1.out", "m.0.4", "m.1.4"):
        theta[f"{name}.weight"].zero_()
        theta[f"{name}.bias"].zero_()
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=1)
    base = [theta[f"base.{i}"].view(model.shapes[f"base.{i}"]) for i in range(7)]
    for t in range(2):
        rows = [plain_meta(base, None, one)[1][0] for one in episode.target_x[t]]
        close(found[t], torch.stack(rows))
