"""Fixed evaluation tasks: accuracy with its 95 % interval, the ensemble of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from engine.config import Config
from engine.data import Dataset
from engine.episodes import Episode, EpisodeSampler, Values
from engine.errors import Diverged, silenced
from engine.meta import State
from engine.methods import METHODS
from engine.methods.loops import loop
from engine.methods.prototypical import resized
from engine.models import network
from engine.models.interface import Model
from engine.models.module import Module
from engine.runtime import graph, ranks
from engine.runtime.resident import Feed
from engine.runtime.workers import over_blocks
from engine.scores import Score, score

# The same tasks for every run, so that two runs, whatever their seeds, are compared on equal terms.
TASK_SEED = 0
BATCH = 16  # tasks drawn at once
# One validation task in so many is predicted after every step. Of the paper's tasks, with many more
# targets than support images, such a one takes up to three times as long.
STEP_SHARE = 30
_NONE = -1  # in the place of a class where the logits are not finite


class Predictions(NamedTuple):
    """Of the fixed tasks, on the CPU."""

    predicted: Tensor  # int64 [rows, tasks, N]: a row a state or a step
    labels: Tensor  # int64 [tasks, N]

    def accuracies(self) -> Tensor:  # float64 [rows, tasks]
        return (self.predicted == self.labels).double().mean(-1)


class StepAccuracy(NamedTuple):
    """Mean accuracy over the first tasks after each inner step, and the number of tasks."""

    accuracy: list[float]
    tasks: int


def evaluate(
    cfg: Config,
    states: list[State],
    dataset: Dataset,
    part: str,
    tasks: int,
    *,
    between: Callable[[], None] = lambda: None,
) -> tuple[list[Score], Score]:
    """Each state's score, and that of their ensemble, by their ``predictions``, which raise."""
    found = predictions(cfg, states, dataset, part, tasks, between=between)
    *single, ensemble = map(score, found.accuracies())
    return single, ensemble


def predictions(
    cfg: Config,
    states: list[State],
    dataset: Dataset,
    part: str,
    tasks: int,
    *,
    between: Callable[[], None] = lambda: None,
) -> Predictions:
    """Of each state, and last of their ensemble (mean of the logits), on the same tasks.

    ``part``: train, val or test. ``between`` is called before each batch of tasks; it may
    raise to stop. Raises Diverged where logits are not finite, which answer nothing.
    """
    predict = prediction(cfg, network(cfg))

    @torch.inference_mode()
    def members(episode: Episode) -> Tensor:  # [states + 1, T, N, ways]
        logits = torch.stack([predict(state, episode) for state in states])
        return torch.cat([logits, logits.mean(0, keepdim=True)])

    fixed = _Tasks(cfg, dataset, part, states[0].params.theta.device)
    return _collected(cfg, fixed.answers(members, cfg.no_graph), tasks, part, between)


def validate(
    cfg: Config, state: State, dataset: Dataset, *, between: Callable[[], None] = lambda: None
) -> tuple[Score, StepAccuracy]:
    """The score on the validation tasks, and the accuracy after each inner step on the first of
    them: so few that the predictions after every step add about a tenth to the time. Raises
    Diverged as ``predictions``.
    """
    predict, part = prediction(cfg, network(cfg)), "val"
    fixed = _Tasks(cfg, dataset, part, state.params.theta.device)
    last = fixed.answers(lambda episode: predict(state, episode).unsqueeze(0), cfg.no_graph)
    # A graph is captured by running it a few times: for so few tasks that would be the most of it.
    each = fixed.answers(lambda episode: predict(state, episode, every=True), no_graph=True)
    (row,) = _collected(cfg, last, cfg.eval_tasks, part, between).accuracies()
    first = max(1, cfg.eval_tasks // STEP_SHARE)
    by_step = _collected(cfg, each, first, part, between).accuracies().mean(1)
    return score(row), StepAccuracy(by_step.tolist(), first)


def prediction(cfg: Config, model: Model) -> Callable[..., Values]:
    """Of (state, episode): logits [T, N, ways], and with every=True [steps, T, N, ways]."""
    adapt_and_predict = loop(cfg, model).adapt_and_predict

    @torch.inference_mode()
    def predict(state: State, episode: Episode, **options: bool) -> Values:
        return adapt_and_predict(
            model,
            state.params,
            state.running,
            episode,
            steps=cfg.eval_steps or cfg.steps,
            norm_statistics=cfg.norm_statistics,
            protocol=cfg.protocol,
            **options,
        )

    return predict


def with_ways(state: State, trained: Config, cfg: Config) -> State:
    """A state for tasks of other ways, of a method whose classifier is made of the support set."""
    theta = resized(state.params.theta, network(trained), network(cfg))
    return state._replace(params=state.params._replace(theta=theta))


def _collected(
    cfg: Config, answers: Answers, tasks: int, part: str, between: Callable[[], None]
) -> Predictions:
    bar = tqdm(total=tasks, desc=part, leave=False, disable=silenced() or None)

    def batch(first: int) -> tuple[Tensor, Tensor]:
        between()
        with kernels.only_kernels():
            logits, labels = answers(first, min(BATCH, tasks - first))
            bar.update(len(labels))
            finite = logits.amax(-1).isfinite()
            return torch.where(finite, logits.argmax(-1), _NONE).cpu(), labels.cpu()

    with bar:
        found = ranks.current().spread(range(0, tasks, BATCH), batch)
    between()
    predicted, right = zip(*found, strict=True)
    made = Predictions(torch.cat(predicted, dim=1), torch.cat(right))
    if lost := int((made.predicted == _NONE).any(-1).any(0).sum()):
        steps = _steps(cfg)
        after = f"after {steps} inner steps, " if steps else ""
        raise Diverged(
            f"the logits of {lost} of {tasks} {part} tasks are not finite ({after}with "
            f"{cfg.norm_statistics} statistics)"
        )
    return made


def _steps(cfg: Config) -> int:
    """Of the inner loop in evaluation; 0: the method has none."""
    return (cfg.eval_steps or cfg.steps) if METHODS[cfg.method].has_steps else 0


class _Tasks:
    """The fixed tasks of a part, answered where the states are."""

    def __init__(self, cfg: Config, dataset: Dataset, part: str, device: torch.device):
        self._sampler = EpisodeSampler.of(cfg, dataset, part, seed=TASK_SEED)
        self._model = network(cfg)
        self._alone = getattr(loop(cfg, self._model), "alone", False)
        self._bank = self._sampler.bank.to(device) if device.type == "cuda" else None

    def answers(self, predict: Predict, no_graph: bool) -> Answers:
        if self._bank is None:
            return _on_host(predict, self._model, self._sampler, self._alone)
        no_graph = no_graph or isinstance(self._model, Module)  # which autograd runs
        return _on_device(predict, self._sampler, self._bank, no_graph)


# Logits [rows, T, N, ways], a row a state or a step, and labels [T, N] of some tasks, by the first
# one and their number.
Answers = Callable[[int, int], tuple[Tensor, Tensor]]
Predict = Callable[[Episode], Tensor]


def _on_host(
    predict: Predict, model: Model, sampler: EpisodeSampler, alone: bool = False
) -> Answers:
    def answers(first: int, count: int) -> tuple[Tensor, Tensor]:
        episode = sampler.episode(0, count, first_task=first)
        blocks = over_blocks(predict, episode, model, single=alone)
        return torch.cat(blocks, dim=1), episode.target_y

    return answers


def _on_device(predict: Predict, sampler: EpisodeSampler, bank: Tensor, no_graph: bool) -> Answers:
    """With images gathered on the device, and each number of tasks a graph of its own. Its answers
    are to be read before the next are asked for.
    """
    captured = {}

    def begin(count: int) -> tuple:
        feed, result = Feed(sampler, bank, count), []

        def body() -> None:
            episode = feed.episode()
            result[:] = predict(episode), episode.target_y

        replay = body if no_graph else graph.capture(body, bank.device)
        return feed, feed.staging(), replay, result

    def answers(first: int, count: int) -> tuple[Tensor, Tensor]:
        if count not in captured:
            captured[count] = begin(count)
        feed, staging, replay, result = captured[count]
        feed.load(sampler.draw(0, count, first_task=first), staging)
        replay()
        return tuple(result)

    return answers


def summary(
    cfg: Config, epochs: list[int], dataset: Dataset, part: str, found: Predictions
) -> dict[str, Any]:
    """Best model and ensemble, as saved in result.json and shown by log.test_table: of predictions
    by the states of some epochs, best on validation first.
    """
    best, *_, ensemble = map(score, found.accuracies())
    return {
        "data": dataset.name,
        "identity": dataset.identity,
        "split": part,
        "method": cfg.method,
        "ways": cfg.ways,
        "shots": cfg.shots,
        "targets": cfg.eval_targets or cfg.targets,
        "tasks": cfg.eval_tasks,
        "steps": _steps(cfg),
        "protocol": cfg.protocol if cfg.other_protocol else None,
        "norm_statistics": cfg.norm_statistics,
        "best": {"epoch": epochs[0], **shown(best)},
        "ensemble": {"epochs": epochs, **shown(ensemble)},
    }


def shown(result: Score) -> dict[str, float]:
    return {"accuracy": result.accuracy, "interval": result.interval}
