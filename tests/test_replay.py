"""Meta-gradients of a network of one's own as graphs, on a CPU that stands in for a GPU."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine
from engine import unroll
from engine.errors import UserError
from engine.models.contents import placed
from engine.models.module import Module
from engine.runtime import graph, replay
from engine.runtime.replay import Replays
from tests.captured import captures_stood_in
from tests.foreign import Problem, problem, start

WEIGHTS = [0.5, 0.2, 0.3]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def captures(monkeypatch):
    """The captures that were made."""
    monkeypatch.setattr(replay, "on_device", lambda like: True)
    with captures_stood_in() as made:
        yield made


def model_of(made: Problem, **options) -> Module:
    return Module(made.module, made.criterion, vectorize=False, **options)


def other(made: Problem, seed: int):
    """Tasks of the same shapes."""
    torch.manual_seed(seed)
    return made.episode.map(
        lambda values: values + torch.randn_like(values) if values.is_floating_point() else values
    )


def same(a: unroll.MetaGradient, b: unroll.MetaGradient) -> bool:
    tensors = [[], []]
    for found, into in ((a, tensors[0]), (b, tensors[1])):
        engine.episodes.mapped(into.append, found)
    return all(map(torch.equal, *tensors)) and a.rows == b.rows


def call(replays: Replays, model: Module, params, episode, weights=WEIGHTS, order=2, running=None):
    operands = model, params, episode, weights, order == 2, running
    with model.during(episode, order == 2):
        return replays.call(unroll.adjoint, *operands), unroll.adjoint(*operands)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer", "norms"])
def test_a_replay_is_the_call_on_other_tasks_parameters_and_weights(name, memory, captures):
    made, replays = problem(name), Replays()
    model = model_of(made, memory=memory)
    for i, weights in enumerate([WEIGHTS, WEIGHTS, [0.1, 0.8, 0.3], WEIGHTS]):
        found, wanted = call(replays, model, start(model, 3), other(made, i), weights)
        assert same(found, wanted)
    assert len(captures) == 1


def test_what_it_gave_before_stays(captures):
    made, replays = problem("mlp"), Replays()
    model = model_of(made)
    params = start(model, 3)
    found = [call(replays, model, params, other(made, i)) for i in range(5)]
    assert all(same(ours, theirs) for ours, theirs in found)


CHANGES = {
    "order": dict(order=1),
    "steps without a weight": dict(weights=[0.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_kind_of_call_is_captured_by_itself(name, captures):
    made, replays = problem("resnet"), Replays()
    model = model_of(made)
    params = start(model, 3)
    for options in ({}, CHANGES[name], {}, CHANGES[name], {}, CHANGES[name]):
        ours, theirs = call(replays, model, params, made.episode, **options)
        assert same(ours, theirs)
    assert len(captures) == 2


class Turned(nn.Linear):
    gain, shifts = 1.0, (0.0,)

    def forward(self, x):
        return super().forward(x) * self.gain + self.shifts[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda net, loss: setattr(net[0], "gain", 2.0),
        lambda net, loss: setattr(net[0], "shifts", [1.0]),
        lambda net, loss: setattr(loss, "label_smoothing", 0.5),
        lambda net, loss: net.register_forward_hook(lambda m, x, y: 2 * y),
        lambda net, loss: setattr(net[2], "running_mean", torch.ones(4)),
        lambda net, loss: net.eval(),
    ],
)
def test_a_network_or_loss_that_changed_is_not_replayed(change, captures):
    torch.manual_seed(0)
    net = nn.Sequential(Turned(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    loss = nn.CrossEntropyLoss()
    x, y = torch.randn(2, 6, 3), torch.arange(12).view(2, 6) % 2
    episode, replays = engine.Episode(x, y, x + 1, y), Replays()
    model = Module(net, loss, vectorize=False)
    params = start(model, 3)
    for _ in range(3):
        call(replays, model, params, episode)
    assert len(captures) == 1
    change(net, loss)
    for _ in range(3):
        ours, theirs = call(replays, model, params, episode)
        assert same(ours, theirs)
    assert len(captures) == 2


class Holding(nn.Linear):
    def __init__(self, held, scale):
        super().__init__(3, 2)
        self.held, self.scale = held, scale

    def forward(self, x):
        return super().forward(x) * self.scale(self.held)


class Smoothing:
    amount = np.float32(0.0)

    def __call__(self, output, y):
        return F.cross_entropy(output, y, label_smoothing=float(self.amount))


@pytest.mark.parametrize(
    "held, scale, change",
    [
        (SimpleNamespace(a=2.0), lambda h: h.a, lambda h, loss: setattr(h, "a", 3.0)),
        (deque([2.0]), lambda h: h[0], lambda h, loss: h.append(h.popleft() + 1)),
        ({1}, len, lambda h, loss: h.add(2)),
        (np.ones(1), lambda h: float(h[0]), lambda h, loss: h.fill(2)),
        (2.0, float, lambda h, loss: setattr(loss, "amount", np.float32(0.5))),
    ],
)
def test_what_module_and_loss_hold_makes_another_kind(held, scale, change, captures):
    torch.manual_seed(0)
    x, y, loss = torch.randn(2, 6, 3), torch.arange(12).view(2, 6) % 2, Smoothing()
    episode, replays = engine.Episode(x, y, x + 1, y), Replays()
    model = Module(Holding(held, scale), loss, vectorize=False)
    params = start(model, 3)
    for wanted in (1, 2):
        for _ in range(3):
            assert same(*call(replays, model, params, episode))
        assert len(captures) == wanted
        change(held, loss)


def test_a_tensor_of_the_host_s_is_known_by_its_numbers():
    value, far = torch.ones(3), torch.device("cuda")
    before = [placed(value, device) for device in (far, value.device)]
    value[0] = 2
    assert [placed(value, d) == b for d, b in zip((far, value.device), before, strict=True)] == [
        False,
        True,
    ]


def test_another_memory_of_what_is_learned_is_the_same_kind(captures):
    made, replays = problem("mlp"), Replays()
    model = model_of(made)
    for i in range(4):
        for p in made.module.parameters():
            p.data = p.data.clone()
        assert same(*call(replays, model, start(model, 3), other(made, i)))
    assert len(captures) == 1


def test_graphs_that_nothing_calls_make_room(captures, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 2)
    monkeypatch.setattr(replay, "_IDLE", 4)
    net = Holding(1.0, float)
    model, replays = Module(net, F.cross_entropy, vectorize=False), Replays()
    x, y = torch.randn(2, 6, 3), torch.arange(12).view(2, 6) % 2
    episode = engine.Episode(x, y, x + 1, y)
    for epoch in range(5):
        net.held = float(epoch)
        for _ in range(4):
            assert same(*call(replays, model, start(model, 3), episode))
    assert len(captures) == 5 and replays.graphs == 2


def test_calls_of_many_kinds_have_so_many_graphs(captures, monkeypatch, capsys):
    monkeypatch.setattr(replay, "MOST", 2)
    monkeypatch.setattr(replay, "_CALLS", 4)
    made, replays = problem("mlp"), Replays()
    model = model_of(made)
    params = start(model, 3)
    for _ in range(3):
        for size in (2, 3, 4, 5, 6):
            episode = made.episode.map(lambda values, size=size: values[:, :size])
            ours, theirs = call(replays, model, params, episode)
            assert same(ours, theirs)
    assert len(captures) <= 2 and len(replays._kinds) <= 4
    for _ in range(4):
        for size in (2, 3, 4):
            episode = made.episode.map(lambda values, size=size: values[:, :size])
            call(replays, model, params, episode)
    assert len(captures) == 2
    assert "no more than 2 CUDA graphs of a network" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dropout", "uneven"])
def test_what_cannot_be_replayed_is_called(name, captures):
    made, replays = problem(name), Replays()
    model = model_of(made)
    for _ in range(3):
        call(replays, model, start(model, 3), made.episode)
    assert not captures and not replays._kinds


def test_a_graph_that_gives_something_else_is_not_used(captures, monkeypatch, capsys):
    made, replays = problem("mlp"), Replays()
    model = model_of(made)
    stood_in = graph.capture

    def broken(body, device):
        (own,) = (c.cell_contents for c in body.__closure__ if "_Replay" in repr(c.cell_contents))
        right = stood_in(body, device)

        def replayed() -> None:
            own._inputs[0].theta.add_(1)
            right()

        return replayed

    monkeypatch.setattr(graph, "capture", broken)
    params = start(model, 3)
    found = [call(replays, model, params, other(made, i)) for i in range(4)]
    assert all(same(ours, theirs) for ours, theirs in found) and len(captures) == 1
    said = "no CUDA graph, kernels are launched one by one: a graph's loss is off by "
    assert capsys.readouterr().out.count(said) == 1


def test_what_writes_to_buffers_is_called(captures):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return super().forward(x)

    made, replays = problem("mlp"), Replays()
    model = Module(Counting().double(), F.mse_loss, vectorize=False)
    for _ in range(4):
        call(replays, model, start(model, 2), made.episode, [0.0, 1.0])
    assert not captures and model.module.calls == 4 * 2 * 2 * (2 + 1)  # tasks, passes


def test_a_learner_replays(captures):
    torch.manual_seed(0)
    made = problem("resnet")
    learners = [
        engine.Learner(copy.deepcopy(made.module), F.cross_entropy, steps=2, capture=capture)
        for capture in ("auto", False)
    ]
    for i in range(4):
        losses = []
        for learner in learners:
            learner.zero_grad()
            loss = learner(other(made, i), [0.5, 0.5]).loss
            loss.backward()
            losses.append(loss)
        assert torch.equal(*losses)
        grads = ([p.grad for p in learner.parameters() if p.requires_grad] for learner in learners)
        for ours, theirs in zip(*grads, strict=True):
            assert torch.equal(ours, theirs)
        with torch.no_grad():
            for learner in learners:
                for p in learner.parameters():
                    p -= 0.01 * (p.grad if p.grad is not None else 0)
    assert len(captures) == 1 and learners[1].replays is None
    for again in (copy.deepcopy(learners[0]), pickle.loads(pickle.dumps(learners[0]))):
        assert not again.replays._kinds
        assert torch.equal(again(other(made, 9)).loss, learners[1](other(made, 9)).loss)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer"])
def test_a_learner_replays_on_a_gpu(name):
    made = problem(name)
    episodes = [other(made, i).to("cuda") for i in range(5)]
    results = []
    for capture in ("auto", False):
        learner = engine.Learner(
            copy.deepcopy(made.module).cuda(), made.criterion, steps=2, capture=capture
        )
        found = []
        for episode in episodes:
            learner.zero_grad()
            loss = learner(episode, [0.5, 0.5]).loss
            loss.backward()
            found += [loss, *(p.grad for p in learner.parameters() if p.requires_grad)]
        results.append(found)
        graphs = [*learner.replays._kinds.values()] if capture else []
        assert [type(known) for known in graphs] == [replay._Replay] * len(graphs)
    assert len(results[0]) == len(results[1])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_fit_replays(captures, tmp_path):
    made = problem("resnet")
    states = []
    for capture in ("auto", False):
        torch.manual_seed(0)
        learner = engine.Learner(
            copy.deepcopy(made.module).float(), F.cross_entropy, steps=2, capture=capture
        )

        def tasks(i):
            return other(made, i).map(lambda v: v.float() if v.is_floating_point() else v)

        engine.fit(
            learner, tasks, val=tasks, run=tmp_path / str(capture), epochs=2, iterations=4,
            eval_tasks=2, msl_epochs=1, first_order_epochs=1, no_report=True,
        )  # fmt: skip
        states.append(learner.state_dict())
    assert len(captures) == 2
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_capture_is_auto_or_not():
    with pytest.raises(UserError, match="capture is True: give one of auto, False"):
        engine.Learner(nn.Linear(1, 1), capture=True)
