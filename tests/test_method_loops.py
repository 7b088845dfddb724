"""Methods with an inner loop of their own against ordinary torch, and by their neutral values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from engine import meta
from engine.errors import UserError
from engine.methods import beside, lstm_rule
from engine.methods.imaml_loop import solved
from engine.methods.loops import loop
from engine.methods.reptile_loop import minibatches
from engine.models import network
from engine.models.interface import Params
from engine.unroll import total
from tests import plain_loop
from tests.test_adjoint import random_problem
from tests.test_meta import random_episode
from tests.test_methods import close, config, two_shots

pytestmark = pytest.mark.usefixtures("backend")


def problem(cfg, seed: int = 0):
    """As of test_methods, with two shots and numbers of the method's own, none of them 0."""
    model = network(cfg)
    params, episode, running = random_problem(model, cfg.steps, cfg.tasks, 1, seed)
    own = torch.rand(1, beside.width(cfg, model), dtype=torch.float64) + 0.5
    return (
        model,
        params._replace(norm=torch.cat([params.norm, own], 1)),
        two_shots(episode),
        running,
    )


def reptile(**explicit):
    given = {"train_shots": 2, "steps": 3, "eval_steps": 3, "inner_rate": 0.02}
    return config("reptile", **given | {"inner_batch": 4, "eval_batch": 4} | explicit)


def leaves(model, params):
    """Of one task: what the inner loop changes, by name, and the row; and what is beside them."""
    shared, own = beside.split(model, params)
    named = plain_loop.named(model, shared.theta)
    return {n: p.clone().requires_grad_() for n, p in named.items()}, shared.norm[0].clone(), own


def plain_reptile(cfg, model, params, x, y):
    """One task by torch.optim: φ_K, the row after it, and Adam's second moment of both."""
    weights, row, own = leaves(model, params)
    row.requires_grad_()
    everything = [*weights.values(), row]
    adam = cfg.inner_optimizer == "adam"
    if adam:
        optimizer = torch.optim.Adam(everything, cfg.inner_rate, betas=(0.0, 0.999))
        second, seen = own[:-1], own[-1]
        moments = plain_loop.named(model, second[: sum(model.sizes)]) | {
            "row": second[sum(model.sizes) :]
        }
        for p, v in zip(everything, moments.values(), strict=True):
            optimizer.state[p] = {"step": seen.clone(), "exp_avg": torch.zeros_like(p)}
            optimizer.state[p]["exp_avg_sq"] = v.clone()
    else:
        optimizer = torch.optim.SGD(everything, cfg.inner_rate)
    for taken in minibatches(len(x), cfg.inner_batch, cfg.steps, own[-1]):
        optimizer.zero_grad()
        logits = plain_loop.logits_of(model, weights, row, x[taken])
        F.cross_entropy(logits, y[taken]).backward()
        optimizer.step()
    moments = [optimizer.state[p]["exp_avg_sq"] for p in everything] if adam else None
    return [p.detach() for p in everything], moments


def flat(tensors) -> torch.Tensor:
    """Of a network's, filters being NHWC, and what follows them."""
    return torch.cat([(t.permute(0, 2, 3, 1) if t.dim() == 4 else t).flatten() for t in tensors])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_reptile_is_the_plain_loop(downsample, optimizer) -> None:
    cfg = reptile(downsample=downsample, inner_optimizer=optimizer)
    model, params, episode, running = problem(cfg)
    params.norm[0, -1] = 7.0  # steps before
    own = loop(cfg, model)
    found = own.adjoint(model, params, episode, [0.0, 0.0, 0.25], False)
    start = torch.cat([params.theta, params.norm[0]])
    end, logits = sum(model.sizes), []
    for t in range(cfg.tasks):
        x, y = episode.support_x[t], episode.support_y[t]
        after, second = plain_reptile(cfg, model, params, x, y)
        moved = 0.25 * (start[: len(flat(after))] - flat(after))
        close(found.gradient.theta[t], moved[:end])
        close(found.gradient.norm[t, 0, : 2 * model.stat_width], moved[end:])
        state = found.gradient.norm[t, 0, 2 * model.stat_width :]
        if second is not None:
            close(state[:-1], flat(second))
        assert state[-1] == 10
        weights = dict(zip(model.shapes, after, strict=False))
        logits.append(plain_loop.logits_of(model, weights, after[-1], episode.target_x[t]))
    close(found.logits, torch.stack(logits))
    losses = F.cross_entropy(found.logits.mT, episode.target_y, reduction="none").mean(1)
    close(found.loss, 0.25 * losses)
    assert found.rows == (0, 1, 2) and not found.gradient.rates.any()
    predicted = own.adapt_and_predict(model, params, running, episode, steps=3)
    close(predicted, found.logits)


def test_reptile_at_test_normalises_each_target_with_the_support_set() -> None:
    cfg = reptile()
    model, params, episode, running = problem(cfg)
    own, options = loop(cfg, model), {"steps": 3, "protocol": "inductive"}
    found = own.adapt_and_predict(model, params, running, episode, **options)
    for t in range(cfg.tasks):
        x = episode.support_x[t]
        after, _ = plain_reptile(cfg, model, params, x, episode.support_y[t])
        weights = dict(zip(model.shapes, after, strict=False))
        for i, target in enumerate(episode.target_x[t]):
            both = torch.cat([x, target.unsqueeze(0)])
            close(found[t, i], plain_loop.logits_of(model, weights, after[-1], both)[-1])
    each = own.adapt_and_predict(model, params, running, episode, every=True, **options)
    assert torch.equal(each[-1], found) and not torch.equal(each[0], found)


def test_reptile_of_one_step_of_gradient_descent_is_joint_training() -> None:
    """θ − φ_1 is α times the gradient of the loss at θ, of gains and biases too."""
    cfg = reptile(steps=1, inner_optimizer="sgd", inner_batch=0)
    model, params, episode, _ = problem(cfg)
    found = total([loop(cfg, model).adjoint(model, params, episode, [1.0], False)])
    weights, row, _ = leaves(model, params)
    row.requires_grad_()
    joint = sum(
        F.cross_entropy(plain_loop.logits_of(model, weights, row, x), y)
        for x, y in zip(episode.support_x, episode.support_y, strict=True)
    )
    exact = torch.autograd.grad(joint, [*weights.values(), row])
    ours = torch.cat([found.gradient.theta, found.gradient.norm[0, : len(row)]])
    close(ours, cfg.inner_rate * flat(exact))


def test_an_iteration_of_reptile_goes_a_part_of_the_way_to_where_the_tasks_ended() -> None:
    cfg = reptile(lr=0.8, min_lr=0.2, tasks=3)
    assert [round(meta.learning_rate(e, cfg), 10) for e in range(4)] == [0.8, 0.65, 0.5, 0.35]
    before = meta.init_state(cfg)._replace(iteration=2 * cfg.iterations)
    episode = two_shots(random_episode(cfg))
    gradient = meta.meta_gradient(before, episode, cfg).gradient
    after, _ = meta.meta_step(before, episode, cfg)
    torch.testing.assert_close(after.params.theta, before.params.theta - 0.5 * gradient.theta)
    width = 2 * network(cfg).stat_width
    moved = before.params.norm[:, :width] - 0.5 * gradient.norm[:, :width]
    torch.testing.assert_close(after.params.norm[:, :width], moved)
    assert torch.equal(after.params.norm[:, width:], gradient.norm[:, width:] / 3)
    assert after.params.norm[0, -1] == 3 and after.params.norm[0, width:].min() >= 0
    assert torch.equal(after.params.rates, before.params.rates)
    assert not any(moment.any() for moment in (*after.first, *after.second))


def test_minibatches_are_passes_without_replacement_that_run_on() -> None:
    seen = torch.tensor(3.0)
    places = minibatches(5, 3, 5, seen)
    assert places.shape == (5, 3)
    for each in places.flatten().split(5):
        assert sorted(each.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(places, minibatches(5, 3, 6, seen)[:5])
    others = [minibatches(5, 3, 5, torch.tensor(float(t))) for t in range(200)]
    counts = torch.stack(others)[:, 0, 0].bincount(minlength=5)
    assert counts.min() > 20, counts  # 40 of each are expected


@pytest.mark.parametrize(("wrong", "words"), [
    ({"inner_batch": -1}, "--inner-batch is -1"),
    ({"optimizer": "adam"}, "--optimizer is adam with --method reptile, which is --optimizer sgd"),
    ({"norm_statistics": "running"}, "--norm-statistics is running with --method reptile"),
    ({"temperature": 2.0}, "--temperature is 2.0 with --method reptile, which has none"),
])  # fmt: skip
def test_what_contradicts_reptile_is_one_line(wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        reptile(**wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_reptiles_alone_is_refused_elsewhere() -> None:
    for name, value in {"inner_batch": 3, "eval_batch": 3, "inner_optimizer": "adam"}.items():
        with pytest.raises(UserError, match="which has none: leave it out, or give --method rept"):
            config("boil", **{name: value})


def imaml(**explicit):
    return config("imaml", **{"steps": 3, "inner_rate": 0.2, "proximal": 3.0} | explicit)


def plain_imaml(cfg, model, params, task, solve):
    """The loss of a task and its gradients in θ and the row; `solve` is given v → (I + H/λ) v and
    ∇L_t."""
    x, y, target_x, target_y = task
    theta, row = params.theta, params.norm[0].clone().requires_grad_()

    def loss_of(phi, x, y):
        return F.cross_entropy(plain_loop.logits_of(model, plain_loop.named(model, phi), row, x), y)

    phi = theta
    for _ in range(cfg.steps):
        at = phi.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(at, x, y), at)
        pull = cfg.inner_rate * cfg.proximal
        phi = (phi - cfg.inner_rate * g + pull * theta) / (1 + pull)
    at = phi.detach().requires_grad_()
    target = loss_of(at, target_x, target_y)
    v, d_row = torch.autograd.grad(target, [at, row])
    (g,) = torch.autograd.grad(loss_of(at, x, y), at, create_graph=True)

    def product(p):
        return p + torch.autograd.grad(g @ p, at, retain_graph=True)[0] / cfg.proximal

    u = solve(product, v)
    (mixed,) = torch.autograd.grad(g @ u, row)
    return target.detach(), u, d_row - mixed / cfg.proximal


def conjugate_gradients(product, v):
    """Two of them."""
    x, r, p = torch.zeros_like(v), v, v
    for _ in range(2):
        along = product(p)
        step = (r @ r) / (p @ along)
        x, new = x + step * p, r - step * along
        p, r = new + (new @ new) / (r @ r) * p, new
    return x


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("cg_steps", [2, 20])
def test_imaml_solves_for_the_gradient_at_the_end_of_the_loop(cg_steps, downsample) -> None:
    """As so many plain conjugate gradients, and after many of them the solution itself."""
    cfg = imaml(proximal=20.0, cg_steps=cg_steps, downsample=downsample)
    model, params, episode, running = problem(cfg)
    own = loop(cfg, model)
    found = own.adjoint(model, params, episode, [0.0, 0.0, 0.5], True)
    for t, task in enumerate(zip(*vars(episode).values(), strict=True)):
        ours = 2 * found.gradient.theta[t]

        def checked(product, v, ours=ours):
            close(product(ours), v)
            return ours

        solve = checked if cg_steps == 20 else conjugate_gradients
        loss, u, d_row = plain_imaml(cfg, model, params, task, solve)
        close(found.loss[t], 0.5 * loss)
        close(ours, u)
        close(found.gradient.norm[t, 0], 0.5 * d_row)
    predicted = own.adapt_and_predict(model, params, running, episode, steps=3)
    assert predicted.shape == found.logits.shape
    close(
        found.loss, 0.5 * F.cross_entropy(predicted.mT, episode.target_y, reduction="none").mean(1)
    )
    first = own.adjoint(model, params, episode, [0.0, 0.0, 0.5], False).gradient
    assert not torch.allclose(first.theta, found.gradient.theta, rtol=1e-3)


def test_imaml_of_a_proximal_term_without_end_has_the_target_gradient_at_theta() -> None:
    cfg = imaml(proximal=1e13, cg_steps=2)
    model, params, episode, _ = problem(cfg)
    found = loop(cfg, model).adjoint(model, params, episode, [0.0, 0.0, 1.0], True)
    theta = params.theta.expand(cfg.tasks, -1)
    target = model.prepare(episode.target_x, 1)
    at_theta = target.loss_and_gradient(theta, params.norm[0], episode.target_y)
    close(found.loss, at_theta.loss)
    close(found.gradient.theta, at_theta.gradient)
    close(found.gradient.norm[:, 0], at_theta.norm_gradient)


def test_a_direction_without_positive_curvature_ends_conjugate_gradients() -> None:
    """Tasks: of positive curvature; of none in the first direction; of none in the second."""
    diagonal = torch.tensor([[1.0, 2.0], [-3.0, -3.0], [3.0, -3.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    product = lambda p: (diagonal * p, 2 * p)  # noqa: E731
    found, of_row = solved(product, target, 1.0, 2)
    close(found[0], target[0] / (1 + diagonal[0]))
    assert torch.equal(found[1], target[1])
    close(found[2], target[2] * 5 / 14)  # one step: (4 + 1)/(4·4 − 2·1)
    close(of_row, 2 * found)
    found, _ = solved(product, torch.zeros_like(target), 1.0, 3)
    assert torch.equal(found, torch.zeros_like(target))


@pytest.mark.parametrize(("wrong", "words"), [
    ({"proximal": 0.0}, "--proximal is 0 with --method imaml: give more"),
    ({"cg_steps": 0}, "--cg-steps is 0 with --method imaml: give more"),
    ({"proximal": -1.0}, "--proximal is -1.0: give a number >= 0"),
    ({"rates": "learned"}, "--rates is learned with --method imaml, which is --rates fixed"),
])  # fmt: skip
def test_what_contradicts_imaml_is_one_line(wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        imaml(**wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="which has none: leave it out, or give --method imaml"):
        config("maml", proximal=1.0)


def lstm(**explicit):
    return config("lstm", **{"steps": 3, "inner_rate": 0.1} | explicit)


def plain_lstm(cfg, model, params, task):
    """The loss of a task after K steps of an `nn.LSTMCell` and two gates, and its gradients in c_0
    and in the rule's numbers."""
    x, y, target_x, target_y = task
    shared, own = beside.split(model, params)
    start = torch.cat([shared.theta, shared.norm[0]]).requires_grad_()
    own = own.clone().requires_grad_()
    weight, bias, of_f, of_i = own.split(lstm_rule.SIZES)
    cell = torch.nn.LSTMCell(4, 20, dtype=torch.float64)
    # of input, forget and output gate and candidate; torch has the candidate third
    order = torch.arange(80).view(4, 20)[[0, 1, 3, 2]].flatten()
    by_torch, bias = weight.view(80, 24)[order], bias[order]
    of_cell = {"weight_ih": by_torch[:, :4], "weight_hh": by_torch[:, 4:], "bias_ih": bias}
    of_cell["bias_hh"] = torch.zeros_like(bias)

    def loss_of(c, x, y):
        theta, row = c.split([len(shared.theta), shared.norm.shape[1]])
        return F.cross_entropy(
            plain_loop.logits_of(model, plain_loop.named(model, theta), row, x), y
        )

    def rho(u):
        small = u.abs() < math.exp(-10)
        log = torch.where(small, -1.0, u.abs().log() / 10)
        return torch.stack([log, torch.where(small, math.exp(10) * u, u.sign())], -1)

    c, gate_f, gate_i = start, torch.zeros_like(start), torch.zeros_like(start)
    hidden = [torch.zeros(len(c), 20, dtype=c.dtype)] * 2
    for _ in range(cfg.steps):
        at = c.detach().requires_grad_()
        loss = loss_of(at, x, y)
        (g,) = torch.autograd.grad(loss, at)
        seen = torch.cat([rho(loss.detach()).expand(len(c), -1), rho(g)], 1)
        hidden = torch.func.functional_call(cell, of_cell, (seen, tuple(hidden)))
        gate_f = torch.cat([hidden[0], c[:, None], gate_f[:, None]], 1) @ of_f[:-1] + of_f[-1]
        gate_i = torch.cat([hidden[0], c[:, None], gate_i[:, None]], 1) @ of_i[:-1] + of_i[-1]
        c = gate_f.sigmoid() * c - gate_i.sigmoid() * g
    target = loss_of(c, target_x, target_y)
    return target.detach(), *torch.autograd.grad(target, [start, own])


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("together", [50, 2048])
def test_the_lstm_is_the_plain_one(together, downsample, monkeypatch) -> None:
    monkeypatch.setattr(lstm_rule, "_TOGETHER", together)
    cfg = lstm(downsample=downsample)
    model, params, episode, running = problem(cfg)
    width = 2 * model.stat_width
    generator = torch.Generator().manual_seed(0)
    own = lstm_rule.initial(0.1, generator).double()
    own += 0.3 * torch.randn(own.shape, generator=generator, dtype=own.dtype)
    params = params._replace(norm=torch.cat([params.norm[:, :width], own[None]], 1))
    found = loop(cfg, model).adjoint(model, params, episode, [0.0, 0.0, 0.5], False)
    for t, task in enumerate(zip(*vars(episode).values(), strict=True)):
        loss, d_start, d_own = plain_lstm(cfg, model, params, task)
        close(found.loss[t], 0.5 * loss)
        close(found.gradient.theta[t], 0.5 * d_start[:-width])
        close(found.gradient.norm[t, 0], 0.5 * torch.cat([d_start[-width:], d_own]))
    predicted = loop(cfg, model).adapt_and_predict(model, params, running, episode, steps=3)
    close(predicted, found.logits)


def test_a_small_gradient_goes_in_by_its_size() -> None:
    small = torch.tensor([0.0, math.exp(-11), -math.exp(-11), -1.0, math.exp(-5), 1.0])
    expected = [[-1, -1, -1, 0, -0.5, 0], [0, math.exp(-1), -math.exp(-1), -1, 1, 1]]
    torch.testing.assert_close(lstm_rule.preprocessed(small), torch.tensor(expected))


def test_an_lstm_without_weights_is_gradient_descent() -> None:
    cfg = lstm(steps=2)
    model, params, episode, _ = problem(cfg)
    own = torch.zeros(sum(lstm_rule.SIZES), dtype=torch.float64)
    own[-1], own[-1 - lstm_rule.SIZES[-1]] = math.log(0.2 / 0.8), 50.0
    width = 2 * model.stat_width
    params = params._replace(norm=torch.cat([params.norm[:, :width], own[None]], 1))
    (*_, last) = loop(cfg, model).inner_loop(model, params, episode.support_x, episode.support_y, 2)
    for t in range(cfg.tasks):
        weights, row, _ = leaves(model, params)
        row.requires_grad_()
        optimizer = torch.optim.SGD([*weights.values(), row], 0.2)
        for _ in range(2):
            optimizer.zero_grad()
            logits = plain_loop.logits_of(model, weights, row, episode.support_x[t])
            F.cross_entropy(logits, episode.support_y[t]).backward()
            optimizer.step()
        after = flat([p.detach() for p in (*weights.values(), row)])
        close(torch.cat([last.adapted[t], last.row[t]]), after)


def test_the_lstm_begins_near_gradient_descent_of_the_rate_that_is_given() -> None:
    cfg = config("lstm", steps=2)
    own = meta.init_state(cfg).params.norm[0, 2 * network(cfg).stat_width :]
    assert own.shape == (2046,)
    *weights, of_f, of_i = own.split(lstm_rule.SIZES)
    assert all(part.abs().max() <= 0.01 for part in (*weights, of_f[:-1], of_i[:-1]))
    assert 4 <= of_f[-1] <= 5 and -5 <= of_i[-1] <= -4
    other = meta.init_state(lstm(inner_rate=0.5)).params.norm[0, -1]
    assert other.abs() <= 0.5


def test_the_norm_of_the_whole_gradient_is_bounded() -> None:
    gradient = Params(torch.tensor([3.0]), torch.tensor([[0.0]]), torch.tensor([[4.0]]))
    halved = meta.within(gradient, 2.5)
    assert [g.item() for g in halved] == [1.5, 0.0, 2.0]
    assert all(map(torch.equal, meta.within(gradient, 6.0), gradient))
    cfg = config("maml", steps=1, optimizer="sgd", lr=1.0, max_norm=0.01)
    state = meta.init_state(cfg)
    after, _ = meta.meta_step(state, random_episode(cfg), cfg)
    moved = [a - b for a, b in zip(after.params, state.params, strict=True)]
    assert 0.0099 < torch.cat([m.flatten() for m in moved]).norm() < 0.0101


@pytest.mark.parametrize(("wrong", "words"), [
    ({"inner_rate": 1.0}, "--inner-rate is 1.0 with --method lstm, whose rate is a sigmoid"),
    ({"max_norm": -1.0}, "--max-norm is -1.0: give a number >= 0"),
    ({"norm_gains": "fixed"}, "--norm-gains is fixed with --method lstm"),
    ({"first_order_epochs": 1}, "--first-order-epochs is 1 with --method lstm"),
])  # fmt: skip
def test_what_contradicts_the_lstm_is_one_line(wrong, words) -> None:
    with pytest.raises(UserError) as caught:
        lstm(**wrong)
    assert words in str(caught.value) and "\n" not in str(caught.value)
