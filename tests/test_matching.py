"""Matching networks in context, and by sums of cosines, against ordinary torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engine import meta
from engine.errors import UserError
from engine.methods import beside, heads
from engine.methods.loops import loop
from engine.unroll import total
from tests import plain_loop
from tests.inner import problem
from tests.test_methods import close, config


def by_sums(h_s, y, h_q, ways, tau):
    """log p(w|x) as Ravi & Larochelle have it."""
    cosines = tau * F.cosine_similarity(h_q.unsqueeze(1), h_s.unsqueeze(0), dim=2)
    return torch.stack([cosines[:, y == w].sum(1) for w in range(ways)], 1).log_softmax(1)


def in_context(own, h_s, h_q, steps):
    """g and f of one task by torch's LSTMs."""
    width = h_s.shape[1]
    gates = 4 * width
    parts = own.split([gates * 2 * width, gates] * 2 + [gates * 3 * width, gates])
    weights = [part.view(-1, gates).T if i % 2 == 0 else part for i, part in enumerate(parts)]
    of_lstm = {}
    for i, end in enumerate(("l0", "l0_reverse")):
        of_lstm |= {f"weight_ih_{end}": weights[2 * i][:, :width]}
        of_lstm |= {f"weight_hh_{end}": weights[2 * i][:, width:]}
        of_lstm |= {f"bias_ih_{end}": weights[2 * i + 1], f"bias_hh_{end}": torch.zeros(gates)}
    lstm = torch.nn.LSTM(width, width, bidirectional=True, dtype=torch.float64)
    of_lstm = {name: value.double() for name, value in of_lstm.items()}
    both, _ = torch.func.functional_call(lstm, of_lstm, (h_s,))
    g = both[:, :width] + both[:, width:] + h_s
    h = cell = torch.zeros_like(h_q)
    for _ in range(steps):
        read = (h @ g.T).softmax(1) @ g
        of_gates = torch.cat([h_q, h, read], 1) @ weights[4].T + weights[5]
        i, f, c, o = of_gates.chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * c.tanh()
        h = o.sigmoid() * cell.tanh() + h_q
    return g, h


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("class_scores", ["attention", "sum"])
@pytest.mark.parametrize("context", [0, 1, 3])
def test_gradients_are_those_of_ordinary_torch(context, class_scores) -> None:
    options = {"context": context, "class_scores": class_scores, "temperature": 3.0}
    cfg = config("matching", downsample="stride", **options)
    model, params, episode, running = problem(cfg)
    own = loop(cfg, model)
    found = total([own.adjoint(model, params, episode, [0.5], True)])
    shared, numbers = beside.split(model, params)
    theta, row, numbers = (
        t.clone().requires_grad_() for t in (shared.theta, shared.norm[0], numbers - 1)
    )
    log_p = by_sums if class_scores == "sum" else plain_loop.by_attention
    answers, loss = [], 0
    for x, y, target_x, target_y in zip(*vars(episode).values(), strict=True):
        h = plain_loop.features(
            model, plain_loop.named(model, theta), row, torch.cat([x, target_x])
        )
        h_s, h_q = h[: len(y)], h[len(y) :]
        if context:
            h_s, h_q = in_context(numbers + 1, h_s, h_q, context)
        answers.append(log_p(h_s, y, h_q, 3, 3.0))
        loss = loss + 0.5 * F.nll_loss(answers[-1], target_y)
    exact = torch.autograd.grad(loss, [theta, row, numbers], materialize_grads=True)
    close(found.loss, loss.detach())
    close(found.logits.log_softmax(2), torch.stack(answers).detach())
    close(found.gradient.theta, exact[0])
    close(found.gradient.norm[0], torch.cat(exact[1:]))
    predicted = own.adapt_and_predict(model, params, running, episode, steps=1)
    close(predicted.log_softmax(2), torch.stack(answers).detach())


def test_sums_and_shares_are_the_same_for_one_shot() -> None:
    h_s, h_q = (torch.randn(2, n, 6, dtype=torch.float64) for n in (3, 4))
    labels = torch.tensor([[0, 1, 2], [2, 0, 1]])
    a, b = (heads.Matching(2.0, s).fwd(h_s, labels, h_q, 3)[0] for s in (False, True))
    close(a.log_softmax(2), b.log_softmax(2))


def test_context_begins_small_and_is_learned() -> None:
    cfg = config("matching", context=2, downsample="stride", norm_gains="fixed")
    state = meta.init_state(cfg)
    numbers = state.params.norm[0, 16:]
    assert numbers.shape == (28 * 16 + 12 * 4,) and numbers.abs().max() <= 0.5
    assert numbers.unique().numel() > 400
    model, _, episode, _ = problem(cfg)
    episode = episode.map(lambda v: v.float() if v.is_floating_point() else v)
    after, _ = meta.meta_step(state, episode, cfg)
    moved = (after.params.norm - state.params.norm)[0]
    assert (moved[16:] != 0).float().mean() > 0.9
    gains, biases = moved[:16].view(2, 2, 4).unbind(1)
    assert not gains.any() and biases.any()


@pytest.mark.parametrize(("name", "wrong", "words"), [
    ("matching", {"context": -1}, "--context is -1: give a number >= 0"),
    ("matching", {"class_scores": "mean"}, "--class-scores is 'mean': choose one of attention"),
    ("protonet", {"context": 1}, "--context is 1 with --method protonet, which has none: leave it"),
    ("maml", {"class_scores": "sum"}, "--class-scores is sum with --method maml, which has none"),
])  # fmt: skip
def test_what_contradicts_matching_is_one_line(name, wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        config(name, **wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)
