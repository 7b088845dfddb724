"""Trains a model and tests it: ``python -m engine.train [--preset maml++ --dataset mini ...]``.

Exit code: 0 done; 2 a mistake to correct; 3 NaN or Inf met; 129, 130 and 143 stopped by a closed
terminal, Ctrl-C and SIGTERM, saved. The same command continues a stopped run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import Config, default_run
from engine.errors import Diverged, explained, say
from engine.runs.interrupt import Interrupt, Stopped, answered
from engine.settings import Resolved, resolve

if TYPE_CHECKING:
    from engine.runs.beginning import Beginning
    from engine.runs.log import Report
    from engine.runs.run import Run
    from engine.runtime.loop import Finished, Loop

SAVE_SECONDS = 60.0  # at most so much work is lost to a power cut


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(
        lambda interrupt: _asked(resolve(argv), interrupt),
        stopped="stopped; the same command continues",
    )


def _asked(asked: Resolved, interrupt: Interrupt) -> None:
    if not asked.show:
        train(asked.cfg, interrupt)
        return
    from engine.show import show

    interrupt.phase = "unwind"
    show(asked)


def train(cfg: Config, interrupt: Interrupt) -> None:
    """One run from where its folder says it stands to its tested end."""
    # Here and not above: torch takes seconds to import, and Ctrl-C is answered meanwhile.
    from engine.runs.beginning import beginning
    from engine.runs.checkpoint import LATEST, open_run
    from engine.runs.problem import Pictures, load_dataset
    from engine.runs.run import Run
    from engine.runtime import ranks
    from engine.runtime.machine import machine

    interrupt.phase = "unwind"
    with ranks.joined(interrupt) as team, machine(cfg) as device:
        _, own = team.share(cfg.tasks)
        with team.node_by_node():
            dataset = load_dataset(cfg, "train", "val", "test")
        folder = Path(cfg.run or default_run(cfg, dataset.name)).expanduser()
        say(f"{dataset.name} on {device}, run folder {folder}", *cfg.lines())

        def begin() -> Beginning | None:
            with explained(f"cannot read run folder {folder}", "give another --run"):
                new = cfg.fresh or not (folder / LATEST).exists()
            return beginning(cfg, folder, device) if new else None

        problem = Pictures(dataset)
        if team.size > 1:
            problem.require_shareable(cfg, own)
        # before anything is made or, by --fresh, removed
        begun = team.by_first(begin, told=False)
        with open_run(folder, cfg.fresh):
            run = Run.shared(replace(cfg, fresh=False), folder, problem, device, begun)
            interrupt.phase = "finish"
            if run.epoch < cfg.epochs:
                train_epochs(run, interrupt)
            final_test(run, interrupt)


def train_epochs(run: Run, interrupt: Interrupt) -> None:
    """Trains and validates every epoch that is left; saves when stopped."""
    from engine.runs.log import Report, Unheard
    from engine.runtime import ranks
    from engine.runtime.loop import loop

    cfg, done = run.cfg, run.state.iteration
    if done:
        say(f"continuing after iteration {done}")
    left = range(done, cfg.epochs * cfg.iterations)
    tasks = run.problem.source(cfg, "train", cfg.seed)
    make = Report if ranks.current().first else Unheard
    with (
        make(
            run.folder,
            run.problem.name,
            done,
            run.epoch,
            cfg.epochs,
            left.stop,
            run.problem.metric,
            run.lengths,
        ) as report,
        loop(cfg, tasks, left, run.state.params.theta.device, run.problem.own_model) as steps,
    ):
        try:
            while run.epoch < cfg.epochs:
                train_epoch(run, steps, report, interrupt)
                validate(run, report, interrupt)
        except Stopped:
            account(run, steps.finished(wait=True), report)
            run.save()
            raise


def train_epoch(run: Run, steps: Loop, report: Report, interrupt: Interrupt) -> None:
    """The outer loop of MAML++ to the end of the current epoch."""
    from engine.runtime import ranks

    end, saved = (run.epoch + 1) * run.cfg.iterations, time.monotonic()
    team = ranks.current()
    while run.state.iteration < end:
        run.state = steps.step(run.state)
        due = time.monotonic() - saved > SAVE_SECONDS
        account(run, steps.finished(wait=due or run.state.iteration == end), report)
        team.check(interrupt)
        if due:
            run.save()
            saved = time.monotonic()


def account(run: Run, finished: list[Finished], report: Report) -> None:
    """Takes iterations that are done into the run's figures, and reports what is due."""
    from engine import meta
    from engine.runs.log import Meter

    cfg = run.cfg
    for iteration, metrics, seconds in finished:
        if metrics.nonfinite:
            raise _diverged(run, f"iteration {iteration}: {metrics.nonfinite} is not finite")
        for meter in (run.interval, run.whole):
            meter.add(metrics.loss, metrics.accuracy, seconds)
        report.progress(iteration, run.interval)
        ends = run.interval.count >= cfg.log_every or iteration % cfg.iterations == 0
        if ends or report.nothing_yet(seconds):
            epoch = run.epoch
            rate, second = meta.learning_rate(epoch, cfg), meta.second_order(epoch, cfg)
            report.train(iteration, epoch + 1, rate, second, run.interval, early=not ends)
        if ends:
            run.interval = Meter()


def _diverged(run: Run, what: str) -> Diverged:
    return Diverged(
        f"{what}; the last good checkpoint is kept in {run.folder}; start over with --fresh and a "
        "lower --lr or --inner-rate, or with --clamp"
    )


def validate(run: Run, report: Report, interrupt: Interrupt) -> None:
    """Scores the epoch on the fixed validation tasks and takes it into the best."""
    from engine.runtime import ranks
    from engine.runtime.machine import memory

    cfg, iteration, whole = run.cfg, run.state.iteration, run.whole
    team = ranks.current()
    try:
        score, by_step = run.problem.validate(cfg, run.state, partial(team.check, interrupt))
    except Diverged as error:
        raise _diverged(run, f"epoch {run.epoch + 1}: {error}") from None
    run.rank(score.accuracy)
    rates = dict(zip(run.problem.names(cfg), run.problem.rates(cfg, run.state), strict=True))
    peak = memory(run.state.params.theta.device, peak=True)
    report.validation(iteration, run.epoch, score, by_step, rates, whole, run.best[0][0], peak)
    run.save_epoch()


def final_test(run: Run, interrupt: Interrupt) -> None:
    """Best model and ensemble on the test tasks; a finished run shows what it found."""
    from engine.breakdown import as_json
    from engine.report import beside
    from engine.runs import checkpoint
    from engine.runs.log import test_table
    from engine.runs.run import made_by
    from engine.runtime import ranks

    path, team = run.folder / checkpoint.RESULT, ranks.current()

    def found() -> list[str] | None:  # one that is missing or damaged is made again
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            return [*test_table(checkpoint.read_json(path))]
        return None

    if table := team.by_first(found):
        say("already finished", *table)
        return
    run.refuse_lost()
    try:
        result, details = run.problem.test(run.cfg, run.members(), partial(team.check, interrupt))
    except Diverged as error:
        raise _diverged(run, f"final test: {error}") from None
    result |= {"earlier_epochs": run.lengths, "origin": run.origin, "made_by": made_by()}
    if team.first:
        if details is not None:
            checkpoint.write_atomic(run.folder / checkpoint.DETAILS, as_json(details).encode())
        checkpoint.write_json(path, result)
    say(*test_table(result), f"saved in {path}")
    if team.first and not run.cfg.no_report:
        say(beside(run.folder))


if __name__ == "__main__":
    sys.exit(main())
