"""What a stranger meets: fifteen lines train, continue and predict; a mistake is told in one."""

from __future__ import annotations

import json
import runpy
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine
from engine import Backbone, Episode, Learner, Tasks
from engine.errors import Diverged, UserError
from engine.runs import checkpoint
from tests.tiny import ROOT, same, timeless

SCRIPT = ROOT / "tests" / "stranger.py"


@pytest.fixture
def script(monkeypatch):
    """Runs it as a command of these arguments; gives its global names."""

    def run(*argv: object) -> dict:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, argv)])
        return runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def rows(run: Path, kind: str) -> list[dict]:
    """Of the log, but for times and memory."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return timeless([row for row in lines if row["kind"] == kind])


def test_fifteen_lines_of_public_names():
    lines = [line for line in SCRIPT.read_text().splitlines()[1:] if line.strip()]
    assert len(lines) <= 15
    assert {line for line in lines if "import" in line} == {
        "import sys",
        "import torch",
        "import engine",
    }


def test_they_train_continue_to_the_bit_and_predict(script, tmp_path, monkeypatch):
    straight = script(tmp_path / "straight", 3)
    found = [row["accuracy"] for row in rows(tmp_path / "straight", "validation")]
    assert len(found) == 3 and found[2] > found[0] + 0.05 > 1 / 3
    right = straight["answers"] == torch.arange(3).repeat_interleave(3)
    assert straight["answers"].shape == (9,) and right.sum() > 5

    script(tmp_path / "longer", 1)
    assert len(rows(tmp_path / "longer", "validation")) == 1
    longer = script(tmp_path / "longer", 3)

    episode, sent = Tasks.episode, []

    def interrupting(self, i):
        if i == 7 and not sent:
            sent.append(i)
            signal.raise_signal(signal.SIGINT)
        return episode(self, i)

    monkeypatch.setattr(Tasks, "episode", interrupting)
    with pytest.raises(KeyboardInterrupt, match="saved; the same call continues"):
        script(tmp_path / "stopped", 3)
    assert 0 < checkpoint.load(tmp_path / "stopped" / "latest.pt").state["iteration"] < 25
    stopped = script(tmp_path / "stopped", 3)

    again = script(tmp_path / "straight", 3)  # there is nothing to do but to load it
    expected = checkpoint.load(tmp_path / "straight" / "latest.pt").state
    for name, made in {"longer": longer, "stopped": stopped, "straight": again}.items():
        assert same(checkpoint.load(tmp_path / name / "latest.pt").state, expected)
        assert same(made["learner"].state_dict(), straight["learner"].state_dict())
        assert torch.equal(made["answers"], straight["answers"])
        for kind in ("validation", "train")[: 1 if name == "longer" else 2]:
            logged = rows(tmp_path / name, kind)
            earlier = [row.pop("earlier_epochs", None) for row in logged]
            assert logged == rows(tmp_path / "straight", kind)
            assert earlier == ([None, [1], [1]] if name == "longer" else [None] * len(logged))


class Answers(nn.Module):
    """Gives what a function makes of the outputs and the inputs."""

    def __init__(self, made):
        super().__init__()
        self.linear, self.made = nn.Linear(4, 3), made

    def forward(self, x):
        return self.made(self.linear(x), x)


def net(inputs: int = 4, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def points(dtype: torch.dtype = torch.float32) -> Episode:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, 4, generator=g).to(dtype), (torch.arange(6) % 3).repeat(2, 1)
    return Episode(x, y, x, y)


def images(side: int = 8, dtype: torch.dtype = torch.float32) -> Episode:
    x = torch.zeros(2, 6, 3, side, side, dtype=dtype)
    return Episode(x, points().support_y, x, points().target_y)


def changed(episode: Episode, **fields) -> Episode:
    return Episode(**vars(episode) | fields)


def backbone() -> Learner:
    return Learner(Backbone(3, 8, 3, 2, 3), steps=1)


E0 = points()
MISTAKES = {
    "lengths": (net, F.cross_entropy, changed(E0, support_y=E0.support_y[:, :5]),
        "{support_}x has 6 samples a task and {support_}y 5: give each sample its own y"),
    "classes": (lambda: net(outputs=2), F.cross_entropy, E0,
        "the loss cross_entropy failed on an output float32 [6, 2] and y int64 [6]: Target 2 is "
        "out of bounds; give outputs and y that fit it (labels of classes are from 0 to outputs "
        "- 1)"),
    "features": (lambda: net(inputs=5), F.cross_entropy, E0,
        "Sequential failed on x float32 [6, 4]: mat1 and mat2 shapes cannot be multiplied (6x4 "
        "and 5x8); its parameters are float32: give inputs that fit, or mend its forward"),
    "whole numbers": (net, F.cross_entropy, points(torch.int64),
        "Sequential failed on x int64 [6, 4]: mat1 and mat2 must have the same dtype, but got "
        "Long and Float; its parameters are float32: give inputs that fit, or mend its forward"),
    "doubles": (net, F.cross_entropy, points(torch.float64),
        "Sequential failed on x float64 [6, 4]: mat1 and mat2 must have the same dtype, but got "
        "Double and Float; its parameters are float32: give inputs that fit, or mend its forward"),
    "arguments": (lambda: Answers(lambda out, x: out.nothing), F.cross_entropy, E0,
        "Answers failed on x float32 [6, 4]: 'Tensor' object has no attribute 'nothing'; its "
        "parameters are float32: give inputs that fit, or mend its forward"),
    "reduction": (net, nn.CrossEntropyLoss(reduction="none"), E0,
        "the loss of a task has shape [6]: it must be a tensor of one number; give a loss that "
        "averages, as F.cross_entropy with reduction='mean'"),
    "float": (net, lambda output, y: F.cross_entropy(output, y).item(), E0,
        "the loss of a task has type float: it must be a tensor of one number; give a loss that "
        "averages, as F.cross_entropy with reduction='mean'"),
    "no derivative": (net, lambda output, y: (output.argmax(1) != y).sum() * 0 + 2, E0,
        "the loss of a task, 2, does not depend on the parameters for autograd: give one without "
        "argmax, detach, item or no_grad in it or in the network"),
    "tuple": (lambda: Answers(lambda out, x: (out, x)), nn.CrossEntropyLoss(), E0,
        "the loss CrossEntropyLoss failed on an output (float32 [6, 3], float32 [6, 4]) and y "
        "int64 [6]: cross_entropy_loss(): argument 'input' (position 1) must be Tensor, not "
        "tuple; give outputs and y that fit it (labels of classes are from 0 to outputs - 1)"),
    "nothing": (lambda: Answers(lambda out, x: None), lambda output, y: output.mean(), E0,
        "the loss <lambda> failed on an output NoneType and y int64 [6]: 'NoneType' object has no "
        "attribute 'mean'; give outputs and y that fit it (labels of classes are from 0 to "
        "outputs - 1)"),
    "size": (backbone, None, images(12),
        "{support_}x is float32 {tasks}, 6, 3, 12, 12]: a Backbone takes float32 [tasks, samples, "
        "3, 8, 8], as it was made"),
    "bytes": (backbone, None, images(dtype=torch.uint8),
        "{support_}x is uint8 {tasks}, 6, 3, 8, 8]: a Backbone takes float32 [tasks, samples, 3, "
        "8, 8], as it was made"),
    "outputs": (backbone, None, changed(images(), support_y=E0.support_y + 1),
        "{support_}y has labels from 1 to 3: the network has 3 outputs; give labels from 0 to 2, "
        "or a network of more ways"),
}  # fmt: skip


def forward(learner: Learner, episode: Episode, run: Path) -> None:
    learner(episode)


def adapt(learner: Learner, episode: Episode, run: Path) -> None:
    learner.adapt(episode.support_x[0], episode.support_y[0])


def evaluate(learner: Learner, episode: Episode, run: Path) -> None:
    learner.evaluate([episode])


def fit(learner: Learner, episode: Episode, run: Path) -> None:
    engine.fit(learner, lambda i: episode, val=lambda i: episode, run=run, epochs=1, iterations=1)


CALLS = pytest.mark.parametrize("call", [forward, adapt, evaluate, fit])


@CALLS
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_through_every_call(name, call, tmp_path):
    make, loss, episode, message = MISTAKES[name]
    learner = make() if loss is None else Learner(make(), loss, steps=1)
    words = {"support_": "", "tasks": "[1"} if call is adapt else {"support_": "support_"}
    with pytest.raises(UserError) as caught:
        call(learner, episode, tmp_path / "run")
    assert str(caught.value) == message.format(**{"tasks": "[2"} | words)
    if " failed on " in message:  # where it happened is told before
        assert "The above exception was the direct cause" in "".join(
            traceback.format_exception(caught.value)
        )


@CALLS
def test_a_mistake_does_not_change_how_the_next_tasks_are_run(call, tmp_path):
    learner = Learner(net(), steps=1)
    with pytest.raises(UserError):
        call(learner, points(torch.float64), tmp_path / "run")
    assert learner.model._at_once(E0.support_x)  # all tasks at once, as without the mistake
    assert learner(E0).predictions.shape == (2, 6, 3)


def test_other_errors_of_a_network_or_loss_are_left_as_they_are():
    class Enough(Exception):
        pass

    def stop(*_):
        raise Enough

    def too_large(*_):
        raise torch.OutOfMemoryError("out of memory")

    for function, kind in ((stop, Enough), (too_large, torch.OutOfMemoryError)):
        for learner in (Learner(net(), function), Learner(Answers(function))):
            with pytest.raises(kind):
                learner(E0)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (changed(E0, support_y=E0.support_y[0]), "support_y is of shape [6]: give a tensor [tasks"),
        (changed(E0, target_x=E0.target_x.numpy()), "target_x is a ndarray: give a tensor [tasks"),
        (changed(E0, target_x={"x": [1]}), "target_x is a dict: give a tensor [tasks"),
        (changed(E0, target_x=[]), "target_x is a list: give a tensor [tasks"),
        (changed(E0, target_y=E0.target_y[:, :5]), "target_x has 6 samples a task and target_y 5"),
        (changed(E0, target_x=[*E0.target_x], target_y=[E0.target_y[0], E0.target_y[1, :4]]),
         "target_x has 6 samples a task and target_y 4"),
        (changed(E0, target_x=E0.target_x[:1]), "target_x of 1, target_y of 2 tasks"),
        (tuple(vars(E0).values()), "an episode is a tuple: give an engine.Episode of support_x"),
        (None, "an episode is a NoneType: give an engine.Episode of support_x"),
    ],
)  # fmt: skip
def test_an_episode_that_is_none(episode, message, tmp_path):
    for call in (forward, evaluate, fit):
        with pytest.raises(UserError) as caught:
            call(Learner(net(), steps=1), episode, tmp_path / "run")
        assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def of_first(output: tuple, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output[0], y)


def frozen() -> nn.Module:
    return net().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Learner(frozen()), "each of 0.weight, 0.bias, 2.weight, 2.bias is frozen"),
        (lambda: Learner(net(), adapt=lambda name: False), "to the outer loop; adapt some"),
        (lambda: Learner(nn.Flatten()), "no parameter of Flatten is adapted by the inner loop: it"),
        (lambda: Learner(nn.Linear), "give an nn.Module, an engine.Backbone or engine.ResNet12"),
        (lambda: Learner(net(), "cross_entropy"), "loss is 'cross_entropy': give a function of"),
        (lambda: Learner(net(), steps=2.5), "steps is 2.5: give a number >= 1"),
        (lambda: Learner(net(), rate="0.1"), "rate is '0.1': give a number > 0"),
        (lambda: Learner(net()).adapt(E0.support_x[0].numpy(), E0.support_y[0]), "x is ndarray"),
        (lambda: Learner(net()).adapt(E0.support_x[0], torch.tensor(1)), "y is of shape []: give"),
        (lambda: Learner(net()).adapt(E0.support_x[0], E0.support_y[0], steps=0), "steps is 0"),
        (lambda: Learner(net()).predict(E0, steps=0), "steps is 0: give a number >= 1"),
        (lambda: backbone().adapt(images().support_x[0], E0.support_y[0])(torch.zeros(1, 3, 9, 9)),
         "x is float32 [1, 1, 3, 9, 9]: a Backbone takes float32 [tasks, samples, 3, 8, 8]"),
        (lambda: Learner(net()).evaluate(E0), "tasks are one Episode: give a list of some"),
        (lambda: Learner(net()).evaluate([]), "there is no task to evaluate: give one or more"),
        (lambda: Learner(net()).evaluate(
            Tasks((torch.zeros(9, 4), [0, 1, 2] * 3), ways=3, shots=1, targets=1)),
         "tasks do not end: give Tasks a length"),
        (lambda: Learner(net(outputs=1), F.mse_loss).evaluate(
            changed(E0, support_y=E0.support_x[..., :1], target_y=E0.target_x[..., :1])
            for _ in range(2)),
         "accuracy is of classes, and y is float32 [6, 1]: give the metric 'loss'"),
        (lambda: Learner(Answers(lambda out, x: (out, x)), of_first).evaluate([E0]),
         "the network answers (float32 [6, 3], float32 [6, 4]) where y is int64 [6]: give another"),
    ],
)  # fmt: skip
def test_other_mistakes(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)


def test_the_accuracy_of_a_regression_is_refused_before_it_is_trained(tmp_path):
    y = E0.support_x[..., :1]
    waves = changed(E0, support_y=y, target_y=y)
    with pytest.raises(UserError, match="accuracy is of classes, and y is float32 .6, 1.: give"):
        fit(Learner(net(outputs=1), F.mse_loss), waves, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_a_number_ends_in_one_line(tmp_path):
    learner = Learner(net(), lambda output, y: torch.nan * F.cross_entropy(output, y))
    assert learner(E0).loss.isnan()  # as torch's own: scalers look for it
    with pytest.raises(UserError, match=r"not finite after 5 inner steps .the loss .* was nan.: g"):
        adapt(learner, E0, tmp_path)
    with pytest.raises(Diverged, match="iteration 1: loss, gradient of theta, .* is not finite"):
        fit(learner, E0, tmp_path / "run")


@pytest.mark.parametrize("vectorize", [True, False])
def test_outputs_of_several_tensors_are_each_tasks_own(vectorize):
    loss = lambda output, y: F.cross_entropy(output["logits"][0], y)  # noqa: E731
    torch.manual_seed(0)
    more = {} if vectorize else {"text": "as it is"}  # vmap takes nothing but tensors
    module = Answers(lambda out, x: {"logits": (out, 2 * out)} | more)
    learner = Learner(module, loss, steps=2, vectorize=vectorize)
    found = learner(E0).predictions
    expected = [learner.adapt(x, y)(x) for x, y in zip(E0.support_x, E0.support_y, strict=True)]
    assert len(found) == 2
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["logits"][0].shape == (6, 3) and not mine["logits"][0].requires_grad
        assert mine.get("text") == theirs.get("text") == more.get("text")
        for i in (0, 1):
            torch.testing.assert_close(mine["logits"][i], theirs["logits"][i])
    metric = lambda output, y: (output["logits"][1].argmax(1) == y).float().mean()  # noqa: E731
    score = learner.evaluate([E0], metric)
    right = [e["logits"][0].argmax(1) == y for e, y in zip(expected, E0.target_y, strict=True)]
    assert score.tasks == 2 and score.accuracy == pytest.approx(torch.cat(right).float().mean())


def test_fit_takes_outputs_of_several_tensors_and_uneven_tasks(tmp_path):
    uneven = [[*E0.support_x], [*E0.support_y], [E0.target_x[0], E0.target_x[1, :3]],
              [E0.target_y[0], E0.target_y[1, :3]]]  # fmt: skip
    for i, episode in enumerate((E0, Episode(*uneven))):
        learner = Learner(Answers(lambda out, x: (out, x)), of_first, steps=2)
        options = {"epochs": 2, "iterations": 2, "eval_tasks": 4, "ensemble": 2, "metric": "loss"}
        fields = {"val": lambda i, episode=episode: episode, "run": tmp_path / str(i)}
        run = engine.fit(learner, fields["val"], **fields, **options)
        result = json.loads((run.folder / "result.json").read_text())
        assert result["ensemble"]["epochs"] == [2, 1]
        losses = [result[name]["loss"] for name in ("best", "ensemble")]
        mean = learner.evaluate([episode, episode], "loss").accuracy
        assert losses[0] == pytest.approx(mean, rel=1e-5) and losses[1] == pytest.approx(mean, 0.1)
    one_tensor = Learner(net(), steps=2)
    run = engine.fit(one_tensor, lambda i: episode, val=lambda i: episode, run=tmp_path / "2",
                     epochs=1, iterations=2, eval_tasks=4, ensemble=1)  # fmt: skip
    (row,) = rows(run.folder, "validation")
    assert row["accuracy"] == pytest.approx(one_tensor.evaluate([episode, episode]).accuracy)
    assert row["step_accuracy"][-1] > 0
