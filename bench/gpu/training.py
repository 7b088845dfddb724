"""Omniglot 20-way 1-shot by the paper's protocol through `engine.train`, as far as the time goes;
the next call continues.
"""

import signal
import time
from pathlib import Path

from bench import training
from bench.gpu.progress import Items, LeftOut, Request
from engine.config import Config
from engine.data import default_path
from engine.interrupt import Interrupt, Stopped
from engine.train import train

SEEDS = (0, 1, 2)
# A dry run goes through all that a whole one does.
QUICK = dict(epochs=2, iterations=4, tasks=2, eval_tasks=4, ensemble=2, log_every=2)
GOAL = 97.65  # % of the test tasks that the paper reaches
SECONDS = 300  # a seed, at most


class Until:
    """An interrupt that also comes when the time is over."""

    def __init__(self, interrupt: Interrupt, ends: float):
        self.interrupt, self.ends = interrupt, ends

    @property
    def phase(self) -> str:
        return self.interrupt.phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self.interrupt.phase = phase

    def check(self) -> None:
        self.interrupt.check()
        if time.monotonic() > self.ends:
            raise Stopped(signal.SIGALRM)


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
        run=str(Path("runs") / "gpu" / request.name / f"seed{seed}"),
    )


def _seed(seed: int, request: Request, until: Until) -> dict:
    """Wall-clock seconds count everything: start, validations and the final test too."""
    cfg, name = configuration(seed, request), f"seed {seed}"
    before = request.progress.part("training").get(name, {}).get("seconds", 0.0)
    if time.monotonic() > until.ends:
        return {"unfinished": True, "seconds": before, "said": "no time left for it in this call"}
    began, phase = time.monotonic(), until.phase
    try:
        train(cfg, until)
    except Stopped as stopped:
        seconds = before + time.monotonic() - began
        words = f"unfinished after {seconds:.0f} s of training"
        item = {"unfinished": True, "seconds": seconds, "said": words}
        if stopped.code != 128 + signal.SIGALRM:
            request.progress.keep("training", name, item)
            raise
        return item
    finally:
        until.phase = phase
    return _result(cfg, before + time.monotonic() - began)


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
