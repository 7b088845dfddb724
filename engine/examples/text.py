"""A small transformer over token ids that adapts to a new language from a few sentences: inputs are
dicts, the network is called by keyword.

Each task is a made-up language: of 24 words some are nouns and some are verbs, others in every
language. A sentence is right if its words alternate. The network is told of 16 sentences whether
they are, and has to judge new ones.

    python -m engine.examples.text [iterations]
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine import Episode, Learner
from engine.examples import script

WORDS, LENGTH, WIDTH = 24, 6, 32


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS + 1, WIDTH, padding_idx=WORDS)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) / 10)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.0, batch_first=True) for _ in range(2))
        )
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h = self.layers(self.words(ids) + self.places)
        read = torch.arange(LENGTH) < lengths[:, None]
        return self.out((h * read[..., None]).sum(1) / lengths[:, None])


def languages(tasks: int, generator: torch.Generator, sentences: int = 16) -> Episode:
    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (tasks, *shape), generator=generator)

    noun = torch.rand(tasks, WORDS, generator=generator).argsort(1) < WORDS // 2
    parts = []
    for _ in range(2):
        lengths, right = draw(LENGTH - 3, sentences) + 4, draw(2, sentences)
        start = draw(2, sentences, 1)
        kinds = (start + torch.arange(LENGTH)) % 2
        flipped = draw(LENGTH, sentences, 1) % lengths[..., None] == torch.arange(LENGTH)
        kinds = torch.where(right[..., None] == 1, kinds, kinds ^ flipped.long())
        place = draw(WORDS // 2, sentences, LENGTH)
        words = torch.stack([noun.logical_not().nonzero()[:, 1].view(tasks, -1),
                             noun.nonzero()[:, 1].view(tasks, -1)], 1)  # fmt: skip
        ids = words[torch.arange(tasks)[:, None, None], kinds, place]
        ids = ids.masked_fill(torch.arange(LENGTH) >= lengths[..., None], WORDS)
        parts += [{"ids": ids, "lengths": lengths}, right]
    return Episode(*parts)


def main(iterations: int) -> float:
    """The accuracy over new languages, in percent."""
    torch.manual_seed(0)
    learner = Learner(Judge(), F.cross_entropy, steps=3, rate=0.05)
    optimizer = torch.optim.AdamW(learner.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for i in range(1, iterations + 1):
        loss = learner(languages(8, generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 50 == 0 or i == iterations:
            print(f"iteration {i}: loss {loss.item():.4f}")
    score = learner.evaluate(languages(20, generator) for _ in range(5))
    print(f"new languages: {score.accuracy:.2%} ± {score.interval:.2%}")
    return 100 * score.accuracy


if __name__ == "__main__":
    script.run(main, __doc__, iterations=1000)
