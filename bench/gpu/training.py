"""Omniglot 20-way 1-shot by the paper's protocol through `engine.train`, as far as the time goes;
the next call continues.
"""

import signal
import time
from pathlib import Path

from bench import results, training
from bench.gpu.progress import Items, LeftOut, Request, write
from engine.config import Config
from engine.data import default_path
from engine.runs.interrupt import Interrupt, Stopped
from engine.train import train

SEEDS = (0, 1, 2)
# A dry run goes through all that a whole one does.
QUICK = dict(epochs=2, iterations=4, tasks=2, eval_tasks=4, ensemble=2, log_every=2)
GOAL = 97.65  # % of the test tasks that the paper reaches
SECONDS = 300  # a seed, at most


class Until:
    """An interrupt that also comes when the time is over, and moves a clock's hand meanwhile."""

    def __init__(self, interrupt: Interrupt, ends: float):
        self.interrupt, self.ends = interrupt, ends
        self.clock: Spent | None = None

    @property
    def phase(self) -> str:
        return self.interrupt.phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self.interrupt.phase = phase

    def check(self) -> None:
        if self.clock is not None:
            self.clock.move()
        self.interrupt.check()
        if time.monotonic() > self.ends:
            raise Stopped(signal.SIGALRM)


class Spent:
    """Wall-clock seconds of a training over all its calls, in a file beside its folder, so that a
    call that is killed counts too. What a finished training takes to say so does not count.
    """

    def __init__(self, run: Path):
        self.file = run.with_name(f"{run.name}-seconds.json")
        begun = run.is_dir() and self.file.is_file()
        self.seconds = results.load(self.file) if begun else 0.0
        self.stands = (run / "result.json").is_file()
        self.seen = self.written = time.monotonic()

    def move(self, every: float = 5.0) -> None:
        """To now; the file is written when it is `every` seconds old."""
        now = time.monotonic()
        if not self.stands:
            self.seconds, self.seen = self.seconds + now - self.seen, now
            if now - self.written >= every:
                write(self.file, f"{self.seconds}\n")
                self.written = now


def items(request: Request) -> Items:
    place = Path(request.data) if request.data else default_path("omniglot")
    if not place.exists():
        raise LeftOut(f"no Omniglot at {place}; name it with --data, or fetch it")
    ends = min(time.monotonic() + 60 * request.minutes, request.ends)
    until = Until(request.interrupt, ends)
    for seed in SEEDS[:1] if request.quick else SEEDS:
        yield f"seed {seed}", lambda s=seed: _seed(s, request, until)


def configuration(seed: int, request: Request) -> Config:
    """The paper's, in the precision that the device has by default."""
    changed = QUICK if request.quick else {}
    if request.quick and not request.cuda:
        changed = changed | dict(filters=4, ways=5, steps=2)
    return Config.of(
        "maml++",
        "omniglot",
        **dict(ways=20, shots=1, seed=seed, data=request.data, device=request.device.type)
        | changed,
        run=str(request.out / request.name / f"seed{seed}"),
    )


def _seed(seed: int, request: Request, until: Until) -> dict:
    """Its seconds count everything: start, validations and the final test too."""
    cfg, name = configuration(seed, request), f"seed {seed}"
    spent, phase = Spent(Path(cfg.run)), until.phase
    if time.monotonic() > until.ends:
        return _unfinished(spent)
    until.clock = spent
    try:
        train(cfg, until)
    except Stopped as stopped:
        spent.move(0)
        if stopped.code != 128 + signal.SIGALRM:
            request.progress.keep("training", name, _unfinished(spent))
            raise
        return _unfinished(spent)
    finally:
        until.phase, until.clock = phase, None
    spent.move(0)
    return _result(cfg, spent.seconds)


def _unfinished(spent: Spent) -> dict:
    words = f"unfinished after {spent.seconds:.0f} s"
    return {"unfinished": True, "seconds": spent.seconds, "said": words}


def _result(cfg: Config, seconds: float) -> dict:
    config, rows, result = training.read(Path(cfg.run))
    curve = [row["accuracy"] for row in rows if row["kind"] == "validation"]
    best, ensemble = result["best"], result["ensemble"]
    words = f"{100 * ensemble['accuracy']:.2f} % by the ensemble, {seconds:.0f} s"
    return {
        "seconds": seconds,
        "settings": training.settings(config),
        "data": result["data"],
        "validation": curve,
        "best": best,
        "ensemble": ensemble,
        "said": words,
    }
