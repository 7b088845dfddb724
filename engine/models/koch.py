"""The network of siamese networks (Koch, Zemel & Salakhutdinov 2015, §3.1, fig. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import UserError
from engine.methods import heads
from engine.models.whole import TaskNetwork

_KERNELS = 10, 7, 4, 4  # sides; a 2×2 max pool lies between
LEAST = 65  # pixels that leave something of an image


class Koch(TaskNetwork):
    """Convolutions without padding of F, 2F, 2F and 4F filters, ReLU and pools, then 64F sigmoids
    (F = 64 in the paper), and the pairs' logistic regression. Raises UserError for images that
    would have nothing left.
    """

    def __init__(self, channels: int, image_size: int, filters: int):
        super().__init__()
        if image_size < LEAST:
            raise UserError(
                f"--image-size is {image_size} with --network own: Koch's takes {LEAST} or more, "
                "105 in the paper; give that, or --network conv4"
            )
        widths = channels, filters, 2 * filters, 2 * filters, 4 * filters
        sides = zip(widths[:-1], widths[1:], _KERNELS, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(*sizes) for sizes in sides)
        side = image_size
        for i, kernel in enumerate(_KERNELS):
            side = (side // 2 if i else side) - kernel + 1
        self.features = nn.Linear(widths[-1] * side**2, 64 * filters)
        self.pairs = nn.Linear(64 * filters, 1)
        self.remembered_sizes = 0, 64 * filters + 1
        for layer in self.convolutions:
            nn.init.normal_(layer.weight, 0, 0.01)
        for layer in (self.features, self.pairs):
            nn.init.normal_(layer.weight, 0, 0.2)
        for layer in (*self.convolutions, self.features, self.pairs):
            nn.init.normal_(layer.bias, 0.5, 0.01)

    def embed(self, x: Tensor) -> Tensor:  # [N, 64F]
        for i, layer in enumerate(self.convolutions):
            x = layer(F.max_pool2d(x, 2) if i else x).relu()
        return self.features(x.flatten(1)).sigmoid()

    def learn(self, x: Tensor, labels: Tensor) -> Tensor:
        """A row an image: its features and its class."""
        h = self.embed(x)
        return torch.cat([h, labels.unsqueeze(1).to(h)], 1).flatten()

    def answer(self, remembered: Tensor, x: Tensor, ways: int) -> Tensor:
        h = self.embed(x)
        remembered = remembered.unflatten(0, (-1, h.shape[1] + 1))
        support, classes = remembered[:, :-1], remembered[None, :, -1].long()
        return heads.class_means(self._scores(support, h), classes, ways)[0]

    def loss(
        self, x: Tensor, labels: Tensor, target_x: Tensor, target_y: Tensor, second_order: bool
    ) -> tuple[Tensor, Tensor]:
        h = self.embed(torch.cat([x, target_x]))
        z = self._scores(h[: len(x)], h[len(x) :])
        (loss,), _ = heads.pair_loss(z, labels[None], target_y[None])
        return loss, heads.class_means(z, labels[None], int(labels.max()) + 1)[0]

    def _scores(self, h_s: Tensor, h_q: Tensor) -> Tensor:  # [1, m, n]
        return heads.pair_scores(h_s[None], h_q[None], self.pairs.weight, self.pairs.bias[None])
