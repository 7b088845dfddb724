"""What is measured: the rows, their configurations and inputs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from engine.config import Config
from engine.data import ClassBank, Dataset
from engine.episodes import Episode

# The task and batch of each case; filters and image size are those of the data set's preset.
CASES = {
    "mini 5w1s": dict(dataset="mini", ways=5, shots=1, targets=15, tasks=2),
    "mini 5w5s": dict(dataset="mini", ways=5, shots=5, targets=15, tasks=2),
    "omniglot 20w1s": dict(dataset="omniglot", ways=20, shots=1, targets=1, tasks=8),
    "omniglot 5w1s": dict(dataset="omniglot", ways=5, shots=1, targets=1, tasks=8),
}


@dataclass(frozen=True)
class Row:
    """One line of the table of outer iterations."""

    case: str
    algorithm: str  # MAML: every trick of the paper at its neutral value. MAML++: all on
    order: str  # of the derivative: first or second
    steps: int
    loss: str  # of the target set: MSL, after every step; last, after the last one
    tasks: int

    @classmethod
    def of(
        cls,
        case: str,
        algorithm: str = "MAML++",
        order: str = "second",
        steps: int = 5,
        loss: str | None = None,
        tasks: int | None = None,
    ) -> "Row":
        """With the algorithm's own loss and the case's number of tasks, unless given."""
        loss = loss or ("MSL" if algorithm == "MAML++" else "last")
        return cls(case, algorithm, order, steps, loss, tasks or CASES[case]["tasks"])

    def __str__(self) -> str:
        """An identifier for pytest's -k."""
        parts = self.case, self.algorithm, self.order, f"K{self.steps}", self.loss, f"T{self.tasks}"
        return "-".join(parts).replace(" ", "-")

    def config(self) -> Config:
        plus = self.algorithm == "MAML++"
        return Config.of(
            "htym-head" if plus else "maml",
            **CASES[self.case] | {"tasks": self.tasks},
            steps=self.steps,
            # On noise, five steps at 0.1 diverge, and the losses of any two float32 runs with them.
            inner_rate=0.01,
            msl_epochs=1 if self.loss == "MSL" else 0,
            first_order_epochs=1 if self.order == "first" else 0,
            task_reduction="mean",
            precision="fp32",
        )


# The published protocols: during their epochs of multi-step loss, and after them.
TARGETS = (
    Row.of("mini 5w1s"),
    Row.of("mini 5w1s", loss="last"),
    Row.of("mini 5w5s"),
    Row.of("omniglot 20w1s"),
    Row.of("omniglot 5w1s", loss="last"),
)
MAIN = TARGETS[0]
_FIRST_ORDER = [replace(row, order="first") for row in TARGETS]
_GRID = [
    Row.of(case, algorithm, order, steps)
    for case in ("mini 5w1s", "omniglot 20w1s")
    for algorithm in ("MAML", "MAML++")
    for order in ("first", "second")
    for steps in (1, 2, 3, 4, 5)
]
_LOSSES = [Row.of(case, loss=loss) for case in CASES for loss in ("MSL", "last")]
_TASKS = [Row.of("omniglot 5w1s", loss="last", tasks=tasks) for tasks in (1, 2, 4, 8, 16)]
_TASKS += [Row.of("mini 5w1s", loss="last", tasks=tasks) for tasks in (1, 2, 4)]

# but the one that takes as long as the others together
SHORT = (*TARGETS[:2], *TARGETS[3:], _FIRST_ORDER[3])
ROWS = tuple(dict.fromkeys([*SHORT, *_FIRST_ORDER, *_LOSSES, *_TASKS, *_GRID]))

EVALUATED = 16  # tasks at once, as engine.evaluate draws them
EVALUATIONS = tuple(Row.of(case, loss="last", tasks=EVALUATED) for case in CASES)
SHORT_EVALUATIONS = EVALUATIONS[2:3]


PRECISIONS = {"ours, bf16x3": "bf16x3", "ours, bf16": "bf16"}  # ours with narrower products
PEERS = ("vmap", "parallel-metalearn", "JAX", "authors' code")


def others(row: Row, full: bool) -> list[str]:
    """Names of the implementations that ours is measured against: peers, slow or long in compiling,
    in few rows.

    Vectorised over the tasks, five shots with the multi-step loss are too much for most memories.
    """
    names = ["loop"]
    if row == MAIN:
        names.append("ours, AVX2")
    if row in TARGETS:
        names += PRECISIONS
    if row in (TARGETS[:2] + TARGETS[3:] if full else TARGETS[4:]):
        names += PEERS[:2]
    if row in TARGETS[:2] + TARGETS[3:]:
        names.append("authors' code")
    if full and row in TARGETS[3:]:
        names.append("JAX")  # takes longer to compile the larger images than all else to run
    return names


def reduced(cfg: Config) -> Config:
    """The same algorithm at a size for float64, without the clamp, which would hide gradients."""
    return replace(
        cfg,
        image_size=min(cfg.image_size, 28),
        filters=6,
        ways=5,
        shots=1,
        targets=2,
        tasks=2,
        clamp=0.0,
    )


def episode(
    cfg: Config, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Episode:
    """A batch of noise: without ties, so that all implementations pool the same winners."""
    generator = torch.Generator().manual_seed(1)

    def images(samples: int) -> Tensor:  # [T, N, C, H, W], NHWC in memory
        size = (cfg.ways * samples, cfg.image_size, cfg.image_size, cfg.channels)
        x = torch.empty((cfg.tasks, *size), dtype=dtype)
        for task in x:  # one after the other: the rest is the implementation's peak of memory
            task.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
        return x.permute(0, 1, 4, 2, 3)

    def labels(samples: int) -> Tensor:  # [T, N], class-major
        return torch.arange(cfg.ways).repeat_interleave(samples).repeat(cfg.tasks, 1)

    sets = images(cfg.shots), labels(cfg.shots), images(cfg.targets), labels(cfg.targets)
    return moved(Episode(*sets), device)


def moved(batch: Episode, to: torch.device | torch.dtype | str) -> Episode:
    """To a device, or its images to a dtype."""
    if isinstance(to, torch.dtype):
        return Episode(**{name: cast(t, to) for name, t in vars(batch).items()})
    return Episode(**{name: t.to(to) for name, t in vars(batch).items()})


def noise(cfg: Config, classes: int, images: int) -> Dataset:
    """A data set of noise to draw tasks from, with so many images a class."""
    size = (classes * images, cfg.image_size, cfg.image_size, cfg.channels)
    values = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    starts = torch.arange(classes + 1) * images
    bank = ClassBank(values, starts, tuple(f"class{i}" for i in range(classes)))
    mean, std = ((value,) * cfg.channels for value in (0.5, 0.25))
    return Dataset("noise", {"train": bank}, 1 / 255, mean, std, identity="noise")


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The same nest of named tuples with its floating tensors in another type."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, tuple):
        return type(tree)(*(cast(leaf, dtype) for leaf in tree))
    return tree


def seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def rounds_in(once: float, budget: float, fewest: int, most: int) -> int:
    """How often to run what takes `once` seconds."""
    return min(max(int(budget / once), fewest), most)
