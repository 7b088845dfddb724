"""A run in its folder: where it stands, how it is saved and continued."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

import engine
import kernels
from engine import meta
from engine.config import SCHEDULE, Config
from engine.errors import UserError, listed, say
from engine.fingerprints import alike
from engine.meta import State
from engine.runs import checkpoint
from engine.runs.beginning import Beginning, beginning, named, otherwise
from engine.runs.checkpoint import Checkpoint, epoch_file
from engine.runs.log import Meter
from engine.runs.packed import pack, unpack
from engine.runs.problem import Problem
from engine.runs.saved import load_best, restore
from engine.runs.seen import Seen
from engine.runtime import ranks
from engine.runtime.machine import settled
from kernels import dispatch, native

_CURE = "give another --run, or start over with --fresh"


@dataclass
class Run:
    """Mutable: the one place where a run's progress is kept."""

    cfg: Config  # with the precision that `auto` stands for
    folder: Path
    problem: Problem
    state: State
    asked: str = ""  # the precision as it was asked for, of cfg unless given
    precisions: dict[str, str] = dataclasses.field(default_factory=dict)  # for auto, by device type
    epoch: int = 0  # trained and validated
    best: list[list] = dataclasses.field(default_factory=list)  # [epoch, accuracy], best first
    fallen: list[int] = dataclasses.field(default_factory=list)  # epochs whose files are to go
    origin: dict | None = None  # of the weights that --init brought
    lengths: list[int] = dataclasses.field(default_factory=list)  # in epochs, before trained on
    seen: Seen | None = None  # classes
    interval: Meter = dataclasses.field(default_factory=Meter)  # since the last row of the log
    whole: Meter = dataclasses.field(default_factory=Meter)  # since the epoch began

    def __post_init__(self):
        self.asked = self.asked or self.cfg.precision

    @classmethod
    def open(
        cls,
        cfg: Config,
        folder: Path,
        problem: Problem,
        device: torch.device,
        begun: Beginning | None = None,
    ) -> Run:
        """Continues the run in ``folder``, or starts one there, from ``begun`` if that is given.

        Raises UserError when its checkpoint is damaged, of other data or of another configuration,
        or when it began with other weights than those of ``cfg.init``, if that is given.
        """
        latest = folder / checkpoint.LATEST
        init = cfg.init
        if latest.exists():
            init = named(folder) or init  # the first one is what the run began with
            run = cls._continued(cfg, folder, problem, checkpoint.load(latest), device)
        elif orphans := checkpoint.files(folder):
            raise UserError(
                f"{folder} holds {listed(orphans)} but no {latest.name}: put it back to "
                "continue, give another --run, or start over with --fresh, which removes them"
            )
        else:
            begun = begun or beginning(cfg, folder, device)
            torch.manual_seed(cfg.seed)
            seen = problem.seen(begun.seen)
            run = cls(cfg, folder, problem, begun.state, origin=begun.origin, seen=seen)
            run._settle(device)
            run.save()
        checkpoint.write_json(folder / checkpoint.CONFIG, replace(cfg, init=init).to_dict())
        run._remove_fallen()  # left by a run that was killed between two files
        return run

    @classmethod
    def shared(
        cls,
        cfg: Config,
        folder: Path,
        problem: Problem,
        device: torch.device,
        begun: Beginning | None = None,
    ) -> Run:
        """`open` by the first rank, which tells the others: these have no folder. Raises UserError
        too when the ranks differ in code, data, configuration, torch, kernels or precision.
        """
        made_by()  # the code of now, before anybody changes it
        team, opened = ranks.current(), []

        def first() -> tuple[Config, Checkpoint]:
            opened.append(cls.open(cfg, folder, problem, device, begun))
            return opened[0].cfg, opened[0]._checkpoint()

        if team.size == 1:
            return cls.open(cfg, folder, problem, device, begun)
        settled_cfg, saved = team.by_first(first)
        here = settled(cfg, device, saved.precisions or {}).precision
        team.agree(_facts(cfg, problem, here))
        if opened:
            return opened[0]
        meters = {name: Meter(**values) for name, values in saved.meters.items()}
        state = unpack(problem.layout(cfg), saved.state, device)
        run = cls(settled_cfg, folder, problem, state, cfg.precision, saved.precisions)
        run.epoch, run.best, run.fallen = saved.epoch, saved.best, saved.fallen
        run.origin, run.lengths, run.seen = saved.origin, saved.lengths, saved.seen
        run.interval, run.whole = meters["interval"], meters["whole"]
        torch.set_rng_state(saved.rng)
        return run

    def members(self, most: int | None = None) -> dict[int, State]:
        """The states of the best epochs, so many or all, best first."""
        device = self.state.params.theta.device
        like = self.problem.layout(self.cfg)
        found = ranks.current().by_first(
            lambda: restore(like, load_best(self.folder)[:most], "cpu")
        )
        return {epoch: state.to(device) for epoch, state in found.items()}

    @classmethod
    def _continued(
        cls, cfg: Config, folder: Path, problem: Problem, saved: Checkpoint, device: torch.device
    ) -> Run:
        if saved.data_identity != problem.identity:
            trained = f"{folder} was trained on {saved.data_name} ({saved.data_identity:.12}), "
            now = f"the data now is {problem.name} ({problem.identity:.12})"
            if problem.own_model is not None:  # whose tasks have fingerprints
                now = (
                    f"and name, metric, steps, parameters or frozen weights are others now: "
                    f"{problem.name} ({problem.identity:.12})"
                )
            raise UserError(f"{trained}{now}; {_CURE}")
        if began := otherwise(cfg.init, folder, saved.origin):
            raise UserError(
                f"--init is {cfg.init}, and {folder} is of a run that began {began}: leave it out "
                f"to continue that, or {_CURE}"
            )
        longer = _refuse_other(cfg, folder, saved, problem.bound(cfg))  # an answer depends on it
        known, before = problem.fingerprints, saved.fingerprints
        for name in before:
            if not alike(before[name], known.get(name, []), name):
                raise UserError(
                    f"{folder} is of a run with another {name}, by its values on episode 0: give "
                    f"the same, {_CURE}"
                )
        if longer:
            _say_longer(cfg, saved)
        state = unpack(problem.layout(cfg), saved.state, device)
        if not 0 <= state.iteration - saved.epoch * cfg.iterations <= cfg.iterations:
            raise UserError(
                f"{folder / checkpoint.LATEST} is damaged: it is after iteration {state.iteration} "
                f"and {saved.epoch} epochs of {cfg.iterations}; {_CURE}"
            )
        meters = {name: _meter(folder, saved, name) for name in ("interval", "whole")}
        run = cls(cfg, folder, problem, state, epoch=saved.epoch, best=saved.best, **meters)
        run.fallen, run.origin, run.precisions = saved.fallen, saved.origin, saved.precisions
        run.seen = saved.seen
        run.lengths = [*saved.lengths, *[saved.config["epochs"]] * longer]
        if saved.precisions is None:  # from before anything was measured
            with dispatch.following(dispatch.UNCHECKED):
                best = kernels.fastest_precision(torch.empty(0, dtype=torch.float32, device=device))
                run.precisions = {device.type: best}
        if run.epoch < cfg.epochs or not (folder / checkpoint.RESULT).exists():
            run.refuse_lost()
        torch.set_rng_state(saved.rng)
        run._settle(device)
        if run.epoch < cfg.epochs:
            checkpoint.remove_found(folder)
        if longer:
            run.save()
        return run

    def refuse_lost(self) -> None:
        """Raises UserError when a file is missing that the final test needs."""
        if not ranks.current().first:
            return
        files = (epoch_file(self.folder, epoch) for epoch, _ in self.best)
        if lost := [file.name for file in files if not file.exists()]:
            raise UserError(
                f"{self.folder} has lost {', '.join(lost)}, which the final test needs: put it "
                f"back to continue, {_CURE}"
            )

    def _settle(self, device: torch.device) -> None:
        """A run keeps to one precision, whatever a later measurement of the machine says."""
        self.cfg = settled(self.cfg, device, self.precisions)
        if self.asked == "auto" != self.cfg.precision:
            self.precisions[device.type] = self.cfg.precision

    def save(self) -> None:
        """Writes latest.pt. Raises UserError, with the old file intact, when it cannot."""
        if not ranks.current().first:
            return
        checkpoint.save(self.folder / checkpoint.LATEST, self._checkpoint())

    def rank(self, accuracy: float) -> None:
        """Ends the epoch with its validation accuracy. Of equal epochs the earlier is better, and
        those are equal that rounding alone tells apart: a mean depends on which task has what.
        """
        self.epoch += 1
        self.whole = Meter()
        ranked = sorted(
            [*self.best, [self.epoch, accuracy]],
            key=lambda entry: (-float(f"{entry[1]:.12g}"), entry[0]),
        )
        self.best, fallen = ranked[: self.cfg.ensemble], ranked[self.cfg.ensemble :]
        self.fallen = [epoch for epoch, _ in fallen]

    def save_epoch(self) -> None:
        """Saves after ``rank``. Wherever it is cut off, each file that latest.pt names is there."""
        if not ranks.current().first:
            return
        if self.epoch not in self.fallen:
            checkpoint.save(epoch_file(self.folder, self.epoch), self._checkpoint())
        self.save()
        self._remove_fallen()
        self.refuse_lost()

    def _remove_fallen(self) -> None:
        with checkpoint.writing(self.folder):
            for epoch in {*self.fallen} - {epoch for epoch, _ in self.best}:
                epoch_file(self.folder, epoch).unlink(missing_ok=True)

    def _checkpoint(self) -> Checkpoint:
        prepared, own = self.problem.preparation(self.cfg), self.problem.own_model
        return Checkpoint(
            config=replace(self.cfg.without_paths(), precision=self.asked).to_dict(),
            data_name=self.problem.name,
            data_identity=self.problem.identity,
            state=pack(self.state),
            epoch=self.epoch,
            best=self.best,
            meters={name: vars(getattr(self, name)).copy() for name in ("interval", "whole")},
            rng=torch.get_rng_state(),
            precisions=self.precisions,
            fallen=self.fallen,
            origin=self.origin,
            preparation=prepared and prepared.to_dict(),
            fingerprints=dict(self.problem.fingerprints),
            lengths=self.lengths,
            seen=self.seen,
            own_network=None if own is None else type(getattr(own, "module", own)).__name__,
        )


@cache
def made_by() -> dict[str, str]:
    """The code that runs, by its content, and whose kernels."""
    here, isa = Path(engine.__file__).parent, native.module and native.module.isa().name
    digest = hashlib.sha256()
    for folder in (here, Path(kernels.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return {
        "code": digest.hexdigest()[:12],
        "torch": torch.__version__,
        "kernels": f"native {isa}" if isa else "plain",
    }


def _facts(cfg: Config, problem: Problem, precision: str) -> dict[str, str]:
    """What all ranks must have in common."""
    threads = cfg.threads if "threads" in problem.bound(cfg) else 0
    failed = sorted(map(" ".join, dispatch.findings().failures))
    return made_by() | {
        "the check of the kernels": f"failed: {listed(failed)}" if failed else "passed",
        "data": f"{problem.name} {problem.identity:.12}",
        "configuration": json.dumps(replace(cfg.without_paths(), threads=threads).to_dict()),
        "precision": precision,
    }


def differing(
    cfg: Config, saved: Checkpoint, bound: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    """In what a configuration is not that of a run, and cannot continue it, ``bound`` fields among
    it; whether the run is finished, and trained on for more epochs."""
    epochs = Config.from_dict(saved.config).epochs
    longer = cfg.epochs > epochs and saved.epoch == epochs
    return cfg.differences(saved.config, SCHEDULE if longer else (), bound), longer


def _refuse_other(cfg: Config, folder: Path, saved: Checkpoint, bound: tuple[str, ...]) -> bool:
    """Whether a finished run is trained on for more epochs; UserError when its configuration
    differs in anything else.
    """
    different, longer = differing(cfg, saved, bound)
    epochs = saved.config["epochs"]
    if different:
        own = "give its own values to continue it"
        if cfg.epochs > epochs and not longer:
            own = f"finish its {epochs} epochs, then it can be trained on, or {own}"
        raise UserError(
            f"{folder} has another configuration ({'; '.join(different)}); {own}, or {_CURE}"
        )
    return longer


def _say_longer(cfg: Config, saved: Checkpoint) -> None:
    order = 2 if meta.second_order(saved.epoch, cfg) else 1
    changed = "; ".join(cfg.differences(saved.config))
    say(
        f"training on after {saved.config['epochs']} epochs by the schedule of {cfg.epochs} "
        f"({changed}): epoch {saved.epoch + 1} has learning rate "
        f"{meta.learning_rate(saved.epoch, cfg):.2e} and order {order}"
    )


def _meter(folder: Path, saved: Checkpoint, name: str) -> Meter:
    try:
        return Meter(**saved.meters[name])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / checkpoint.LATEST} is damaged: its meters have no {name} that this version "
            f"knows; {_CURE}"
        ) from error
