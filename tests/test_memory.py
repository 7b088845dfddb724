"""The memory of rare events: what is written to it, and its loss by the plain formula."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from engine import meta
from engine.config import Config
from engine.errors import UserError
from engine.methods import heads
from engine.methods.loops import loop
from engine.models import network
from engine.models.remember import MARGIN, by_turns, stream
from tests.own_networks import alone, by_differences, config, filled, problem
from tests.test_meta import random_episode
from tests.test_methods import close

__all__ = ["alone"]


def test_the_memory_network_is_as_large_as_the_code_has_it() -> None:
    cfg = Config.of("maml++", "omniglot", method="memory")
    assert sum(meta.layout(cfg).params.theta.shape) == 1_930_432
    with pytest.raises(UserError, match="--image-size is 3 with --method memory: its network hal"):
        network(dataclasses.replace(cfg, image_size=3))


def test_a_stream_shows_each_class_once_before_any_twice() -> None:
    assert by_turns(torch.tensor([1, 1, 1, 0, 0, 2])).tolist() == [0, 3, 5, 1, 4, 2]
    assert by_turns(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_what_is_written_to_a_memory() -> None:
    """As a list of (key, value) that grows."""
    q = F.normalize(torch.randn(14, 3, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])
    keys, values, pulls = stream(q, labels, 8)
    entries, merged = [], 0
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8, 10, 12, 9, 11, 13]
    for count, i in enumerate(order):
        if count == 8:
            kept = [(k.clone(), y) for k, y in entries]
        y = int(labels[i])
        of = {True: None, False: None}
        for place, (key, value) in enumerate(entries):
            best = of[value == y]
            if best is None or key @ q[i] > entries[best][0] @ q[i]:
                of[value == y] = place
        expected = sum(
            sign * entries[of[kind]][0]
            for sign, kind in ((1, False), (-1, True))
            if of[kind] is not None
        )
        close(pulls[i], expected + torch.zeros(3, dtype=torch.float64))
        mine, other = of[True], of[False]
        nearest = mine is not None and (
            other is None or entries[mine][0] @ q[i] >= entries[other][0] @ q[i]
        )
        if nearest:
            entries[mine] = F.normalize(entries[mine][0] + q[i], dim=0), y
            merged += 1
        else:
            entries.append((q[i], y))
    assert 2 < merged < 11
    written = values >= 0
    assert values[written].tolist() == [y for _, y in kept]
    close(keys[written], torch.stack([key for key, _ in kept]))


def test_the_loss_of_a_memory_is_the_margin_of_each_image_at_its_time() -> None:
    cfg = config("memory")
    model, params, episode, _ = problem(cfg)
    episode, net = episode.slice(0, 1), filled(model, params.theta)
    x, y, target_x, target_y = (values[0] for values in vars(episode).values())
    found = loop(cfg, model).adjoint(model, params, episode, [1.0], True)
    q = net.queries(torch.cat([x, target_x]))
    keys, values, pulls = stream(q, torch.cat([y, target_y]), len(x))
    margins = [max(0.0, float(a @ b) + MARGIN) - MARGIN for a, b in zip(q, pulls, strict=True)]
    assert abs(float(found.loss) - sum(margins) / len(margins)) < 1e-12
    likeness = q[len(x) :] @ keys.T
    right = torch.stack([likeness[:, values == w].max(1).values for w in range(cfg.ways)], 1)
    close(found.logits[0], right)

    def loss(theta):
        """With the keys as they are."""
        q = filled(model, theta).queries(torch.cat([x, target_x]))
        return ((q * pulls).sum(1) + MARGIN).relu().mean()

    by_differences(model.sizes, params.theta, found.gradient.theta[0], loss)


def test_a_memory_of_one_image_a_class_answers_as_matching_networks_do() -> None:
    cfg = config("memory", ways=4)
    model, params, _, running = problem(cfg)
    episode = random_episode(cfg).map(lambda v: v.double() if v.is_floating_point() else v)
    found = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=1)
    net = filled(model, params.theta)
    for t in range(2):
        h_s, h_q = (net.queries(x[t])[None] for x in (episode.support_x, episode.target_x))
        expected, _ = heads.Matching().fwd(h_s, episode.support_y[t : t + 1], h_q, 4)
        close(found[t], expected[0])
