"""Training of any learner as `engine.train` does its own network: schedules, validation, atomic
checkpoints, bit-exact continuation, Ctrl-C.

    run = engine.fit(learner, tasks, val=validation, run="runs/mine", epochs=20, iterations=500)

The same call continues a run that was stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import fingerprints, unroll
from engine.adapted import evaluating
from engine.allowed import PATH, check
from engine.config import Config
from engine.episodes import Episode, Values, each, mapped
from engine.errors import Diverged, UserError, as_arguments, listed, say
from engine.fingerprints import Fingerprint
from engine.learner import Learner
from engine.meta import State
from engine.methods.rates import by_tensor
from engine.models.interface import Moments, Params
from engine.models.module import Module
from engine.models.resnet12 import ResNet12
from engine.models.shareable import bound_to_threads, require_shareable
from engine.models.suitable import require_unhooked
from engine.runs.beginning import Beginning
from engine.runs.checkpoint import open_run
from engine.runs.interrupt import Interrupt, Stopped
from engine.runs.problem import Tested
from engine.runs.run import Run
from engine.runtime import ranks
from engine.runtime.workers import keep_freed_memory, over_blocks
from engine.scores import (
    METRICS,
    NotFinite,
    Score,
    measured,
    require_classes,
    require_several,
    score,
)
from engine.scoring import STEP_SHARE, TASK_SEED, StepAccuracy, prediction, shown
from engine.tasks import Tasks
from engine.told import checked
from engine.train import final_test, train_epochs
from kernels.threads import cores, of_torch

# Of the settings, those that a learner and its tasks do not say, or have no use for.
SETTINGS = (
    "epochs iterations optimizer lr min_lr annealing halving_epochs beta1 beta2 clamp max_norm "
    "msl_epochs first_order_epochs task_reduction train_norm_statistics eval_steps eval_tasks "
    "ensemble protocol seed threads prefetch log_every no_report fresh"
).split()


def fit(
    learner: Learner,
    tasks: Any,
    *,
    val: Any,
    test: Any = None,
    preset: str = "maml++",
    metric: str = "accuracy",
    run: str | Path | None = None,
    name: str = "own",
    **settings: Any,
) -> Run:
    """Trains, validates after every epoch, tests the best; the learner then has the best weights.

    tasks, val, test: `Tasks`, anything with `episode(i)`, or a function of i, so that an episode
        can be made again; all have as many tasks as episode 0. Without test the result is of val,
        which chose the best: no test, and called val. `eval_tasks` of val and of test are taken,
        whatever a length of theirs. `Tasks` of
        arrays or pictures are made ahead by another thread; what runs code of your own is not,
        unless `prefetch` says so: both would draw from torch's one generator.
    metric: "accuracy", or "loss", of which less is better.
    name: of the data. A run continues with the same network, name, tasks, loss and settings alone;
        tasks are compared by episode 0, a network by its answer to it with fixed parameters, to a
        few hundredths, a loss by its value on a fixed output.
    settings: of `engine.train`, those in `engine.fitting.SETTINGS`; others by the preset.

    Raises UserError when a setting is not allowed, or the folder holds another run, and
    KeyboardInterrupt, with everything saved, on Ctrl-C.
    """
    if not isinstance(learner, Learner):
        raise UserError(
            f"learner is a {type(learner).__name__}: give engine.Learner(module, loss), which "
            "learns to adapt the module"
        )
    if not isinstance(name, str) or Path(name).name != name:
        raise UserError(f"name is {name!r}: give a text without a slash")
    if metric not in METRICS:
        raise UserError(f"metric is {metric!r}: choose one of {', '.join(METRICS)}")
    if not isinstance(run, str | Path | None):
        raise UserError(f"run is {run!r}: give the path of a folder")
    check("run", run, PATH)
    for part in ("norm", "theta"):
        own = learner._parameters.get(part)
        if own is not None and own.numel() and not own.requires_grad:
            raise UserError(
                f"learner.{part} does not require grad, and engine.fit trains it: let it, or train "
                "in a loop of your own"
            )
    parts = {"tasks": _Part("tasks", tasks, learner), "val": _Part("val", val, learner)}
    parts["test"] = _Part("test", test, learner) if test is not None else parts["val"]
    if metric == "accuracy":
        require_classes(each(parts["val"].first.target_y)[0])
    if not learner.training:  # of parts alone it is their owner's choice
        learner.train()
    if not (isinstance(tasks, Tasks) and tasks.plain):
        settings = {"prefetch": 0} | settings
    cfg = _configuration(learner, preset, parts["tasks"].first.tasks, settings)
    problem = _Own(learner, parts, metric, name)
    folder = Path(run or Path("runs") / f"{name}-{preset}-seed{cfg.seed}").expanduser()
    device = learner.norm.device
    low = isinstance(learner.model, Module) and learner.model.memory == "low"
    if device.type == "cpu" and not (low or isinstance(learner.model, ResNet12)):
        keep_freed_memory()  # as engine.train
    with (
        Interrupt() as interrupt,
        torch.random.fork_rng([device] if device.type == "cuda" else []),  # the run has its own
        ranks.joined(interrupt),
        _shared(cfg, problem),
        open_run(folder, cfg.fresh),
    ):
        say(f"{name} on {device}, run folder {folder}")
        problem.fingerprints = problem.taken(cfg)  # before anything is drawn
        problem.look_at_module()
        made = Run.shared(cfg, folder, problem, device, Beginning(problem.state(), None))
        interrupt.phase = "finish"
        try:
            if made.epoch < cfg.epochs:
                train_epochs(made, interrupt)
            final_test(made, interrupt)
        except Stopped as stopped:
            problem.give(made.state)
            raise KeyboardInterrupt(f"{stopped.name}: saved; the same call continues") from None
        problem.give(*made.members(1).values())
    return made


def _configuration(learner: Learner, preset: str, tasks: int, settings: dict) -> Config:
    """The preset for natural images, with what the learner says of itself."""
    given = {
        "steps": learner.steps,
        "method": "maml++",
        "rates": "learned" if learner.rates.requires_grad else "fixed",
        "adapt": "all",  # of what the model adapts
        "norm_gains": "learned",
        "norm_weights": "per-step" if len(learner.norm) == learner.steps else "shared",
        "norm_stats": "per-step" if len(learner.running_mean) == learner.steps else "shared",
        "norm_statistics": learner.norm_statistics,
        "no_graph": learner.replays is None,
        "tasks": tasks,
    }
    if both := sorted(given.keys() & settings.keys()):
        raise UserError(f"{', '.join(both)}: the learner or its tasks say it already; leave it out")
    if unknown := sorted(settings.keys() - {*SETTINGS}):
        raise UserError(
            f"{', '.join(unknown)}: no such setting of engine.fit, which trains the learner as it "
            f"was made; it has {', '.join(SETTINGS)}"
        )
    # the learner's loss is a mean over tasks; of the rest Config says what is allowed
    with as_arguments():
        return Config.of(preset, "folder", **{"task_reduction": "mean"} | given | settings)


@contextmanager
def _shared(cfg: Config, problem: _Own) -> Iterator[None]:
    """Threads for a rank's share of the tasks. Raises UserError where their bits would depend on
    the number of ranks.
    """
    team, model = ranks.current(), problem.own_model
    _, own = team.share(cfg.tasks)
    if team.size > 1 and isinstance(model, Module):
        require_shareable(model, problem.first, own, cfg.threads)
    usual = max(1, cores() // team.local_size) if team.size > 1 else None
    with of_torch(cfg.threads or usual):
        yield


class _Part:
    """Episodes, each checked, all of as many tasks."""

    def __init__(self, name: str, tasks: Any, learner: Learner):
        self._name, self._learner = name, learner
        self._make = getattr(tasks, "episode", tasks)
        if not callable(self._make):
            raise UserError(
                f"{name} are a {type(tasks).__name__}: give Tasks, something with episode(i), or a "
                "function of i; a run that continues makes episode i again"
            )
        self.first = self._made(0)

    def __call__(self, i: int) -> Episode:
        episode, wanted = self._made(i), self.first.tasks
        if episode.tasks != wanted:
            raise UserError(
                f"episode {i} of {self._name} has {episode.tasks} tasks, and episode 0 {wanted}: "
                "give all the same number"
            )
        return episode

    def _made(self, i: int) -> Episode:
        return self._learner.checked(checked(self._make(i)).to(self._learner.norm.device))


class _Source:
    """The tasks of a part: an iteration is an episode, or, for a fixed set, so many tasks are."""

    def __init__(self, make: _Part):
        self._make = make

    def episode(self, iteration: int, tasks: int, first_task: int = 0) -> Episode:
        episode = self._make(iteration)
        return episode if tasks >= episode.tasks else episode.slice(first_task, first_task + tasks)


class _Own:
    """A learner and its tasks as a run's `Problem`."""

    fingerprints: dict[str, Fingerprint]

    def __init__(self, learner: Learner, parts: dict[str, _Part], metric: str, name: str):
        self.learner, self.own_model, self.name = learner, learner.model, name
        self._parts, self.metric, self.first = parts, metric, parts["tasks"].first
        own = isinstance(self.own_model, Module)
        kinds = [(n, list(p.shape), str(p.dtype)) for n, p in learner.state_dict().items()]
        text = repr((name, metric, kinds, learner.adapted_names, learner.steps))
        digest = hashlib.sha256(text.encode())
        for values in self._frozen() if own else ():
            digest.update(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self.identity = digest.hexdigest()[:32]

    def _frozen(self) -> list[Tensor]:
        """What no checkpoint holds, but for buffers, which a pass may change."""
        model = self.own_model
        learned = model.shapes | model.outer
        return [p for n, p in model.module.named_parameters() if n not in learned and p.numel()]

    def taken(self, cfg: Config) -> dict[str, Fingerprint]:
        """Fingerprints of tasks and loss; what does not stay the same has none, which is said."""
        found = {n: fingerprints.of_tasks(part) for n, part in self._parts.items()}
        task = self.first.slice(0, 1)
        with evaluating(self.learner):
            answer = self._answers(cfg, self.state(), task, 0)
            model = self.own_model
            fixed = isinstance(model, Module) and not (model.writes or model.random)
            if fixed and found["tasks"]:
                waves = fingerprints.waves(model, self.state())
                found[fingerprints.NETWORK] = fingerprints.of_call(
                    lambda: self._answers(cfg, waves, task, 0)
                )
        (output,), (y,) = each(answer), each(task.target_y)
        if self.metric == "accuracy":
            require_several(output)
        found["loss"] = fingerprints.of_loss(self.learner.criterion, output, y)
        changing = [n for n in self._parts if found[n] is None]
        if changing:
            say(
                f"episode 0 of {listed(changing)} is another each time it is made: a run that is "
                "stopped and continued will not be what one without a stop is"
            )
        return {n: value for n, value in found.items() if value is not None}

    def look_at_module(self) -> None:
        """Raises UserError of hooks; of what a continued run would lack a line is said."""
        require_unhooked(self.learner)
        model = self.own_model
        if not isinstance(model, Module):
            return
        with model.during(self.first.slice(0, 1), False):  # looks at it in training mode
            unsaved = {
                "the module writes to buffers other than batch norm's": model.writes,
                f"passes of the module change its {', '.join(model.counts)}": model.counts,
                "the loss keeps something of its own from call to call": model.loss_writes,
            }
            for what in (what for what, found in unsaved.items() if found):
                say(
                    f"{what}, which no checkpoint has: a run that is continued, and the best "
                    "epoch, lack what they were"
                )
            if model.foreign:
                say(
                    "the module draws random numbers of other generators than torch's: the same "
                    "call gives another run, and one that is continued is not one without a stop"
                )

    def seen(self, before: object) -> None:
        return None

    def bound(self, cfg: Config) -> tuple[str, ...]:
        own = isinstance(self.own_model, Module)
        return ("threads",) if own and bound_to_threads(self.own_model, self.first) else ()

    def preparation(self, cfg: Config) -> None:
        return None

    def names(self, cfg: Config) -> tuple[str, ...]:
        return self.learner.adapted_names

    def rates(self, cfg: Config, state: State) -> list[list[float]]:
        return by_tensor(state.params.rates, self.own_model.sizes).T.tolist()

    def state(self) -> State:
        params = Params(*(p.clone() for p in self.learner.params()))
        zeros = Params(*map(torch.zeros_like, params))
        running = Moments(*(m.clone() for m in self.learner.running()))
        return State(params, zeros, zeros, running, 0)

    def layout(self, cfg: Config) -> State:
        return self.state().to("meta")

    def give(self, state: State) -> None:
        self.learner.load(state.params, state.running)

    def source(self, cfg: Config, part: str, seed: int) -> _Source:
        return _Source(self._parts["tasks" if part == "train" else part])

    def validate(
        self, cfg: Config, state: State, between: Callable[[], None]
    ) -> tuple[Score, StepAccuracy]:
        first = max(1, cfg.eval_tasks // STEP_SHARE)
        (row, _), by_step = self._scored(cfg, [state], "val", between, first)
        return score(row), StepAccuracy(by_step, first)

    def test(self, cfg: Config, members: dict[int, State], between: Callable[[], None]) -> Tested:
        rows, _ = self._scored(cfg, [*members.values()], "test", between, 0)
        epochs, (best, *_, ensemble) = [*members], map(score, rows)
        result = {
            "data": self.name,
            "identity": self.identity,
            "split": "test" if self._parts["test"] is not self._parts["val"] else "val",
            "metric": self.metric,
            "tasks": best.tasks,
            "steps": cfg.eval_steps or cfg.steps,
            "protocol": cfg.protocol if cfg.other_protocol else None,
            "norm_statistics": cfg.norm_statistics,
            "best": {"epoch": epochs[0], **self._shown(best)},
            "ensemble": {"epochs": epochs, **self._shown(ensemble)},
        }
        return Tested(result, None)

    def _shown(self, found: Score) -> dict[str, float]:
        if self.metric == "loss":
            return {"loss": -found.accuracy, "interval": found.interval}
        return shown(found)

    def _scored(
        self,
        cfg: Config,
        states: list[State],
        part: str,
        between: Callable[[], None],
        by_step: int,
    ) -> tuple[list[Tensor], list[float]]:
        """[states + 1][tasks] scores of each state and of their mean, more is better; and the first
        one's mean after every step, over so many tasks."""
        size = self._parts[part].first.tasks

        def of_episode(first: int) -> tuple[list[list[float]], list[list[float]]]:
            between()
            episode = self._parts[part](first // size)
            episode = episode.slice(0, min(size, cfg.eval_tasks - first))
            answers = [self._answers(cfg, state, episode, first) for state in states]
            rows = [self._of_tasks(a, episode.target_y) for a in [*answers, _mean(answers)]]
            if first >= by_step:
                return rows, []
            some = episode.slice(0, by_step - first)
            each_step = self._answers(cfg, states[0], some, first, every=True)
            of_steps = [self._of_tasks(answer, some.target_y) for answer in each_step]
            return rows, [*map(list, zip(*of_steps, strict=True))]

        with evaluating(self.learner):
            found = ranks.current().spread(range(0, cfg.eval_tasks, size), of_episode)
        between()
        rows = [sum(of_state, []) for of_state in zip(*(rows for rows, _ in found), strict=True)]
        steps = [task for _, tasks in found for task in tasks]
        means = [sum(column) / len(steps) for column in zip(*steps, strict=True)]
        return [torch.tensor(row, dtype=torch.float64) for row in rows], means

    def _of_tasks(self, answers: Values, labels: Values) -> list[float]:
        sign = -1 if self.metric == "loss" else 1
        try:
            values = measured(answers, labels, self.metric, self.learner.criterion)
        except NotFinite as error:
            raise Diverged(str(error)) from None
        return [sign * value for value in values]

    def _answers(
        self, cfg: Config, state: State, episode: Episode, first: int, every: bool = False
    ) -> Any:
        """`first`: the number of the episode's first task among all of the evaluation."""
        model = self.own_model
        predict = prediction(cfg, model)
        blocks = over_blocks(
            lambda block: predict(state, block, every=every),
            episode,
            model,
            key=lambda i: (TASK_SEED, first + i),
        )
        return unroll.joined(blocks) if not every else _by_step(blocks)


def _by_step(blocks: list) -> list:
    """[blocks][steps, T, …] → [steps][T, …]"""
    return [unroll.joined(list(step)) for step in zip(*blocks, strict=True)]


def _mean(answers: list[Values]) -> Values:
    return mapped(lambda *members: torch.stack(members).mean(0), *answers)
