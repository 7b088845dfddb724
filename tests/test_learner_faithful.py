"""A learner takes a module as its owner has it, and leaves it so: in float64, against plain torch
where there is a figure, else a line that refuses.
"""

from __future__ import annotations

import copy
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import engine
from engine.errors import UserError
from engine.models.module import Module
from kernels.nn import PerStepBatchNorm2d
from tests.foreign import plain_loop, start
from tests.test_module import close, ours

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = [0.5, 0.5]


def episode(tasks: int = 2) -> engine.Episode:
    torch.manual_seed(1)
    x, y = torch.randn(2, tasks, 6, 3, dtype=torch.float64), torch.arange(12 * tasks) % 2
    y = y.view(2, tasks, 6)
    return engine.Episode(x[0], y[0], x[1], y[1])


def mlp(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), *between, nn.Tanh(), nn.Linear(8, 2)).double()


def normed() -> nn.Sequential:
    return mlp(nn.BatchNorm1d(8))


def learner(module: nn.Module, **options) -> engine.Learner:
    return engine.Learner(module, options.pop("loss", F.cross_entropy), steps=2, **options)


def agrees(model: Module, given: engine.Episode) -> None:
    """With the loop of plain torch, as the module is now."""
    params = start(model, 2)
    found = ours(model, params, given, WEIGHTS, 2)
    loss, gradient, _ = plain_loop(model, params, given, WEIGHTS, 2)
    close(found.loss, loss)
    for mine, theirs in zip(found.gradient, gradient, strict=True):
        close(mine, theirs)


def test_no_gradient_comes_of_what_has_none():
    made = learner(mlp())
    output = made(episode(), WEIGHTS)
    assert output.loss.requires_grad
    assert not output.per_step.requires_grad and not output.predictions.requires_grad


@pytest.mark.parametrize("vectorize", [False, True])
def test_running_statistics_normalise_one_s_own_network(vectorize):
    made, given = learner(normed(), norm_statistics="running", vectorize=vectorize), episode()
    adapted = made.adapt(given.support_x[0], given.support_y[0])
    by_loop = made.predict(given, protocol="inductive")[0]
    torch.testing.assert_close(adapted(given.target_x[0]), by_loop, rtol=1e-12, atol=1e-12)


class Words(nn.Module):
    def __init__(self, functional: bool):
        super().__init__()
        self.words = nn.Embedding(7, 8, padding_idx=None if functional else 0)
        self.out, self.functional = nn.Linear(8, 2), functional

    def forward(self, ids: Tensor) -> Tensor:
        found = F.embedding(ids, self.words.weight, padding_idx=0) if self.functional else None
        return self.out((self.words(ids) if found is None else found).mean(1))


@pytest.mark.parametrize("functional", [False, True])
def test_a_padding_index_is_masked_in_every_task(functional):
    torch.manual_seed(0)
    ids, y = torch.randint(7, (2, 3, 6, 4)), torch.arange(36).view(2, 3, 6) % 2
    model = Module(Words(functional).double(), F.cross_entropy)
    agrees(model, engine.Episode(ids[0], y[0], ids[1], y[1]))


@pytest.mark.parametrize("vectorize", [True, 2])
def test_a_padding_index_is_refused_where_tasks_are_to_run_at_once(vectorize):
    ids, y = torch.ones(2, 3, 6, 4, dtype=torch.int64), torch.arange(36).view(2, 3, 6) % 2
    made = learner(Words(False), vectorize=vectorize)
    with pytest.raises(UserError, match=f"vectorize is {vectorize}, and an embedding has"):
        made(engine.Episode(ids[0], y[0], ids[1], y[1]))


class Holder:
    def __init__(self, layer: nn.Module):
        self.layer = layer


class Indirect(nn.Module):
    """Reaches a layer by a way that no copy of the module has."""

    def __init__(self, way: str):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(3, 8), nn.Linear(8, 2), way
        layer = self.a
        self.call = {
            "lambda": lambda x: layer(x),
            "partial": partial(F.linear, weight=layer.weight, bias=layer.bias),
            "method": layer.forward,
            "object": Holder(layer),
            "list": [layer],
        }[way]

    def forward(self, x: Tensor) -> Tensor:
        call = self.call.layer if self.way == "object" else self.call
        return self.b(torch.tanh((call[0] if self.way == "list" else call)(x)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["lambda", "method", "object", "list"])
def test_a_layer_adapts_however_it_is_reached(way, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = Indirect(way).double()
    made = learner(net, vectorize=False)
    given = episode()
    found = made.adapt(given.support_x[0], given.support_y[0]).state_dict()
    direct = nn.Sequential(net.a, nn.Tanh(), net.b)
    wanted = learner(copy.deepcopy(direct)).adapt(given.support_x[0], given.support_y[0])
    for mine, theirs in zip(found.values(), wanted.state_dict().values(), strict=True):
        close(mine, theirs)
    assert not torch.equal(found["a.weight"], net.a.weight)
    before = made(given, WEIGHTS).loss
    torch.testing.assert_close(
        before, learner(copy.deepcopy(direct), vectorize=False)(given, WEIGHTS).loss
    )


class Repeated(nn.Module):
    """One layer and one batch norm, three times: by three names each, or by one."""

    def __init__(self, names: bool, **norm):
        super().__init__()
        torch.manual_seed(0)
        layer, bn, self.head = nn.Linear(3, 3), nn.BatchNorm1d(3, **norm), nn.Linear(3, 2)
        self.layers, self.norms = (nn.ModuleList([m] * 3 if names else [m]) for m in (layer, bn))
        if names:
            self.alias = self.head

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = self.norms[i % len(self.norms)](self.layers[i % len(self.layers)](x)).tanh()
        return self.head(x)


@pytest.mark.parametrize("norm", [{}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize(("vectorize", "memory"), [(False, "fast"), (False, "low"), (True, "fast")])
def test_a_part_of_several_names_is_one_and_stays_as_it_is(norm, vectorize, memory):
    options = {"vectorize": vectorize, "memory": memory}
    several, one = (learner(Repeated(n, **norm).double(), **options) for n in (True, False))
    net, given = several.module, episode()
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    before = {name: (tensor, tensor.clone()) for name, tensor in tensors.items()}
    for made in (several, one):
        made.evaluate([given], "loss")
        for _ in range(2):
            made(given, WEIGHTS).loss.backward()
    assert several.model._skeleton.copied  # threads have one each
    found, wanted = ([p.grad for p in made.parameters()] for made in (several, one))
    assert any(g is not None and g.any() for g in found)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    now = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name, (tensor, value) in before.items():
        assert now[name] is tensor and torch.equal(tensor, value), name
    adapted = [made.adapt(given.support_x[0], given.support_y[0]) for made in (several, one)]
    mine, theirs = (each(given.target_x[0]) for each in adapted)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def _tied(net: nn.Sequential) -> None:
    net[0].weight.data.mul_(2)
    net[3].act = nn.ReLU()


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net.cfg["act"], "inplace", False) or net.cfg.update(scale=3.0),
        lambda net: net.cfg.update(act=nn.Identity()),
        lambda net: net.teacher[0].weight.data.mul_(3),
        lambda net: setattr(net, "mask", None),
    ],
)
def test_what_a_container_holds_is_as_it_is_now(change):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            self.cfg = {"act": nn.ReLU(), "scale": 1.0}
            self.teacher = [nn.Linear(3, 8).double().requires_grad_(False)]
            self.register_buffer("mask", torch.arange(8.0))

        def forward(self, x: Tensor) -> Tensor:
            h = self.cfg["act"](self.a(x) + self.teacher[0](x)) * self.cfg["scale"]
            return self.b(h if self.mask is None else h * self.mask)

    torch.manual_seed(0)
    net, given = Net().double(), episode()
    model = Module(net, F.cross_entropy, vectorize=False)
    agrees(model, given)
    change(net)
    agrees(model, given)


class Drawing(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.a, self.draw = nn.Linear(3, 2), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * (1 + self.draw())


def _own_generator():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.rand((), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("draw", [random.random, _own_generator()])
def test_random_numbers_of_its_own_are_not_drawn_again(draw):
    state = random.getstate()
    made = learner(Drawing(draw).double(), memory="low")
    with pytest.raises(UserError, match="draws random numbers of its own: give 'fast'"):
        made(episode())
    assert random.getstate() == state
    learner(Drawing(draw).double())(episode())  # one task after the other


class Counting(nn.Module):
    """Says to its loss what it has seen."""

    def __init__(self):
        super().__init__()
        self.a, self.passes = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.norms = self.a.weight.square().sum()
        return self.a(x)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_forward_sets_is_the_module_s(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net, given = Counting().double(), episode()
    made = learner(net, loss=lambda output, y: F.cross_entropy(output, y) + net.norms)
    output, before = made(given, WEIGHTS), net.passes
    fixed = mlp()[0].weight.new_tensor(0.0)
    made(given, WEIGHTS)
    assert net.passes - before == 2 * (2 + 2)  # tasks, support and target passes of two steps
    version = made.model._skeleton.version
    made(given, WEIGHTS)
    assert made.model._skeleton.version == version  # and it is not probed again
    net.norms = None  # torch copies no tensor of a graph
    assert not copy.deepcopy(made).model._skeleton.copied
    plain = nn.Sequential(copy.deepcopy(net.a))
    total = fixed
    for x, y, target_x, target_y in zip(*vars(given).values(), strict=True):
        w, b = plain[0].weight, plain[0].bias
        for _ in range(2):
            inner = F.cross_entropy(F.linear(x, w, b), y) + w.square().sum()
            gradients = torch.autograd.grad(inner, (w, b))
            w, b = w - 0.1 * gradients[0], b - 0.1 * gradients[1]
            outer = F.cross_entropy(F.linear(target_x, w, b), target_y) + w.square().sum()
            total = total + 0.5 * outer.detach() / 2
    torch.testing.assert_close(output.loss, total)


def test_labels_in_a_list_are_each_task_s_own():
    given = episode(6)  # as many tasks as samples
    made = engine.Episode(given.support_x, given.support_y, given.target_x, [*given.target_y])

    def loss(output: Tensor, y: list[Tensor] | Tensor) -> Tensor:
        return F.cross_entropy(output, torch.stack([*y]))

    by_list, by_tensor = (learner(mlp(), loss=loss)(e, WEIGHTS).loss for e in (made, given))
    torch.testing.assert_close(by_list, by_tensor)


def test_modes_of_parts_count():
    net = mlp(nn.Dropout(0.5)).eval()
    model = Module(net, F.cross_entropy)
    agrees(model, episode())
    net[1].train()
    assert not net.training and model.random


def test_buffers_that_a_pass_writes_are_written_in_order():
    given = episode(4)
    losses = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        net = nn.Sequential(spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 2)).double()
        losses.append(learner(net)(given, WEIGHTS).loss)
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(UserError, match="writes to buffers or parameters: give 'fast'"):
        learner(net, memory="low")(given)


def test_checkpointed_activations_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(checkpoint(lambda z: self.a(z).tanh(), x, use_reentrant=False))

    with pytest.raises(UserError, match="checkpoints its activations"):
        learner(Net().double())(episode())


def test_adapted_values_stay_as_they_were():
    torch.manual_seed(0)
    backbone = engine.Backbone(in_channels=1, image_size=14, filters=4, stages=2, ways=2)
    made = engine.Learner(backbone, steps=2)
    x, y = torch.randn(4, 1, 14, 14), torch.arange(4) % 2
    adapted = made.adapt(x, y)
    before = adapted(x)
    with torch.no_grad():
        made.norm.add_(1)
    assert torch.equal(adapted(x), before)


def test_parts_keep_their_modes():
    net, given = normed(), episode()
    net[1].eval()
    made = learner(net)
    made.train()
    net[1].eval()
    made.evaluate([given])
    assert made.training and net.training and not net[1].training


def test_adapted_answers_without_dropout():
    made, given = learner(mlp(nn.Dropout(0.5))), episode()
    adapted = made.adapt(given.support_x[0], given.support_y[0])
    assert made.training
    assert torch.equal(adapted(given.target_x[0]), adapted(given.target_x[0]))


def test_outputs_that_are_not_numbers_are_no_answers():
    made = learner(mlp())
    with torch.no_grad():
        made.module[0].weight.fill_(torch.nan)
    with pytest.raises(UserError, match="a task's outputs are NaN or infinite"):
        made.evaluate([episode()])


def test_a_protocol_is_one_of_two():
    with pytest.raises(UserError, match="protocol is 'indutcive': give one of transductive, induc"):
        learner(mlp()).evaluate([episode()], protocol="indutcive")


def test_a_batch_norm_in_evaluation_mode_keeps_its_statistics():
    net, given = normed(), episode()
    with torch.no_grad():
        net[1].running_mean.copy_(torch.linspace(-1, 1, 8))
        net[1].running_var.copy_(torch.linspace(1, 2, 8))
    net[1].eval()
    model = Module(net, F.cross_entropy, vectorize=False)
    agrees(model, given)
    assert not net[1].training and net[1].momentum == 0.1
    wanted = net[1].running_mean.clone()
    found = ours(model, start(model, 2), given, WEIGHTS, 2)
    assert torch.equal(found.moments.mean, wanted.expand_as(found.moments.mean))


def test_running_statistics_begin_as_the_module_s():
    net = normed()
    net[1].running_mean.fill_(3.0)
    assert torch.equal(learner(net).running_mean, torch.full((2, 8), 3.0, dtype=torch.float64))


def test_gains_that_are_loaded_into_the_module_are_refused():
    net = normed()
    made = learner(net)
    made.load_state_dict(made.state_dict())
    net.load_state_dict(net.state_dict())
    made(episode())
    net.load_state_dict({**net.state_dict(), "1.weight": torch.full((8,), 2.0)})
    with pytest.raises(UserError, match="1.weight of the module was changed"):
        made(episode())


def test_a_second_learner_has_gains_too():
    net = normed()
    first = learner(net)
    assert learner(net).norm.shape == learner(copy.deepcopy(net)).norm.shape == first.norm.shape
    given = episode()
    module = first.adapt(given.support_x[0], given.support_y[0]).module()
    assert all(p.requires_grad for p in module.parameters())


def test_what_is_frozen_later_is_refused():
    net = mlp()
    made = learner(net)
    net[0].requires_grad_(False)
    with pytest.raises(UserError, match="0.weight, 0.bias of the module are not as they were"):
        made(episode())


REFUSED = {
    "lazy": (nn.Sequential(nn.LazyLinear(2)), {}, "have no shape yet: call it once"),
    "rows": (
        nn.Sequential(PerStepBatchNorm2d(3, steps=2), nn.Linear(1, 1)),
        {},
        "PerStepBatchNorm",
    ),
    "loss": (mlp(), {"loss": nn.Sequential(nn.Linear(2, 2))}, "parameters of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_learned_by_halves_is_refused(name):
    module, options, words = REFUSED[name]
    with pytest.raises(UserError, match=words):
        learner(module, **options)


def test_inputs_that_want_a_gradient_are_refused():
    given = episode()
    made = learner(mlp())
    with pytest.raises(UserError, match="support_x requires grad, and no gradient goes back"):
        made(engine.Episode(given.support_x.requires_grad_(), *[*vars(episode()).values()][1:]))
    with pytest.raises(UserError, match="weights requires grad"):
        made(episode(), [torch.tensor(0.5), torch.tensor(0.5, requires_grad=True)])


@pytest.mark.parametrize("adapt", ["head", "body"])
def test_the_head_is_whole_under_a_parametrization(adapt):
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), weight_norm(nn.Linear(8, 2))).double()
    names = learner(net, adapt=adapt).adapted_names
    assert all(name.startswith("2.") == (adapt == "head") for name in names)
    assert len(names) == (3 if adapt == "head" else 2)


def test_a_loss_that_is_a_module_is_a_part():
    loss = nn.Sequential(nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]).double()))[0]
    made = learner(mlp(), loss=loss)
    assert not made.eval().loss.training
    again = copy.deepcopy(made)
    assert again.loss is again.model.criterion


def test_other_frozen_weights_are_another_run(tmp_path):
    def run(seed: int):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 2))
        given = episode().map(lambda v: v.float() if v.is_floating_point() else v)
        made = engine.Learner(net, steps=1).eval()
        options = {"epochs": 1, "iterations": 1, "eval_tasks": 2, "no_report": True}
        engine.fit(made, lambda i: given, val=lambda i: given, run=tmp_path / "run", **options)
        assert made.training

    run(0)
    run(0)
    with pytest.raises(UserError):
        run(1)
