"""The learner as users have it: its gradients, its values, and what it says of mistakes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import unroll
from engine.episodes import Episode
from engine.errors import UserError
from engine.learner import Learner
from engine.models.backbone import Backbone
from tests.foreign import PROBLEMS, ResNet, plain_loop, problem

WEIGHTS = [0.2, 0.3, 0.5]
BACKBONE = Backbone(2, 12, 4, 2, 3)


def learner_of(name: str, **options) -> tuple[Learner, Episode]:
    made = problem(name)
    torch.manual_seed(0)
    learner = Learner(made.module, made.criterion, steps=3, **options)
    with torch.no_grad():  # rows and rates that differ
        learner.norm.add_(torch.randn_like(learner.norm), alpha=0.1)
        learner.rates.mul_(torch.rand_like(learner.rates))
    return learner, made.episode


def pictures(tasks: int = 3, n: int = 6, side: int = 12, seed: int = 0) -> Episode:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, 2 * n, side, side, 2, generator=g).permute(0, 1, 4, 2, 3)
    y = (torch.arange(n) % 3).repeat(tasks, 1)
    return Episode(x[:, :n], y, x[:, n:], y)


@pytest.mark.parametrize("name", PROBLEMS)
def test_backward_fills_the_gradients(name):
    learner, episode = learner_of(name)
    torch.manual_seed(3)
    output = learner(episode, WEIGHTS)
    output.loss.backward()
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH):
        loss, gradient, _ = plain_loop(learner.model, learner.params(), episode, WEIGHTS, 2)
    tasks = episode.tasks
    torch.testing.assert_close(output.loss.detach(), loss / tasks, rtol=1e-10, atol=1e-12)
    own = torch.cat([p.grad.flatten() for p in learner._own(learner.model.shapes)])
    for mine, theirs in zip((own, learner.norm.grad, learner.rates.grad), gradient, strict=True):
        torch.testing.assert_close(mine, theirs / tasks, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{"adapt": "head"}, {"adapt": "body"}, {"norm": "shared"}])
def test_what_the_inner_loop_leaves_is_learned_by_the_outer(options):
    learner, episode = learner_of("resnet", **options)
    learner(episode, WEIGHTS).loss.backward()
    with torch.no_grad():
        eps = 1e-6
        for parameter in learner.parameters():
            if not parameter.requires_grad:
                continue
            direction = torch.randn_like(parameter)
            values = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * eps)
                values.append(learner(episode, WEIGHTS).loss)
                parameter.sub_(direction, alpha=sign * eps)
            slope = (values[0] - values[1]) / (2 * eps)
            found = (parameter.grad * direction).sum()
            torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


def test_the_loss_of_every_step_is_told():
    learner, episode = learner_of("mlp")
    output = learner(episode, [0.5, 0.0, 0.5])
    assert output.per_step.shape == (2, 3) and output.per_step[:, 1].isnan().all()
    mean = (0.5 * output.per_step[:, [0, 2]]).sum(1).mean()
    torch.testing.assert_close(output.loss.detach(), mean)
    assert output.predictions.shape == episode.target_y.shape


def test_first_order_and_fixed_rates():
    learner, episode = learner_of("mlp", rates="fixed")
    learner(episode, order=1).loss.backward()
    first = learner.module[0].weight.grad.clone()
    assert learner.rates.grad is None and not learner.rates.requires_grad
    learner.zero_grad()
    learner(episode, order=2).loss.backward()
    assert not torch.equal(first, learner.module[0].weight.grad)


def test_any_optimiser_scaler_and_clipping_work():
    learner, episode = learner_of("resnet")
    optimizer = torch.optim.AdamW(learner.parameters(), 5e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = learner(episode).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_gradients_accumulate_and_have_no_second_derivative():
    learner, episode = learner_of("mlp")
    learner(episode).loss.backward()
    once = learner.rates.grad.clone()
    (3 * learner(episode).loss).backward()
    torch.testing.assert_close(learner.rates.grad, 4 * once)
    (gradient,) = torch.autograd.grad(learner(episode).loss, learner.rates, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["resnet", "transformer", "dict", "lstm", "mlp"])
def test_adapted_is_a_value_and_a_module(name):
    learner, episode = learner_of(name)
    state = {n: v.clone() for n, v in learner.state_dict().items()}
    fields = [getattr(episode, f) for f in ("support_x", "support_y", "target_x")]
    x, y, new = ({n: v[0] for n, v in f.items()} if isinstance(f, dict) else f[0] for f in fields)
    adapted = learner.adapt(x, y)
    together = adapted(new)
    module = adapted.module()
    by_module = module(**new) if isinstance(new, dict) else module(new)
    torch.testing.assert_close(by_module, together, rtol=1e-9, atol=1e-12)
    assert list(adapted.state_dict()) == list(learner.adapted_names)
    last = {n: v[-1:] for n, v in new.items()} if isinstance(new, dict) else new[-1:]
    torch.testing.assert_close(adapted(last), together[-1:], rtol=1e-9, atol=1e-12)
    assert all(torch.equal(v, state[n]) for n, v in learner.state_dict().items())
    assert not torch.equal(learner.adapt(x, y, steps=1)(new), together)


def test_evaluation_over_tasks():
    learner, episode = learner_of("resnet")
    score = learner.evaluate([episode, episode])
    predictions = learner.predict(episode)
    right = (predictions.argmax(-1) == episode.target_y).double().mean().item()
    assert score.tasks == 4 and score.accuracy == pytest.approx(right)
    loss = learner.evaluate([episode], "loss", protocol="inductive", steps=5)
    assert loss.tasks == 2 and loss.accuracy > 0
    own = learner.evaluate([episode], lambda p, y: (p.argmax(-1) == y).double().mean())
    assert own.accuracy == pytest.approx(right)
    assert learner.training


def test_running_statistics_follow_training_and_serve_evaluation():
    learner, episode = learner_of("resnet", norm_statistics="running")
    before = learner.predict(episode)
    learner.eval()
    learner(episode)
    assert (learner.running_mean == 0).all()
    learner.train()
    learner(episode)
    assert (learner.running_mean != 0).any()
    assert not torch.equal(learner.predict(episode), before)


def test_state_dict_deepcopy_pickle_and_to():
    learner, episode = learner_of("resnet")
    again, _ = learner_of("resnet")
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    again.load_state_dict(learner.state_dict())
    expected = learner(episode, WEIGHTS).loss
    for other in (again, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert other(episode, WEIGHTS).loss == expected
        with torch.no_grad():
            other.module[0].weight.add_(1)
        assert other(episode, WEIGHTS).loss != expected
    assert learner(episode, WEIGHTS).loss == expected
    single = copy.deepcopy(learner).float()
    to_float = lambda v: v.float() if v.is_floating_point() else v  # noqa: E731
    torch.testing.assert_close(
        single(episode.map(to_float), WEIGHTS).loss, expected.float(), rtol=1e-4, atol=1e-5
    )


def test_the_backbone_takes_the_fused_passes_and_has_the_engines_bits():
    torch.manual_seed(5)
    learner = Learner(BACKBONE, steps=2, rate=0.1)
    state = BACKBONE.init(2, 2, 0.1, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(learner.params(), state, strict=True))
    episode = pictures()
    output = learner(episode, [0.25, 0.75])
    output.loss.backward()
    found = unroll.total([unroll.adjoint(BACKBONE, state, episode, [0.25, 0.75], True)])
    grads = learner.theta.grad, learner.norm.grad, learner.rates.grad
    for mine, theirs in zip(grads, found.gradient, strict=True):
        assert torch.equal(mine, theirs / 3)
    assert list(learner.adapted_names)[-1] == "linear.bias"
    adapted = learner.adapt(episode.support_x[0], episode.support_y[0])
    assert adapted(episode.target_x[0]).shape == (6, 3)
    with pytest.raises(UserError, match="a Backbone is no nn.Module"):
        adapted.module()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0: give a number >= 1"),
        ({"rate": -1.0}, "rate is -1.0: give a number > 0"),
        ({"rates": "free"}, "rates is 'free': give one of learned, fixed, per-parameter"),
        ({"norm": "none"}, "norm is 'none': give one of per-step, shared"),
        ({"norm_statistics": "x"}, "norm_statistics is 'x'"),
    ],
)
def test_settings_that_are_not_allowed(options, message):
    with pytest.raises(UserError, match=message):
        Learner(ResNet(), **options)


def test_other_mistakes_are_one_line():
    with pytest.raises(UserError, match="a Backbone has its own loss"):
        Learner(BACKBONE, F.mse_loss)
    learner, episode = learner_of("mlp")
    with pytest.raises(UserError, match=r"weights are \[1.0\]: give 3, one for each inner step"):
        learner(episode, [1.0])
    with pytest.raises(UserError, match="order is 3: give 1 or 2"):
        learner(episode, order=3)
    short = Episode(episode.support_x, episode.support_y, episode.target_x[:1], episode.target_y)
    with pytest.raises(UserError, match="support_x of 2, .* target_x of 1, .* the same number"):
        learner(short)
    with pytest.raises(UserError, match="metric is 'f1': give one of accuracy, loss or a function"):
        learner.evaluate([episode], "f1")
