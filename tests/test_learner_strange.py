"""Modules and losses that keep something of their own: they learn as in plain torch, whatever the
threads, or are refused in a line.
"""

from __future__ import annotations

import copy
import random
import types
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import engine
from engine.errors import UserError
from engine.models.module_passes import Batch
from kernels.branch import Branch, Mark
from tests.test_learner_faithful import WEIGHTS, episode, learner, mlp, normed


def gradient(made: engine.Learner, given: engine.Episode) -> Tensor:
    made(given, WEIGHTS).loss.backward()
    learned = (p.grad for p in made.module.parameters() if p.requires_grad)
    return torch.cat([grad.flatten() for grad in learned])


class Skips(nn.Module):
    """What is skipped lies with a helper meanwhile."""

    def __init__(self, helper):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.out = (
            nn.Linear(3, 300),
            nn.Linear(300, 100),
            nn.Linear(100, 2),
        )
        self.helper = helper

    def forward(self, x: Tensor) -> Tensor:
        h = self.put(self.first(x).tanh())
        return self.out(self.middle(h).tanh() + self.get()[:, :100])

    def put(self, h: Tensor) -> Tensor:
        self.helper.skip = h
        return h

    def get(self) -> Tensor:
        return self.helper.skip


class Stacked(Skips):
    def put(self, h: Tensor) -> Tensor:
        self.helper["stack"].append(h)
        return h

    def get(self) -> Tensor:
        return self.helper["stack"].pop()


class Helper:
    skip = None

    def __init__(self):
        self.name = "helper"


class Focal:
    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        self.log_p = F.log_softmax(output, 1).gather(1, y[:, None])
        self.weight = (1 - self.log_p.exp()).square()
        return -(self.weight * self.log_p).mean()


@pytest.mark.parametrize(
    "made",
    [
        lambda: learner(Skips(types.SimpleNamespace()).double(), vectorize=False),
        lambda: learner(Skips(Helper()).double(), vectorize=False),
        lambda: learner(Stacked({"stack": []}).double(), vectorize=False),
        lambda: learner(Stacked(OrderedDict(stack=[])).double(), vectorize=False),
        lambda: learner(mlp(nn.Linear(8, 8)), loss=Focal(), vectorize=False),
    ],
    ids=["namespace", "helper", "dict", "ordered", "loss"],
)
def test_threads_do_not_meet_in_what_passes_keep(made):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(gradient(made(), episode(8)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


class Closing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.call = lambda x: self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def test_a_copy_that_would_use_the_original_is_refused():
    made, given = learner(Closing().double()), episode()
    made(given, WEIGHTS)
    with pytest.raises(UserError, match="past the names"):
        copy.deepcopy(made)(given, WEIGHTS)
    with pytest.raises(UserError, match="closes over a part of it"):
        made.adapt(given.support_x[0], given.support_y[0]).module()


class Keeps(nn.Linear):
    def __init__(self):
        super().__init__(3, 2, dtype=torch.float64)
        self.features = {}

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.features["h"] = super().forward(x)
        return self.h


def test_what_a_pass_has_left_is_copied_without_its_graph():
    made, given = learner(Keeps()), episode()
    made(given, WEIGHTS)
    adapted = made.adapt(given.support_x[0], given.support_y[0])
    assert torch.equal(adapted.module()(given.target_x[0]), adapted(given.target_x[0]))


class Asks(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return 2 * h if h.requires_grad else h


def stopped() -> nn.Sequential:
    net = mlp()
    net[1].register_full_backward_hook(lambda module, inward, outward: (0 * inward[0],))
    return net


@pytest.mark.parametrize("module", [stopped, lambda: Asks(3, 2).double()], ids=["hook", "asks"])
def test_what_vmap_would_leave_out_goes_one_by_one(module):
    net = module()
    found = [gradient(learner(copy.deepcopy(net), vectorize=v), episode()) for v in ("auto", False)]
    assert torch.equal(*found)
    with pytest.raises(UserError, match="under torch's vmap loss or gradient is another"):
        learner(net, vectorize=True)(episode(), WEIGHTS)


class Projected(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.5)
        return super().forward(x)


def test_a_pass_that_writes_to_what_is_learned_is_refused():
    with pytest.raises(UserError, match=r"writes to parameters that are learned \(weight\)"):
        learner(Projected(3, 2).double())(episode(), WEIGHTS)


class Target(nn.Module):
    """A frozen average that passes update, as of BYOL."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.average = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.mul_(0.9).add_(x.mean(0))
        return self.layer(x + self.average)


def test_a_pass_that_writes_to_what_is_frozen_is_done_once():
    given = episode()
    found = [gradient(learner(Target().double(), vectorize=v), given) for v in ("auto", False)]
    assert torch.equal(*found)
    with pytest.raises(UserError, match="writes to buffers or parameters: give 'fast'"):
        learner(Target().double(), memory="low")(given, WEIGHTS)


class DropsLayer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (random.random() > 1e-9)


class Counting(nn.CrossEntropyLoss):
    calls = 0

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(output, y)


class Counts(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    "module, loss, why",
    [
        (DropsLayer(3, 2), F.cross_entropy, "the module draws random numbers of its own"),
        (nn.Linear(3, 2), Counting(), "the loss keeps something of its own"),
        (Counts(3, 2), F.cross_entropy, "the module counts in calls"),
    ],
)
def test_a_pass_that_does_not_repeat_is_not_done_again(module, loss, why):
    with pytest.raises(UserError, match=why):
        learner(module.double(), loss=loss, memory="low")(episode(), WEIGHTS)


@pytest.mark.parametrize(
    "made, beside",
    [(lambda: learner(normed()), 1), (lambda: learner(Target().double()), 0)]
    + [(lambda: learner(mlp(), loss=Counting()), 0), (lambda: learner(Keeps()), 0)],
)
def test_passes_that_leave_something_are_not_begun_beside_others(made, beside, monkeypatch):
    inside, begun = [], []

    @contextmanager
    def on(self):
        inside.append(self)
        yield Mark()
        inside.pop()

    def seen(self, *operands):
        begun.append(bool(inside))
        return whole(self, *operands)

    whole = Batch.loss_and_gradient
    monkeypatch.setattr(Branch, "on", on)
    made = made()
    made(episode(), WEIGHTS)  # looks at it
    monkeypatch.setattr(Batch, "loss_and_gradient", seen)
    made(episode(1), WEIGHTS)
    assert sum(begun) == beside


class OwnNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        kept = self.running_mean, self.running_var
        return F.batch_norm(x, *kept, self.weight, self.bias, self.training, 0.1, self.eps)


def test_a_batch_norm_of_one_s_own_has_the_statistics_of_torch_s():
    given, found = episode(), []
    for kind in (nn.BatchNorm1d, OwnNorm):
        made = learner(mlp(kind(8).double()))
        for _ in range(3):
            made(given, WEIGHTS)
        adapted = made.adapt(given.support_x[0], given.support_y[0])
        inductive = made.predict(given, protocol="inductive")
        found.append((*made.running(), adapted(given.target_x[0]), inductive))
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs)


class Turning(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = normed()

    def forward(self, x: Tensor) -> Tensor:
        self.layers[1].eval()
        return self.layers(x)


def test_a_batch_norm_that_a_pass_turns_is_refused():
    with pytest.raises(UserError, match="turns its batch norm layers.1 to another mode"):
        learner(Turning())(episode(), WEIGHTS)


def test_gains_of_another_learner_s_rows_are_not_adapted():
    net = normed()
    first = learner(net, adapt=lambda name: True)
    learner(net)
    with pytest.raises(UserError, match="1.weight, 1.bias of the module are not as they were"):
        first(episode(), WEIGHTS)
    with pytest.raises(UserError, match="for which another Learner of this module has rows"):
        learner(net, adapt=lambda name: True)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda net: net.append(nn.Linear(2, 2).double()), "4.weight, 4.bias of the module"),
        (lambda net: net.__setitem__(3, nn.Linear(8, 5).double()), "3.weight, 3.bias of the"),
        (lambda net: net.__setitem__(1, nn.BatchNorm1d(8).double()), "1 is another batch norm"),
        (lambda net: nn.utils.parametrizations.weight_norm(net[0]), "0.weight, 0.parametriz"),
    ],
)
def test_a_module_of_other_parameters_than_then_is_refused(change, words):
    net = normed()
    made = learner(net)
    change(net)
    with pytest.raises(UserError, match=words):
        made(episode(), WEIGHTS)


def test_what_is_no_learner_or_name_is_told():
    with pytest.raises(UserError, match=r"learner is a Sequential: give engine.Learner\(module,"):
        engine.fit(mlp(), lambda i: episode(), val=lambda i: episode())
    with pytest.raises(UserError, match="name is '../up': give a text without a slash"):
        engine.fit(learner(mlp()), lambda i: episode(), val=lambda i: episode(), name="../up")
    with pytest.raises(UserError, match="weights are 3: give 2, one for each inner step"):
        learner(mlp())(episode(), 3)
    with pytest.raises(UserError, match="^lr is -1"):
        engine.fit(learner(mlp()), lambda i: episode(), val=lambda i: episode(), lr=-1.0)


def test_what_fit_would_not_see_is_refused(tmp_path):
    def trained(change):
        made = learner(mlp())
        change(made)
        engine.fit(made, lambda i: episode(), val=lambda i: episode(), run=tmp_path, epochs=1)

    with pytest.raises(UserError, match="rates have a hook on the gradient"):
        trained(lambda made: made.rates.register_hook(lambda g: 0 * g))
    with pytest.raises(UserError, match="0.weight have a hook on the gradient"):
        trained(lambda made: made.module[0].weight.register_post_accumulate_grad_hook(print))
    with pytest.raises(UserError, match="rates of the learner itself are parametrized"):
        trained(lambda made: parametrize.register_parametrization(made, "rates", nn.Softplus()))


class Distance(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.weight)


def test_an_operation_without_a_second_derivative_is_told():
    made = learner(Distance(3, 2).double())
    with pytest.raises(UserError, match="second derivatives need it: give order=1"):
        made(episode(), WEIGHTS)
    made(episode(), WEIGHTS, order=1)


@pytest.mark.parametrize(
    "module, words",
    [
        (lambda: torch.compile(mlp()), "the module is compiled"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 2))), "the module is compiled .0."),
        (lambda: nn.Linear(3, 2).to(torch.complex64), "parameters are torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_second_derivatives_is_refused_at_once(module, words):
    with pytest.raises(UserError, match=words):
        learner(module())
