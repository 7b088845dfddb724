"""What a learner counts as right, what its first look at a module leaves, and what it refuses."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine
from engine import meta, scores
from engine.errors import UserError
from tests.test_learner_faithful import WEIGHTS, episode, learner, mlp, normed

pytestmark = pytest.mark.usefixtures("one_thread")


class Outputs(nn.Module):
    """Of each sample one for each class and place, the classes on axis 1, as torch has them."""

    def __init__(self, places: int):
        super().__init__()
        self.out, self.places = nn.Linear(3, 2 * places), places

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x).unflatten(1, (2, self.places))


@pytest.mark.parametrize("places", [2, 4])
def test_classes_before_places_are_not_taken_for_places(places):
    given = episode()
    y = given.support_y.unsqueeze(-1).repeat(1, 1, places)
    given = engine.Episode(given.support_x, y, given.target_x, y)
    made = learner(Outputs(places).double())
    with pytest.raises(UserError, match="accuracy is of outputs .samples, classes. and y"):
        made.evaluate([given])
    outputs = torch.randn(2, 6, 2, places)
    assert not meta.hits(outputs, y, F.cross_entropy).any()
    by_place = outputs.mT.repeat(1, 1, 2, 1)  # [tasks, samples, 2 · places, classes]
    assert meta.hits(by_place, by_place.argmax(-1), lambda output, y: None).all()
    assert not meta.hits(by_place, by_place.argmax(-1), nn.CrossEntropyLoss()).any()

    def by_places(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.mT.flatten(0, 1), y.flatten())

    square = by_place[0].mT if places == 2 else by_place[0].repeat(1, 1, 2).mT
    assert scores.measured([square.mT], [square.mT.argmax(-1)], "accuracy", by_places) == [1.0]


def test_what_the_loss_leaves_out_counts_nowhere():
    logits, y = torch.eye(3)[None] * 5, torch.tensor([[0, 1, 0]])
    losses = nn.CrossEntropyLoss(ignore_index=0), partial(F.cross_entropy, ignore_index=0)
    for loss in (*losses, partial(losses[1])):
        assert scores.measured(logits, y, "accuracy", loss) == [1.0]
        assert meta.hits(logits, y, loss).tolist() == [1.0]
    padded = torch.tensor([[0, 1, -100]])
    assert meta.hits(logits, padded, F.cross_entropy).tolist() == [1.0]
    assert meta.hits(logits, torch.full((1, 3), -100), F.cross_entropy).tolist() == [0.0]


def test_dropout_that_no_layer_shows_is_drawn_again():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.cfg = SimpleNamespace(p=0.0)
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(torch.tanh(self.a(x)), self.cfg.p, self.training))

    found = []
    for memory in ("fast", "low"):
        torch.manual_seed(0)
        net = Late().double()
        made = learner(net, memory=memory, vectorize=False, rate=0.5)
        made(episode(), WEIGHTS)
        net.cfg.p = 0.5
        torch.manual_seed(5)
        made(episode(), WEIGHTS).loss.backward()
        found.append(net.a.weight.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_a_loss_that_is_linear_has_no_second_derivative():
    net = nn.Linear(3, 1).double()
    made, given = learner(net, loss=lambda output, y: output.mean()), episode()
    made(given, WEIGHTS).loss.backward()
    second, net.weight.grad = net.weight.grad, None
    made(given, WEIGHTS, order=1).loss.backward()
    assert second.any() and torch.equal(second, net.weight.grad)


def test_a_module_in_evaluation_mode_makes_a_learner_in_that_mode():
    net, given = normed().eval(), episode()
    before = net[1].running_mean.clone()
    made = learner(net)
    made(given, WEIGHTS)
    assert not made.training and torch.equal(made.running_mean[0], before)
    made.train()(given, WEIGHTS)
    assert net[1].training and not torch.equal(made.running_mean[0], before)


def test_what_would_adapt_to_nothing_or_by_no_number_is_refused():
    made, given = learner(mlp()), episode()
    x, y = given.support_x[0], given.support_y[0]
    with pytest.raises(UserError, match="y has no samples: give a task one or more"):
        made.adapt(x[:0], y[:0])
    with pytest.raises(UserError, match="support_y has no samples"):
        none = given.support_x[:, :0], given.support_y[:, :0]
        made(engine.Episode(*none, given.target_x, given.target_y))
    for rate in (float("inf"), True, 0):
        with pytest.raises(UserError, match=f"rate is {rate}: give a number > 0"):
            learner(mlp(), rate=rate)
    with pytest.raises(UserError, match="steps is True: give a number >= 1"):
        made.adapt(x, y, steps=True)
    with pytest.raises(UserError, match="tasks is 3: give a list of episodes, or Tasks"):
        made.evaluate(3)


def test_a_first_look_leaves_no_trace_in_what_passes_count():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    class Scaling(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, output: Tensor, y: Tensor) -> Tensor:
            self.seen += 1
            return super().forward(output, y)

    net, loss = Counting().double(), Scaling()
    net.other = [nn.Linear(1, 1).requires_grad_(False)]  # so that it is not copied
    made = learner(net, loss=loss, vectorize=False)
    made(episode(1), WEIGHTS)
    assert (net.calls, loss.seen.item()) == (4, 4)  # two steps, of each support and target


def test_a_first_look_writes_to_no_buffer_that_a_pass_did_not():
    given, weight = episode(1), torch.tensor(0.5, dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight.expand(2))  # one value, which cannot be written to
    learner(mlp(), loss=loss)(given, WEIGHTS)
    loss = nn.CrossEntropyLoss(weight=torch.ones(2, dtype=torch.float64))
    net = mlp()
    own = loss(net(given.support_x[0]), given.support_y[0])
    learner(mlp(), loss=loss)(given, WEIGHTS)
    own.backward()
    assert net[0].weight.grad.any()


def test_a_buffer_that_parts_share_is_one():
    net = mlp()
    net.register_buffer("scale", torch.ones((), dtype=torch.float64))
    net[0].register_buffer("same", net.scale)
    learner(net)(episode(1), WEIGHTS)
    assert net[0].same is net.scale


def test_a_module_without_memory_makes_a_learner():
    assert learner(nn.Linear(3, 2, device="meta")).rates.is_meta


def test_a_module_that_was_cast_without_its_learner_is_refused():
    made, given = learner(mlp().float()), episode()
    made.module.double()
    with pytest.raises(UserError, match="parameters are float64 and the learner's own float32"):
        made(given)
    assert made.double()(given).loss.dtype == torch.float64


def test_parameters_that_share_memory_are_one_or_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight.data = net[0].weight.data
    with pytest.raises(UserError, match="0.weight and 1.weight share memory, and each would be"):
        learner(net)
    net[1].weight = net[0].weight
    assert "1.weight" not in learner(net).model.shapes


def test_rows_that_were_loaded_by_assignment_are_those_of_another_learner_too():
    made = learner(normed())
    given = {name: value.clone() for name, value in made.state_dict().items()}
    given["norm"] += 1
    made.load_state_dict(given, assign=True)
    assert torch.equal(learner(made.module).norm[-1], given["norm"][-1])
