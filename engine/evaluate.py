"""Fixed evaluation tasks, their mean accuracy with its 95 % interval, the ensemble of checkpoints.

    python -m engine.evaluate CHECKPOINT [--dataset folder --data PATH --eval-steps 10 ...]

CHECKPOINT is a run folder (its best model and the ensemble of its best) or one ``.pt`` file.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from engine.commandline import Parser, add_flags, parse
from engine.config import Config
from engine.errors import UserError, say
from engine.runs.interrupt import Interrupt, answered

if TYPE_CHECKING:  # torch takes seconds to import; a wrong flag is answered before
    import torch
    from torch import Tensor

    from engine.data import Dataset
    from engine.episodes import Episode, EpisodeSampler
    from engine.meta import State

# The same tasks for every run, so that two runs, whatever their seeds, are compared on equal terms.
TASK_SEED = 0
BATCH = 16  # tasks drawn at once
# One validation task in so many is predicted after every step. Of the paper's tasks, with many more
# targets than support images, such a one takes up to three times as long.
STEP_SHARE = 30

FLAGS = (
    "dataset data cache strict_data split split_ratio skip_small_classes rotations ways shots "
    "targets eval_steps norm_statistics protocol eval_tasks device threads backend precision "
    "no_graph"
).split()


class Score(NamedTuple):
    """Accuracy over tasks: mean, half-width of its 95 % interval, number of tasks."""

    accuracy: float
    interval: float
    tasks: int


class StepAccuracy(NamedTuple):
    """Mean accuracy over the first tasks after each inner step, and the number of tasks."""

    accuracy: list[float]
    tasks: int


def score(per_task: Tensor) -> Score:  # [tasks] accuracies
    """Mean and 1.96 s / sqrt(n), s the sample standard deviation over the n tasks."""
    n = len(per_task)
    return Score(per_task.mean().item(), 1.96 * per_task.std().item() / n**0.5, n)


def evaluate(
    cfg: Config,
    states: list[State],
    dataset: Dataset,
    part: str,
    tasks: int,
    *,
    between: Callable[[], None] = lambda: None,
) -> tuple[list[Score], Score]:
    """Each state's score, and that of their ensemble (mean of the logits), on the same tasks.

    ``part``: train, val or test. ``between`` is called before each batch of tasks; it may
    raise to stop.
    """
    import torch

    predict = _prediction(cfg)

    @torch.inference_mode()
    def members(episode: Episode) -> Tensor:  # [states + 1, T, N, ways]
        logits = torch.stack([predict(state, episode) for state in states])
        return torch.cat([logits, logits.mean(0, keepdim=True)])

    fixed = _Tasks(cfg, dataset, part, states[0].params.theta.device)
    answers = fixed.answers(members, cfg.no_graph)
    *single, ensemble = map(score, _accuracies(answers, tasks, part, between))
    return single, ensemble


def validate(
    cfg: Config, state: State, dataset: Dataset, *, between: Callable[[], None] = lambda: None
) -> tuple[Score, StepAccuracy]:
    """The score on the validation tasks, and the accuracy after each inner step on the first of
    them: so few that the predictions after every step add about a tenth to the time.
    """
    predict, part = _prediction(cfg), "val"
    fixed = _Tasks(cfg, dataset, part, state.params.theta.device)
    last = fixed.answers(lambda episode: predict(state, episode).unsqueeze(0), cfg.no_graph)
    # A graph is captured by running it a few times: for so few tasks that would be the most of it.
    each = fixed.answers(lambda episode: predict(state, episode, every=True), no_graph=True)
    (row,) = _accuracies(last, cfg.eval_tasks, part, between)
    first = max(1, cfg.eval_tasks // STEP_SHARE)
    by_step = _accuracies(each, first, part, between).mean(1)
    return score(row), StepAccuracy(by_step.tolist(), first)


def _prediction(cfg: Config) -> Callable[..., Tensor]:
    """Of (state, episode): logits [T, N, ways], and with every=True [steps, T, N, ways]."""
    import torch

    from engine.models.backbone import Backbone
    from engine.unroll import adapt_and_predict

    model = Backbone.of(cfg)

    @torch.inference_mode()
    def predict(state: State, episode: Episode, **options: bool) -> Tensor:
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


def _accuracies(
    answers: Answers, tasks: int, label: str, between: Callable[[], None]
) -> Tensor:  # float64 [rows, tasks], on the CPU
    import torch

    import kernels

    correct = []
    for first in tqdm(range(0, tasks, BATCH), desc=label, leave=False, disable=None):
        between()
        with kernels.only_kernels():
            logits, labels = answers(first, min(BATCH, tasks - first))
            hits = logits.argmax(-1) == labels  # [rows, T, N]
            correct.append(hits.double().mean(-1).cpu())
    return torch.cat(correct, dim=1)


class _Tasks:
    """The fixed tasks of a part, answered where the states are."""

    def __init__(self, cfg: Config, dataset: Dataset, part: str, device: torch.device):
        from engine.runs.run import sampler

        self._sampler = sampler(cfg, dataset, part, seed=TASK_SEED)
        self._bank = self._sampler.bank.to(device) if device.type == "cuda" else None

    def answers(self, predict: Predict, no_graph: bool) -> Answers:
        if self._bank is None:
            return _on_host(predict, self._sampler)
        return _on_device(predict, self._sampler, self._bank, no_graph)


# Logits [rows, T, N, ways], a row a state or a step, and labels [T, N] of some tasks, by the first
# one and their number.
Answers = Callable[[int, int], "tuple[Tensor, Tensor]"]
Predict = Callable[["Episode"], "Tensor"]


def _on_host(predict: Predict, sampler: EpisodeSampler) -> Answers:
    import torch

    import kernels
    from engine.runtime.workers import over_tasks

    def answers(first: int, count: int) -> tuple[Tensor, Tensor]:
        episode = sampler.episode(0, count, first_task=first)
        block = kernels.task_block(episode.support_x, False)
        return torch.cat(over_tasks(predict, episode, block), dim=1), episode.target_y

    return answers


def _on_device(predict: Predict, sampler: EpisodeSampler, bank: Tensor, no_graph: bool) -> Answers:
    """With images gathered on the device, and each number of tasks a graph of its own. Its answers
    are to be read before the next are asked for.
    """
    from engine.runtime.graph import capture
    from engine.runtime.resident import Feed

    captured = {}

    def begin(count: int) -> tuple:
        feed, result = Feed(sampler, bank, count), []

        def body() -> None:
            episode = feed.episode()
            result[:] = predict(episode), episode.target_y

        replay = body if no_graph else capture(body, bank.device)
        return feed, feed.staging(), replay, result

    def answers(first: int, count: int) -> tuple[Tensor, Tensor]:
        if count not in captured:
            captured[count] = begin(count)
        feed, staging, replay, result = captured[count]
        feed.load(sampler.draw(0, count, first_task=first), staging)
        replay()
        return tuple(result)

    return answers


def test(
    cfg: Config,
    members: dict[int, State],  # by epoch, best on validation first
    dataset: Dataset,
    part: str = "test",
    *,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Best model and ensemble, as saved in result.json and shown by log.test_table."""
    single, ensemble = evaluate(
        cfg, list(members.values()), dataset, part, cfg.eval_tasks, between=between
    )
    epochs = list(members)
    return {
        "data": dataset.name,
        "identity": dataset.identity,
        "split": part,
        "ways": cfg.ways,
        "shots": cfg.shots,
        "targets": cfg.targets,
        "tasks": cfg.eval_tasks,
        "steps": cfg.eval_steps or cfg.steps,
        "protocol": cfg.protocol,
        "norm_statistics": cfg.norm_statistics,
        "best": {"epoch": epochs[0], **_shown(single[0])},
        "ensemble": {"epochs": epochs, **_shown(ensemble)},
    }


def _shown(result: Score) -> dict[str, float]:
    return {"accuracy": result.accuracy, "interval": result.interval}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _evaluate_checkpoint(argv, interrupt), stopped="stopped")


def _flags(argv: list[str]) -> dict[str, Any]:
    parser = Parser(prog="python -m engine.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="run folder or .pt file")
    parser.add_argument(
        "--on",
        choices=("test", "val", "train"),
        default="test",
        metavar="test|val|train",
        help="classes to evaluate on",
    )
    add_flags(parser, FLAGS)
    return parse(parser, argv)


def _evaluate_checkpoint(argv: list[str], interrupt: Interrupt) -> None:
    explicit = _flags(argv)
    path, part = explicit.pop("checkpoint"), explicit.pop("on")
    from engine.runs.log import test_table
    from engine.runs.run import load_dataset, machine, settled
    from engine.runs.saved import load_best, own_data, restore

    interrupt.phase = "unwind"
    saved = load_best(path)
    trained = Config.from_dict(saved[0].config)
    if explicit.get("ways", trained.ways) != trained.ways:
        raise UserError(
            f"--ways is {explicit['ways']}: the classifier of {path} has {trained.ways} outputs; "
            "leave --ways out"
        )
    if explicit.get("dataset", trained.dataset) != trained.dataset:
        # what belongs to the other kind of data is of no use for this one
        other = {"data": None, "split": "paper", "split_ratio": None, "rotations": "none"}
        explicit = other | explicit
    if explicit.get("dataset") == "omniglot" and trained.channels != 1:
        raise UserError(
            f"--dataset is omniglot, which is grey: the network of {path} takes "
            f"{trained.channels} channels; give other data, or train with --channels 1"
        )
    cfg = dataclasses.replace(trained, **own_data(path, trained) | explicit)
    if cfg.data is None and cfg.dataset == trained.dataset:
        cfg = _at_default(cfg, path, saved[0].data_name)
    with machine(cfg) as device:
        cfg = settled(cfg, device, saved[0].precisions or {})
        dataset = load_dataset(cfg, part)
        other = "" if dataset.identity == saved[0].data_identity else ", other data"
        say(f"{path}: trained on {saved[0].data_name}, tested on {dataset.name}{other}")
        result = test(cfg, restore(trained, saved, device), dataset, part)
        say(*test_table(result))


def _at_default(cfg: Config, path: Path, data_name: str) -> Config:
    """Data at its default place only, and no stand-in for real data: nobody asked for another."""
    from engine.data import default_path, standin

    if data_name == standin.NAME:
        return cfg
    if cfg.dataset == "folder" or not default_path(cfg.dataset).exists():
        raise UserError(
            f"{path} was trained on {data_name} and does not say where it lies on this machine; "
            "name it with --data"
        )
    return dataclasses.replace(cfg, strict_data=True)


if __name__ == "__main__":
    sys.exit(main())
