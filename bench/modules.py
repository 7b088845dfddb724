"""Networks that are not the engine's own backbone, through `engine.Learner` and by plain autograd,
from the same values on the same noise: what `bench.worker` runs for a `ModuleRow`.

Both do what a training does in an iteration: loss, gradients, one step of Adam.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.baselines.module import PlainModule
from bench.baselines.outer import dense
from bench.baselines.resnet12 import TorchResNet12
from engine.episodes import Episode
from engine.learner import Learner
from engine.models.module import MEMORY
from engine.models.resnet12 import ResNet12

STEPS, WAYS, RATE = 5, 5, 0.01


RESNET, TRANSFORMER, PERCEPTRON, RESNET12 = (
    "ResNet-8, 64×64, 5w1s, 2 tasks",
    "transformer, 64 ids, 5w5s, 2 tasks",
    "perceptron of sine waves, 25 tasks",
    "ResNet-12, 84×84, 5w1s, 2 tasks",
)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(width: int = 32) -> nn.Module:
    stem = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    blocks = (Residual(width << b, width << b + 1) for b in range(3))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, WAYS)
    return nn.Sequential(*stem, *blocks, *head)


class Transformer(nn.Module):
    """Over token ids."""

    def __init__(self, width: int = 128, layers: int = 4):
        super().__init__()
        self.words = nn.Embedding(1000, width)
        of_layer = (width, 4, 4 * width, 0.0, F.gelu)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(*of_layer, batch_first=True) for _ in range(layers))
        )
        self.out = nn.Linear(width, WAYS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.layers(self.words(ids)).mean(1))


def perceptron(width: int = 40) -> nn.Module:
    """Of the sine waves (Finn et al. 2017, §5.1)."""
    hidden = nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(width, 1))


@dataclass(frozen=True)
class ModuleRow:
    """One line of the table: a network at its size, or small."""

    case: str
    loss: str = "MSL"  # or last
    memory: str = "fast"  # as the learner has it
    small: bool = False

    @property
    def weights(self) -> list[float]:
        """Of the target losses: all steps at the start of the multi-step loss, or the last."""
        return [1 / STEPS] * STEPS if self.loss == "MSL" else [0.0] * (STEPS - 1) + [1.0]

    @property
    def keeps(self) -> bool:
        """Whether the engine has the allocator keep what is freed."""
        return self.case != RESNET12 and self.memory == "fast"

    def __str__(self) -> str:
        return f"{self.case}, {self.loss}" + ", `memory='low'`" * (self.memory == "low")


def _images(side: int, generator: torch.Generator, tasks: int, samples: int):
    return torch.randn(tasks, samples, 3, side, side, generator=generator), _labels(tasks, samples)


def _ids(length: int, generator: torch.Generator, tasks: int, samples: int):
    ids = torch.randint(1000, (tasks, samples, length), generator=generator)
    return ids, _labels(tasks, samples)


def _waves(generator: torch.Generator, tasks: int, samples: int):
    x = 10 * torch.rand(tasks, samples, 1, generator=generator) - 5
    return x, x.sin()


def _labels(tasks: int, samples: int) -> Tensor:
    return (torch.arange(samples) % WAYS).expand(tasks, -1)


def _case(row: ModuleRow) -> tuple[Callable, Callable, Callable, tuple[int, int, int]]:
    """How to make the network and a set, the criterion, and tasks, supports and targets."""
    small, entropy = row.small, F.cross_entropy
    return {
        RESNET: (
            partial(resnet, 4 if small else 32), partial(_images, 16 if small else 64),
            entropy, (2, 5, 75),
        ),
        TRANSFORMER: (
            partial(Transformer, 8, 1) if small else Transformer,
            partial(_ids, 8 if small else 64), entropy, (2, 25, 75),
        ),
        PERCEPTRON: (perceptron, _waves, F.mse_loss, (25, 10, 10)),
        RESNET12: (
            partial(ResNet12, 3, 16, WAYS, (4, 6, 8, 10))
            if small else partial(ResNet12, 3, 84, WAYS),
            partial(_images, 16 if small else 84), entropy, (2, 5, 75),
        ),
    }[row.case]  # fmt: skip


ROWS = (
    *(ModuleRow(case, memory=m) for case in (RESNET, TRANSFORMER, PERCEPTRON) for m in MEMORY),
    ModuleRow(RESNET12, "last"),
)
SHORT = ROWS[2:3]


class Ours:
    def __init__(
        self,
        row: ModuleRow,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capture: bool | str = "auto",
    ):
        self.row = row
        network, batch, criterion = _made(row, dtype)
        options = {"steps": STEPS, "rate": RATE, "memory": row.memory, "capture": capture}
        self.learner = Learner(network, criterion, **options).to(device, dtype)
        self.batch = batch.to(device)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), 1e-4)

    def backward(self) -> Tensor:
        loss = self.learner(self.batch, self.row.weights).loss
        loss.backward()
        return loss

    def iteration(self) -> float:
        self.optimizer.zero_grad()
        loss = self.backward().item()
        self.optimizer.step()
        return loss

    def checked(self) -> tuple[float, list[Tensor]]:
        """Loss, and the gradients as `PlainModule.gradients` has them."""
        loss, learner = self.backward().item(), self.learner
        if isinstance(learner.model, ResNet12):
            adapted = [weight[0] for weight in learner.model.weights(learner.theta.grad[None])]
        else:
            adapted = [learner.module.get_parameter(name).grad for name in learner.adapted_names]
        return loss, [*adapted, learner.norm.grad, learner.rates.grad]


class Plain(Ours):
    def __init__(
        self,
        row: ModuleRow,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.row = row
        network, batch, criterion = _made(row, dtype)
        self.batch = batch.to(device)
        learner = Learner(network, criterion, steps=STEPS, rate=RATE).to(dtype)
        if isinstance(network, ResNet12):
            model, network = network, TorchResNet12(network).to(dtype)
            names, affine = network.adapted(), network.norms()
            values = zip(names, model.weights(learner.theta.detach()[None]), strict=True)
            for name, value in values:
                network.get_parameter(name).data = dense(value[0])
        else:
            names, affine = [*learner.adapted_names], [*learner.model.affine]
        rates = learner.rates.detach()
        self.learner = PlainModule(network, criterion, names, affine, rates).to(device)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), 1e-4)

    def backward(self) -> Tensor:
        return self.learner.backward(self.batch, self.row.weights)

    def checked(self) -> tuple[float, list[Tensor]]:
        return self.backward().item(), self.learner.gradients()


def _made(row: ModuleRow, dtype: torch.dtype) -> tuple[nn.Module | ResNet12, Episode, Callable]:
    network, draw, criterion, (tasks, *counts) = _case(row)
    torch.manual_seed(0)
    network, generator = network(), torch.Generator().manual_seed(1)
    if isinstance(network, nn.Module):
        network = network.to(dtype)
    sets = (v for samples in counts for v in draw(generator, tasks, samples))
    return network, Episode(*(v.to(dtype) if v.is_floating_point() else v for v in sets)), criterion


IMPLEMENTATIONS: dict[str, Callable] = {
    "ours": Ours,
    "loop": Plain,
}
