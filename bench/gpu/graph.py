"""The engine's captured iteration: the same bits as the eager one, and how much it launches.

All that the benchmark knows of `engine.graph` is in `Stepping`.
"""

from importlib import import_module

import torch
from torch import Tensor

from bench.cases import Row, noise
from bench.gpu.launches import Launches, profiled
from bench.gpu.progress import Items, LeftOut, Request
from bench.gpu.rows import ROWS, config, precisions
from engine.config import Config
from engine.meta import State, init_state

ITERATIONS = 5  # whose bits are compared
CLASSES, IMAGES = 40, 20


class Stepping:
    """The engine's whole iteration, drawing of the tasks included, on a state that it carries on;
    as `bench.implementations` has it.
    """

    def __init__(self, cfg: Config, device: torch.device, graph: bool):
        if reason := unavailable(device):
            raise LeftOut(reason)
        module = import_module("engine.graph")
        data = noise(cfg, max(CLASSES, 2 * cfg.ways), max(IMAGES, cfg.shots + cfg.targets))
        self.stepper = module.Stepper(cfg, data, device, graph=graph)
        self.state, self.done = init_state(cfg, device), 0

    def iterations(self, count: int) -> float:
        for _ in range(count):
            self.state, metrics = self.stepper.step(self.state, self.done)
            self.done += 1
        return float(metrics.loss)

    def iteration(self) -> float:
        return self.iterations(1)


def unavailable(device: torch.device) -> str | None:
    """Why there is no captured iteration here, in one line; `None` if there is."""
    if device.type != "cuda":
        return f"a CUDA graph is a GPU's; this run is on {device.type}"
    try:
        import_module("engine.graph")
    except ImportError as error:
        return f"no engine.graph: {error}"
    return None


def items(request: Request) -> Items:
    if reason := unavailable(request.device):
        raise LeftOut(reason)
    for row in ROWS[:1] if request.quick else ROWS:
        for precision in precisions(request.device, "tf32", "bf16"):
            cfg = config(row, precision, request.quick, request.device)
            yield f"bits {row} {precision}", lambda c=cfg: bits(c, request.device)
        yield f"launches {row}", lambda r=row: _launches(r, request)


def bits(cfg: Config, device: torch.device, iterations: int = ITERATIONS) -> dict:
    """Whether graph and eager are in the same state, bit for bit, after each iteration."""
    both = [Stepping(cfg, device, graph) for graph in (True, False)]
    for i in range(iterations):
        losses = [stepping.iteration() for stepping in both]
        if odd := differences(*(stepping.state for stepping in both)):
            return {"same": False, "said": f"NOT THE SAME after iteration {i + 1}: {odd}"}
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


def _launches(row: Row, request: Request) -> dict:
    """Of one iteration that has been run before, with the host's gaps in between."""
    found: dict[str, Launches] = {}
    cfg = config(row, "tf32", request.quick, request.device)
    for name, graph in (("graph", True), ("eager", False)):
        stepping = Stepping(cfg, request.device, graph)
        stepping.iterations(3)
        found[name] = profiled(stepping.iteration)
    words = "; ".join(
        f"{name} {n.kernels} kernels, {n.copies} copies, busy {n.busy:.0f} of {n.span:.0f} µs"
        for name, n in found.items()
    )
    return {name: n._asdict() for name, n in found.items()} | {"said": words}
