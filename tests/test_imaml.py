"""iMAML against ordinary torch, and by its neutral value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engine.errors import UserError
from engine.methods.imaml_loop import solved
from engine.methods.loops import loop
from tests import plain_loop
from tests.inner import problem
from tests.test_methods import close, config

pytestmark = pytest.mark.usefixtures("backend")


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


@pytest.mark.parametrize(("cg_steps", "downsample"), [(2, "stride"), (20, "pool")])
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
