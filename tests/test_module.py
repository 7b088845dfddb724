"""Any module through the adjoint: float64, against a loop of plain autograd that shares no code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import unroll
from engine.errors import UserError
from engine.models.module import Module
from engine.runtime.workers import over_blocks
from tests.foreign import PROBLEMS, plain_loop, problem, start

WEIGHTS = {"last": [0.0, 0.0, 1.0], "multi": [0.2, 0.3, 0.5]}
NO_VMAP = ("lstm", "uneven")  # torch's vmap knows no LSTM, and no tasks that differ in size


def ours(model: Module, params, episode, weights, order):
    parts = over_blocks(
        lambda block: unroll.adjoint(model, params, block, weights, order == 2),
        episode,
        model,
        order == 2,
    )
    return unroll.total(parts)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    scale = max(float(b.abs().max()) if b.numel() else 0.0, 1e-3)
    assert a.shape == b.shape and float((a - b).abs().max() if a.numel() else 0.0) <= 1e-10 * scale


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_meta_gradients_of_any_module(name, order, memory, vectorize, threads):
    if vectorize and (name in NO_VMAP or name == "dropout"):
        pytest.skip("vmap does not run this, or draws its random numbers in another order")
    made = problem(name)
    model = Module(made.module, made.criterion, memory=memory, vectorize=vectorize)
    params, weights = start(model, 3), WEIGHTS["multi"]
    torch.manual_seed(3)
    found = ours(model, params, made.episode, weights, order)
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH):
        loss, gradient, outputs = plain_loop(model, params, made.episode, weights, order)
    close(found.loss, loss)
    for mine, theirs in zip(found.gradient, gradient, strict=True):
        close(mine, theirs)
    for mine, theirs in zip(found.logits, outputs, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rates", ["learned", "per-parameter"])
@pytest.mark.parametrize(
    "adapt", ["all", "head", "body", lambda name: name.endswith("norm.weight") or "7" in name]
)
def test_what_is_adapted_and_by_which_rates(adapt, rates, weights):
    made = problem("resnet")
    model = Module(made.module, made.criterion, adapt=adapt)
    params = start(model, 3, rates)
    found = ours(model, params, made.episode, WEIGHTS[weights], 2)
    loss, gradient, _ = plain_loop(model, params, made.episode, WEIGHTS[weights], 2)
    close(found.loss, loss)
    for mine, theirs in zip(found.gradient, gradient, strict=True):
        close(mine, theirs)


def test_adjoint_and_autograd_of_the_engine_agree():
    made = problem("resnet", tasks=1)
    model = Module(made.module, made.criterion)
    params = start(model, 3)
    a = unroll.total([unroll.adjoint(model, params, made.episode, WEIGHTS["multi"], True)])
    b = unroll.total([unroll.autograd(model, params, made.episode, WEIGHTS["multi"], True)])
    for mine, theirs in zip(
        (a.loss, *a.gradient, *a.moments), (b.loss, *b.gradient, *b.moments), strict=True
    ):
        close(mine, theirs)


def test_batch_statistics_are_those_of_batch_norm():
    made = problem("resnet", tasks=1)
    model = Module(made.module, made.criterion)
    params = start(model, 1)
    found = unroll.adjoint(model, params, made.episode, [1.0], False)
    norm = nn.BatchNorm2d(4, momentum=1.0).double()
    norm(made.module[0](made.episode.support_x[0]))
    close(found.moments.mean[0, 0, :4], norm.running_mean)
    close(found.moments.var[0, 0, :4], norm.running_var)


def test_which_parameters_are_adapted():
    resnet = problem("resnet").module
    assert list(Module(resnet, F.cross_entropy, adapt="head").shapes) == ["7.weight", "7.bias"]
    body = Module(resnet, F.cross_entropy, adapt="body")
    assert list(body.shared) == ["7.weight", "7.bias"] and "0.weight" in body.shapes
    assert list(body.affine)[:2] == ["1.weight", "1.bias"]
    model = Module(problem("transformer").module, F.cross_entropy)
    assert "out.weight" not in model.shapes and "positions" not in model.shapes


class Frozen(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.requires_grad_(False)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.ReLU(), {}, "no parameter of ReLU is adapted by the inner loop: it has none"),
        (Frozen(), {}, "of Frozen is adapted .*: each of weight, bias is frozen"),
        (nn.Linear(2, 2), {"adapt": lambda n: False}, "leaves weight, bias to the outer loop"),
        (nn.Linear(2, 2), {"adapt": "tail"}, "adapt is 'tail': choose one of all, head, body"),
        (nn.Linear(2, 2), {"memory": "much"}, "memory is 'much': choose one of fast, low"),
        (
            nn.Linear(2, 2),
            {"vectorize": "no"},
            "vectorize is 'no': choose True, False, 'auto' or a number of tasks",
        ),
        (mixed(), {}, "are torch.float32 on cpu and torch.float64 on cpu: they lie in one buffer"),
    ],
)
def test_modules_that_cannot_be_adapted_are_explained(module, options, message):
    with pytest.raises(UserError, match=message):
        Module(module, F.cross_entropy, **options)


@pytest.mark.parametrize("vectorize", [True, False, "auto"])
def test_a_loss_of_many_numbers_is_explained(vectorize):
    made = problem("mlp")
    each = lambda o, y: F.mse_loss(o, y, reduction="none")  # noqa: E731
    model = Module(made.module, each, vectorize=vectorize)
    with pytest.raises(
        UserError, match=r"the loss of a task has shape \[6, 1\]: it must be a tensor"
    ):
        ours(model, start(model, 2), made.episode, [0.0, 1.0], 2)


def test_tiny_networks_go_by_vmap_unless_it_fails(monkeypatch):
    for name, at_once in (("mlp", True), ("lstm", False), ("dropout", False)):
        made = problem(name)
        model = Module(made.module, made.criterion)
        ours(model, start(model, 2), made.episode, [0.0, 1.0], 2)
        assert model._at_once(made.episode.support_x) == at_once
