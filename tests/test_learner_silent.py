"""What a learner would do wrong without a word: right, or refused in a line."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import engine
from engine import meta, unroll
from engine.adapted import evaluating
from engine.errors import UserError
from engine.models.interface import Params
from engine.models.module import Module
from engine.runtime.workers import over_tasks
from kernels.branch import Mark
from tests.foreign import start
from tests.test_learner_faithful import WEIGHTS, Indirect, episode, learner, mlp, normed

pytestmark = pytest.mark.usefixtures("one_thread")
PAST = "reaches tensors to learn, of shape .*, past the names that the module has for them"


def adapts(made: engine.Learner) -> None:
    made(episode(), WEIGHTS).loss.backward()


def test_a_loss_of_the_module_s_own_parameters_is_refused():
    net = mlp()

    def with_decay(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) + 1e-3 * sum(p.square().sum() for p in net.parameters())

    with pytest.raises(UserError, match=PAST):
        adapts(learner(net, loss=with_decay))


@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor.requires_grad_])
def test_a_loss_that_closes_over_what_is_to_learn_is_refused_unless_it_is_frozen(kind):
    scale = kind(torch.ones((), dtype=torch.float64))
    made = learner(mlp(), loss=lambda output, y: F.cross_entropy(output * scale, y))
    with pytest.raises(UserError, match=PAST):
        adapts(made)
    scale.requires_grad_(False)
    adapts(made)


def test_parameters_that_are_reached_by_another_name_are_refused():
    with pytest.raises(UserError, match=PAST):
        adapts(learner(Indirect("partial").double()))


def test_a_gradient_by_the_inputs_is_no_parameter():
    def penalised(output: Tensor, y: Tensor) -> Tensor:
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        return (
            F.cross_entropy(output, y)
            + torch.autograd.grad((x * x).sum(), x, create_graph=True)[0].sum()
        )

    adapts(learner(mlp(), loss=penalised))


def test_a_hook_on_a_gradient_is_called_in_a_loop_of_one_s_own_and_refused_by_fit(tmp_path):
    net, seen = mlp(), []
    made = learner(net)
    net[0].weight.register_hook(seen.append)
    adapts(made)
    assert len(seen) == 1
    with pytest.raises(UserError, match="0.weight have a hook on the gradient"):
        engine.fit(made, lambda i: episode(), val=lambda i: episode(), run=tmp_path, epochs=1)


def test_a_loss_that_differentiates_its_outputs_is_none_of_that():
    def penalised(output: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(output, y)
        return loss + torch.autograd.grad(loss, output, create_graph=True)[0].square().sum()

    adapts(learner(mlp(), loss=penalised))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x -= 1
        return self.out(x)


def test_inputs_that_a_pass_changes_are_refused_and_the_caller_s_stay():
    given = episode()
    before = given.support_x.clone()
    with pytest.raises(UserError, match="changes its inputs in place"):
        learner(InPlace().double())(given, WEIGHTS)
    assert torch.equal(given.support_x, before)


class Frozen(nn.Module):
    """A batch norm that its owner keeps in evaluation mode, the usual way."""

    def __init__(self):
        super().__init__()
        self.layers = normed()
        self.layers[1].running_mean.fill_(0.5)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.layers[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_batch_norm_that_is_kept_still_is_so_in_another_process():
    trained, given = learner(Frozen()), episode()
    trained.train()
    adapts(trained)
    loaded = learner(Frozen())
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(loaded.eval().predict(given), trained.predict(given))
    assert loaded.evaluate([given]) == trained.evaluate([given])
    asleep = learner(Frozen().eval())
    asleep.load_state_dict(trained.state_dict())
    assert torch.equal(asleep.predict(given), trained.predict(given))


class Staged(Frozen):
    """Also freezes what it does not train."""

    def train(self, mode: bool = True) -> Staged:
        super().train(mode)
        self.layers[0].requires_grad_(False)
        return self


def test_what_a_module_does_when_its_training_begins_is_not_done_before():
    net = Staged()
    made = learner(net)
    assert net.layers[0].weight.requires_grad and net.layers[1].training
    adapts(made)


def test_a_still_norm_whose_statistics_torch_reads_is_left_to_torch():
    net = normed()
    net[1].track_running_stats = False
    net[1].eval()
    assert learner(net).model.norms.still == {"1"}


@pytest.mark.parametrize("vectorize", [False, True])
def test_a_batch_norm_without_statistics_has_those_of_the_support_set(vectorize: bool):
    net, given = mlp(nn.BatchNorm1d(8, track_running_stats=False)), episode()
    tracked = mlp(nn.BatchNorm1d(8))
    answers = []
    for module in (net, tracked):
        made = learner(module, vectorize=vectorize)
        adapted = made.adapt(given.support_x[0], given.support_y[0])
        whole = adapted(given.target_x[0])
        torch.testing.assert_close(adapted(given.target_x[0][:1]), whole[:1])
        torch.testing.assert_close(adapted.module()(given.target_x[0]), whole)
        answers.append(made.predict(given, protocol="inductive"))
    torch.testing.assert_close(*answers)


def test_running_statistics_move_when_passes_normalise_by_them():
    model, given = Module(normed(), F.cross_entropy), episode()
    x, theta = given.support_x, torch.cat([p.flatten() for p in model.module[0].parameters()])
    theta = torch.cat([theta, *(p.flatten() for p in model.module[3].parameters())]).expand(2, -1)
    row = torch.cat([torch.ones(8), torch.zeros(8)]).double()
    zeros = torch.zeros(2, 8, dtype=torch.float64)
    statistics = engine.models.interface.Moments(zeros, zeros + 1)
    with model.during(given, False):
        _, moments = model.prepare(x, 1).predict(theta, row, statistics)
        _, of_batch = model.prepare(x, 1).predict(theta, row)
    torch.testing.assert_close(moments, of_batch)


def test_threads_do_not_mix_the_moments_of_their_batches():
    given = episode(8)
    wide = nn.Sequential(nn.Linear(3, 300), nn.BatchNorm1d(300), nn.Tanh(), nn.Linear(300, 100))
    model = Module(wide.double(), F.cross_entropy, vectorize=False)
    params = start(model, 2)
    statistics = engine.models.interface.Moments(*torch.rand(2, 2, 300).double())
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with model.during(given, True):
            assert model.parallel(given)
            parts = over_tasks(
                lambda one: unroll.adjoint(model, params, one, WEIGHTS, True, statistics), given, 1
            )
        found.append(unroll.together(parts).moments)
    assert all(map(torch.equal, *found))


def test_one_output_has_no_accuracy_and_ignored_labels_count_for_nothing():
    def binary(output: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output[:, 0], y.double())

    given = episode()
    one = nn.Sequential(nn.Linear(3, 1)).double()
    with pytest.raises(UserError, match="accuracy is of outputs for two classes or more"):
        learner(one, loss=binary).evaluate([given])
    made = learner(mlp())
    padded = engine.Episode(
        given.support_x,
        given.support_y,
        torch.cat([given.target_x, given.target_x], 1),
        torch.cat([given.target_y, torch.full_like(given.target_y, -100)], 1),
    )
    assert made.evaluate([padded]).accuracy == made.evaluate([given]).accuracy


def test_a_second_learner_begins_with_the_gains_that_the_first_has_learned():
    net = normed()
    first = learner(net)
    with torch.no_grad():
        first.norm[-1].fill_(2.0)
    second = learner(net)
    assert torch.equal(second.norm, torch.full_like(second.norm, 2.0))
    assert torch.equal(learner(copy.deepcopy(net)).norm, second.norm)
    assert torch.equal(net[1].weight, torch.ones(8).double())  # its own stay
    adapts(first)


def test_a_gain_that_is_frozen_stays_so_for_a_second_learner():
    net = normed()
    net[1].bias.requires_grad_(False)
    for _ in range(2):
        assert list(learner(net).model.affine) == ["1.weight"]


def test_a_gradient_s_norm_counts_a_parameter_once():
    made = learner(mlp(), adapt="head")
    shared, rows = made.model.shared_width, 2
    norm = torch.ones(rows, shared)
    gradient = Params(torch.zeros(3), norm, torch.zeros(1))
    most = shared**0.5 / 2
    halved = meta.within(gradient, most, shared)
    torch.testing.assert_close(halved.norm, norm / 2)


class Remembering(nn.Module):
    """A loss that keeps something for a moment, as threads would for each other."""

    def __init__(self):
        super().__init__()
        self.meeting = threading.Barrier(2)

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        self.kept = F.cross_entropy(output, y, reduction="none")
        return self.kept.mean()


class Skipping(nn.Module):
    """A list that is filled and emptied in a pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.skips = nn.Linear(3, 8), nn.Linear(8, 2), []

    def forward(self, x: Tensor) -> Tensor:
        self.skips.append(self.a(x).tanh())
        return self.b(self.skips.pop())


def test_threads_share_neither_a_loss_that_keeps_something_nor_a_module_s_lists():
    given = episode(4)
    for vectorize in (False, "auto", True):
        made = learner(mlp(), loss=Remembering(), vectorize=vectorize)
        made(given, WEIGHTS)
        made.evaluate([given])  # looks again, at what a pass has left there
        assert not made.model.parallel(given) and not made.model.computes
    net = Skipping().double()
    model = learner(net, vectorize=False).model
    with model.during(given, False):
        assert model.parallel(given)
        with model._skeleton.lent() as lent:
            assert lent is not net and lent.skips is not net.skips


def test_tasks_run_in_threads_on_a_cpu_alone(monkeypatch):
    model, given = learner(mlp(), vectorize=False).model, episode()
    with model.during(given, False):
        assert model.parallel(given)
        monkeypatch.setattr(Module, "_device", torch.device("cuda"))
        assert not model.parallel(given)


def test_another_tensor_of_a_loss_is_another_kind_of_call():
    loss = nn.CrossEntropyLoss(weight=torch.ones(2, dtype=torch.float64))
    loss.margin = torch.tensor(0.2)
    model = Module(mlp(), loss)
    kinds = [model.identity()]
    loss.margin.fill_(0.3)
    kinds.append(model.identity())
    loss.weight = torch.full((2,), 3.0, dtype=torch.float64)
    kinds.append(model.identity())
    assert len(set(kinds)) == 3


def test_tasks_that_lie_on_another_device_are_not_for_threads():
    torch.set_num_threads(2)
    x = torch.empty(4, 3, 5, device="meta")
    given = engine.Episode(x, x[..., 0], x, x[..., 0])
    seen = over_tasks(lambda one: threading.get_ident(), given, 1)
    assert seen == [threading.get_ident()] * 4


def test_a_mark_is_waited_for_on_the_device_that_it_is_of(monkeypatch):
    waited = []
    stream = SimpleNamespace(device=torch.device("cuda:1"), record_event=lambda: "the end")
    current = SimpleNamespace(wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "current_stream", {torch.device("cuda:1"): current}.get)
    mark = Mark()
    mark.set(stream)
    mark.wait()
    assert waited == ["the end"]


def test_a_task_is_adapted_to_in_evaluation_mode():
    net = mlp(spectral_norm(nn.Linear(8, 8)), nn.Dropout(0.5)).double()
    made, given = learner(net), episode()
    before = copy.deepcopy(net.state_dict())
    x, y = given.support_x[0], given.support_y[0]
    answers = [made.adapt(x, y)(given.target_x[0]) for _ in range(2)]
    assert torch.equal(*answers) and made.training
    torch.testing.assert_close(made.predict(given)[0], answers[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_buffer_that_a_forward_replaces_is_the_module_s(threads):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)
            self.register_buffer("centre", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
            return self.out(x - self.centre)

    torch.set_num_threads(threads)
    made, plain, given = learner(Centred().double()), Centred().double(), episode()
    made(given, WEIGHTS)
    for task in range(2):
        for _ in WEIGHTS:
            plain(given.support_x[task])
            plain(given.target_x[task])
    torch.testing.assert_close(made.module.centre, plain.centre)


def test_a_buffer_that_is_replaced_may_be_what_a_gradient_needs():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)
            self.register_buffer("std", torch.ones(3))
            self.register_buffer("mask", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.out(x / self.std)
            self.std = 0.9 * self.std + 0.1 * x.detach().std(0)
            self.mask = x.new_ones(len(x))
            return y

    made, plain, given = learner(Scaled().double()), Scaled().double(), episode(1)
    plain.load_state_dict(made.module.state_dict())
    made(given, WEIGHTS).loss.backward()
    for x in (given.support_x[0], given.target_x[0]) * 2:
        plain(x)
    torch.testing.assert_close(made.module.std, plain.std)
    assert made.module.mask.shape == (6,)
    with pytest.raises(UserError, match="the module replaces its buffer std, of which tasks at on"):
        adapts(learner(Scaled().double(), vectorize=True))


def test_a_buffer_of_two_parts_stays_one():
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.c = 0.5 * self.c + x.detach().mean(0)
            return x - self.c

    a, b = Part(), Part()
    a.register_buffer("c", torch.zeros(3).double())
    b.register_buffer("c", a.c)
    made, given = learner(nn.Sequential(a, b, nn.Linear(3, 2).double())), episode(1)
    for _ in range(2):
        made(given, WEIGHTS)
    assert made.module[0].c is made.module[1].c and made.module[0].c.any()


def test_a_buffer_that_passes_replace_is_still_the_owner_s_to_change():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)
            self.register_buffer("c", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.c = self.c + 1
            return self.out(x if self.c is None else x - self.c)

    made, given = learner(Net().double()), episode(1)
    x, y = given.support_x[0], given.support_y[0]
    made(given, WEIGHTS)
    assert (made.module.c == 4).all()
    shifted = made.adapt(x, y)(x)
    made.module.c = None
    found = made.adapt(x, y)(x)
    other = copy.deepcopy(made.module)
    assert torch.equal(found, learner(other).adapt(x, y)(x)) and not torch.equal(found, shifted)


def test_answers_do_not_turn_a_norm_in_the_middle_of_another_pass():
    net, given = normed(), episode()
    made = learner(net)
    made.adapt(given.support_x[0], given.support_y[0])
    with evaluating(made):
        net[1].training = True  # as a pass does for a while
        with evaluating(made):
            assert net[1].training
    net[1].training = True


@pytest.mark.parametrize("adapt", ["head", "body"])
def test_one_layer_of_two_names_is_one(adapt):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.alias = self.head

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(self.body(x).tanh())

    names = {f"{adapt}.weight", f"{adapt}.bias"}
    assert set(learner(Two(), adapt=adapt).model.shapes) == names


@pytest.mark.parametrize("adapt", ["head", "body"])
def test_a_head_that_is_tied_is_not_taken_for_another(adapt):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x))

    with pytest.raises(UserError, match="out.weight, of the last layer, is tied to another"):
        learner(Tied(), adapt=adapt)
    assert set(learner(Tied(), adapt=lambda n: "out" in n).model.shapes) == {"out.bias"}


def test_answers_in_several_threads_leave_the_learner_in_its_mode():
    made, given = learner(mlp(nn.Dropout(0.5))), episode()
    adapted = made.adapt(given.support_x[0], given.support_y[0])
    inside, left = threading.Barrier(2), threading.Barrier(2)
    modes = []

    def answer(first: bool) -> None:
        with evaluating(made):
            inside.wait()
            if first:
                left.wait()
        if not first:
            modes.append(made.training)  # the other is inside
            left.wait()

    threads = [threading.Thread(target=answer, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert modes == [False] and made.training and made.module[1].training
    adapted(given.target_x[0])
