"""The network and the memory of learning to remember rare events (Kaiser et al. 2017, §2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.methods import heads
from engine.models.whole import TaskNetwork

MARGIN = 0.1  # α
EMPTY = -1  # the value of a slot that nothing was written to
_POOLS = 2


class Remember(TaskNetwork):
    """Two convolutions of F filters, a pool, two of 2F, a pool, and a query of length 1 and 4F
    numbers (F = 64 in the authors' code). Raises UserError for images that the pools would leave
    nothing of.
    """

    def __init__(self, channels: int, image_size: int, filters: int):
        super().__init__()
        side = image_size // 2**_POOLS
        if not side:
            raise UserError(
                f"--image-size is {image_size} with --method memory: its network halves it "
                f"{_POOLS} times; give {2**_POOLS} or more"
            )
        widths = channels, filters, filters, 2 * filters, 2 * filters
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairs)
        width = 4 * filters
        self.embedding = nn.Linear(widths[-1] * side**2, width)
        self.projection = nn.Linear(width, width, bias=False)
        self.remembered_sizes = 0, width + 1
        for layer in (*self.convolutions, self.embedding):
            nn.init.trunc_normal_(layer.weight, 0, 0.1, -0.2, 0.2)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.projection.weight, 0, 0.01, -0.02, 0.02)

    def queries(self, x: Tensor) -> Tensor:  # [N, 4F], of length 1
        for i, layer in enumerate(self.convolutions):
            x = layer(x).relu()
            x = F.max_pool2d(x, 2) if i % 2 else x
        return F.normalize(self.projection(self.embedding(x.flatten(1))), dim=1)

    def learn(self, x: Tensor, labels: Tensor) -> Tensor:
        """A row a slot: key and value."""
        keys, values, _ = stream(self.queries(x), labels, len(x))
        return torch.cat([keys, values.unsqueeze(1).to(keys)], 1).flatten()

    def answer(self, remembered: Tensor, x: Tensor, ways: int) -> Tensor:
        q = self.queries(x)
        remembered = remembered.unflatten(0, (-1, q.shape[1] + 1))
        return best(q, remembered[:, :-1], remembered[:, -1].long(), ways)

    def loss(
        self, x: Tensor, labels: Tensor, target_x: Tensor, target_y: Tensor, second_order: bool
    ) -> tuple[Tensor, Tensor]:
        q = self.queries(torch.cat([x, target_x]))
        with torch.no_grad():
            keys, values, pulls = stream(q, torch.cat([labels, target_y]), len(x))
        margins = ((q * pulls).sum(1) + MARGIN).relu() - MARGIN
        return margins.mean(), best(q[len(x) :], keys, values, int(labels.max()) + 1)


def stream(
    q: Tensor,  # [N, d], of length 1
    labels: Tensor,  # [N]
    shown: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the first `shown` images, then the others, each set by turns of its classes: each
    class once before any twice. Gives keys [N, d] and values [N] after the first set, and of every
    image K⁻ − K⁺ [N, d] at its time, the best keys of wrong and right value, 0 where there is none.
    """
    keys, values = torch.zeros_like(q), torch.full_like(labels, EMPTY)
    pulls, after = torch.zeros_like(q), None
    order = torch.cat([by_turns(labels[:shown]), shown + by_turns(labels[shown:])])
    for free, i in enumerate(order):
        if free == shown:
            after = keys.clone(), values.clone()
        right = values == labels[i]
        wrong = ~right & (values != EMPTY)
        likeness = keys @ q[i]
        (positive, k), (negative, k_wrong) = (
            likeness.masked_fill(~of, -torch.inf).max(0) for of in (right, wrong)
        )
        pulls[i] = keys[k_wrong] * wrong.any() - keys[k] * right.any()
        merges = right.any() & (positive >= negative)
        slot = torch.where(merges, k, torch.full_like(k, free))
        keys[slot] = torch.where(merges, F.normalize(keys[slot] + q[i], dim=0), q[i])
        values[slot] = labels[i]
    return *(after or (keys, values)), pulls


def by_turns(labels: Tensor) -> Tensor:  # [n]
    """Their places, so that each class comes once before any comes again."""
    if not len(labels):
        return labels
    seen = heads.one_hot(labels[None], int(labels.max()) + 1, labels)[0].cumsum(0)
    turn = seen.gather(1, labels.unsqueeze(1)).squeeze(1)
    return turn.argsort(stable=True)


def best(q: Tensor, keys: Tensor, values: Tensor, ways: int) -> Tensor:  # [N, W]
    """Of each class the likeness of its best key."""
    of_class = values == torch.arange(ways, device=values.device).unsqueeze(1)
    return (q @ keys.T).unsqueeze(1).masked_fill(~of_class, -torch.inf).amax(2)
