"""The engine's captured iteration: the same bits as the eager one, and how much it launches.

All that the benchmark knows of how the engine captures is in `Stepping`.
"""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from bench.cases import noise
from bench.gpu.environment import under_load
from bench.gpu.launches import Launches, profiled
from bench.gpu.progress import Items, Request
from bench.gpu.rows import FOREVER, ROWS, config
from engine.config import Config
from engine.episodes import EpisodeSampler
from engine.meta import State, init_state
from engine.runtime.loop import DeviceLoop

ITERATIONS = 5  # whose bits are compared
REPLAYS = 20  # between two looks at whether clock and power have been read
CLASSES, IMAGES = 40, 20  # of the noise that tasks are drawn from


class Stepping(AbstractContextManager):
    """The loop that a training on a device runs, drawing of the tasks included, on a state that it
    carries on; as `bench.implementations` has it. Without `graph` it launches kernel by kernel.
    """

    def __init__(self, cfg: Config, device: torch.device, graph: bool = True):
        cfg = replace(cfg, no_graph=not graph)
        data = noise(cfg, max(CLASSES, 2 * cfg.ways), max(IMAGES, cfg.shots + cfg.targets))
        sizes = {name: getattr(cfg, name) for name in ("ways", "shots", "targets", "rotations")}
        tasks = EpisodeSampler(data, "train", seed=0, **sizes)
        self.loop = DeviceLoop(cfg, tasks, range(FOREVER), device)
        self.state = init_state(cfg, device)

    def __exit__(self, *exc: object) -> None:
        self.loop.__exit__(*exc)

    @property
    def captured(self) -> bool:
        """The loop goes on by single launches where it cannot capture."""
        replays = (getattr(replay, "__self__", None) for replay in self.loop._replays.values())
        return all(isinstance(replay, torch.cuda.CUDAGraph) for replay in replays)

    def iterations(self, count: int) -> float:
        for _ in range(count):
            self.state = self.loop.step(self.state)
        return self.loop.finished(wait=True)[-1].metrics.loss

    def iteration(self) -> float:
        return self.iterations(1)


def items(request: Request) -> Items:
    request.need_gpu("a CUDA graph")
    for row in ROWS[:1] if request.quick else ROWS:
        for precision in ("tf32", "bf16") if row.order == "second" else ("tf32",):
            cfg = config(row, precision, request.quick, request.device)
            yield f"{row} {precision}", lambda c=cfg: bits(c, request.device)


def bits(cfg: Config, device: torch.device, iterations: int = ITERATIONS) -> dict:
    """Whether graph and eager are in the same state, bit for bit, after each iteration."""
    with ExitStack() as stack:
        both = [stack.enter_context(Stepping(cfg, device, graph)) for graph in (True, False)]
        for i in range(iterations):
            losses = [stepping.iteration() for stepping in both]
            if odd := differences(*(stepping.state for stepping in both)):
                return {"same": False, "said": f"NOT THE SAME after iteration {i + 1}: {odd}"}
        if device.type == "cuda" and not both[0].captured:
            raise RuntimeError("the iteration could not be captured; the run says above why")
    return {"same": True, "loss": losses[0], "said": f"the same bits over {iterations} iterations"}


def differences(a: State, b: State) -> str:
    """Names of the groups of tensors that are not the same."""
    pairs = zip(State._fields, a, b, strict=True)
    return ", ".join(n for n, x, y in pairs if not _same(x, y))


def _same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return all(map(_same, a, b))
    return int(a) == int(b)


def profiles(request: Request) -> Items:
    request.need_gpu("a profile")
    for row in ROWS[:1] if request.quick else ROWS:
        for precision in ("tf32", "bf16") if row.order == "second" else ():
            cfg = config(row, precision, request.quick, request.device)
            yield f"{row} {precision}", lambda c=cfg: _profile(c, request.device)


def _profile(cfg: Config, device: torch.device) -> dict:
    """Of one iteration that has been run before, with the host's gaps in between, and the GPU's
    clock and power while it is replayed.
    """
    found: dict[str, Launches] = {}
    for name, graph in (("graph", True), ("eager", False)):
        with Stepping(cfg, device, graph) as stepping:
            stepping.iterations(3)
            found[name] = profiled(stepping.iteration)
            if graph:
                load = under_load(lambda s=stepping: s.iterations(REPLAYS))
    words = "; ".join(
        f"{name} {n.kernels} kernels, {n.copies} copies, busy {n.busy:.0f} of {n.span:.0f} µs"
        for name, n in found.items()
    )
    return {name: n._asdict() for name, n in found.items()} | {"load": load, "said": words}
