"""A stranger's script, of public names alone: python -m tests.stranger RUN EPOCHS"""

import sys

import torch

import engine


class Nearest(torch.nn.Linear):
    def forward(self, x):
        return self.bias - (x[:, None] - self.weight).square().sum(2)


run, epochs = sys.argv[1:]
torch.manual_seed(0)
points, labels = torch.randn(12, 10, 4) + 2 * torch.randn(12, 1, 4), torch.arange(120) // 10
tasks = engine.Tasks((points.flatten(0, 1), labels), ways=3, shots=2, targets=3, tasks=50)
margin = lambda output, y: (1 + output - output.gather(1, y[:, None])).relu().mean()  # noqa: E731
learner = engine.Learner(Nearest(4, 3), margin, steps=3, rate=0.01)
engine.fit(learner, tasks, val=tasks, run=run, preset="maml", epochs=int(epochs), iterations=25)
x, y, new, _ = vars(tasks.episode(1000)).values()
answers = learner.adapt(x[0], y[0])(new[0]).argmax(1)
