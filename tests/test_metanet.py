"""Meta networks against their algorithm, an image at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.config import Config
from engine.errors import UserError
from engine.methods.loops import loop
from engine.models import network
from engine.models.metanet import told
from tests.own_networks import alone, config, filled, problem
from tests.test_methods import close

__all__ = ["alone"]


def test_each_meta_network_is_as_large_as_the_port_has_it() -> None:
    net = network(Config.of("maml++", "omniglot", method="metanet")).module
    assert [sum(p.numel() for p in of) for of in (net.embedder, net.base)] == [152_448] * 2
    with pytest.raises(UserError, match="--image-size is 7 with --method metanet: its networks"):
        network(config("metanet", image_size=7))


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
        plain_lstm(net.d[i > 4], [g[i].flatten() for g in of_u]).view(weight.shape)
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


def plain_meta(weights, fast, x):
    """Key and logits of an image."""
    x = x.clone(memory_format=torch.contiguous_format).view(1, 1, 14, 14)
    for i in range(5):
        slow = F.conv2d(x, weights[i], padding=1)
        x = slow.relu() if fast is None else slow.relu() + F.conv2d(x, fast[i], padding=1).relu()
        x = F.max_pool2d(x, 2) if i < 3 else x
    h = x.flatten(2).max(2).values
    h = h @ (weights[5] if fast is None else weights[5] + fast[5]).T
    last = weights[6] if fast is None or len(fast) == 6 else weights[6] + fast[6]
    return h, h @ last.T


def plain_lstm(d, gradients):
    """Of gradients [P] of the images in turn, a weight each."""
    w, u, b, c = (getattr(d.lstm, f"{n}_l0") for n in "weight_ih weight_hh bias_ih bias_hh".split())
    h = cell = torch.zeros(len(gradients[0]), 20, dtype=torch.float64)
    for g in gradients:
        i, f, new, o = (told(g) @ w.T + b + h @ u.T + c).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * new.tanh()
        h = o.sigmoid() * cell.tanh()
    return (h @ d.out.weight.T)[:, 0]


def test_meta_networks_without_fast_weights_are_a_plain_network() -> None:
    cfg = config("metanet")
    model, params, episode, running = problem(cfg)
    theta = dict(zip(model.shapes, params.theta.split(model.sizes), strict=True))
    for name in ("d.0.out.weight", "d.1.out.weight", "m.0.4.weight", "m.1.4.weight"):
        theta[name].zero_()
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=1)
    base = [theta[f"base.{i}"].view(model.shapes[f"base.{i}"]) for i in range(7)]
    for t in range(2):
        rows = [plain_meta(base, None, one)[1][0] for one in episode.target_x[t]]
        close(found[t], torch.stack(rows))
