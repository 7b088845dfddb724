"""A network of one's own on pictures of one's own, in one's own loop.

    python -m engine.examples.own_network FOLDER [iterations]

FOLDER has <split>/<class>/<image> folders, in any form that `python -m engine.data info` knows.
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine import Learner, Tasks
from engine.examples import script

WAYS, SIDE = 5, 32


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.max_pool2d(F.relu(self.norm2(self.conv2(y)) + self.shortcut(x)), 2)


def network(width: int = 16) -> nn.Module:
    head = nn.Linear(4 * width, WAYS)
    blocks = Block(3, width), Block(width, 2 * width), Block(2 * width, 4 * width)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def main(folder: str, iterations: int, width: int = 16, ways_targets: int = 5) -> float:
    """The accuracy on the test classes, in percent."""
    torch.manual_seed(0)
    task = {"ways": WAYS, "shots": 1, "targets": ways_targets, "image_size": SIDE}
    tasks = Tasks(folder, part="train", tasks=2, length=iterations, **task)
    test = Tasks(folder, part="test", tasks=10, length=10, **task)
    learner = Learner(network(width), steps=3, rate=0.05)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-3)
    for i, episode in enumerate(tasks, start=1):
        loss = learner(episode, order=2 if i > iterations // 4 else 1).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 50 == 0:
            print(f"iteration {i}: loss {loss.item():.4f}")
    score = learner.evaluate(test)
    print(f"test: {score.accuracy:.2%} ± {score.interval:.2%} over {score.tasks} tasks")
    return 100 * score.accuracy


if __name__ == "__main__":
    script.run(main, __doc__, "FOLDER", iterations=500)
