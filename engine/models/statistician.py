"""The networks of the neural statistician (Edwards & Storkey 2017, §4.4 and its appendix)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.methods import heads
from engine.models.whole import TaskNetwork

_HALVINGS = 3  # of the encoder, and doublings of the decoder
_LAYERS = 3  # of a residual block
_MOST = 80.0  # exponent: where running statistics meet an image unlike all, float32 overflows


class Gaussian(NamedTuple):
    """Independent ones, of means and logarithms of variances [N, D]."""

    mean: Tensor
    logvar: Tensor

    def drawn(self) -> Tensor:
        return self.mean + (0.5 * self.logvar).exp() * torch.randn_like(self.mean)

    def rows(self, places: Tensor) -> Gaussian:
        return Gaussian(self.mean[places], self.logvar[places])


def divergence(p: Gaussian, q: Gaussian) -> Tensor:  # [...]
    """KL(p ‖ q) of the last axis."""
    ratio = p.logvar - q.logvar
    apart = (p.mean - q.mean).square() * (-q.logvar).clamp(max=_MOST).exp()
    return 0.5 * (ratio.clamp(max=_MOST).exp() + apart - 1 - ratio).sum(-1)


class Statistician(TaskNetwork):
    """A set of images of one class has a context c, an image a latent z:

        p(c) = N(0, I),  p(z|c),  p(x|z, c);   q(c|D) of pooled features,  q(z|x, c)

    binary: pixels are 0 or 1, with p(x|z, c) Bernoulli; else normal, of one learned variance, which
        takes no part otherwise.
    """

    random = True

    def __init__(self, channels: int, image_size: int, filters: int, binary: bool):
        super().__init__()
        f, hidden, context, latent = filters, 4 * filters, 8 * filters, max(1, filters // 4)
        sides = [image_size]
        for _ in range(_HALVINGS):
            sides.append(-(-sides[-1] // 2))
        self.binary, self.image_size, self.remembered_sizes = binary, image_size, (0, 2 * context)
        widths = channels, f, f, f, 2 * f, 2 * f, 2 * f, hidden, hidden, hidden
        self.encoder = nn.Sequential(
            *(
                _convolution(a, b, stride=1 + (i % 3 == 2))
                for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
            ),
            nn.Flatten(),
        )
        features = hidden * sides[-1] ** 2
        self.before_pool = _linear(features, hidden)
        self.after_pool = nn.Sequential(_linear(hidden, hidden), _linear(hidden, hidden))
        self.context = _Normal(hidden, context)
        self.latent_h, self.latent_c = nn.Linear(features, hidden), nn.Linear(context, hidden)
        self.latent = nn.Sequential(_Residual(hidden), _Normal(hidden, latent))
        self.prior_c = nn.Linear(context, hidden)
        self.prior = nn.Sequential(_Residual(hidden), _Normal(hidden, latent))
        self.decoder_z, self.decoder_c = nn.Linear(latent, hidden), nn.Linear(context, hidden)
        # 28 pixels are 14, 7 and 4; 4, 8 and 16 again, of which one convolution without padding
        # makes 14, then 28.
        cut = 4 * sides[-1] - 2 >= sides[1]
        self.decoder = nn.Sequential(
            nn.Linear(hidden, features),
            nn.Unflatten(1, (hidden, sides[-1], sides[-1])),
            _convolution(hidden, hidden),
            _convolution(hidden, hidden),
            _doubled(hidden),
            _convolution(hidden, 2 * f),
            _convolution(2 * f, 2 * f),
            _doubled(2 * f),
            _convolution(2 * f, f),
            _convolution(f, f, padding=1 - cut),
            _doubled(f),
            nn.Conv2d(f, channels, 1),
        )
        self.logvar = nn.Parameter(torch.zeros(()))
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.xavier_normal_(part.weight, nn.init.calculate_gain("relu"))
                nn.init.zeros_(part.bias)

    def contexts(self, h: Tensor, labels: Tensor) -> Gaussian:  # [sets, C]
        """q(c|D) of each set, by the images' features and the places of their sets."""
        e = self.before_pool(h)
        shares = heads.shares_of(labels[None], int(labels.max()) + 1, e)[0]
        return self.context(self.after_pool(shares.T @ e))

    def learn(self, x: Tensor, labels: Tensor) -> Tensor:
        """A row a class: mean and logarithm of the variance of its context."""
        return torch.cat(self.contexts(self.encoder(x), labels), 1).flatten()

    def answer(self, remembered: Tensor, x: Tensor, ways: int) -> Tensor:
        of_classes = remembered.unflatten(0, (-1, self.remembered_sizes[1]))[:ways]
        classes = Gaussian(*of_classes.chunk(2, 1))
        return self._answer(classes, self.encoder(x))

    def _answer(self, classes: Gaussian, h: Tensor) -> Tensor:  # [N, W]
        alone = self.contexts(h, torch.arange(len(h), device=h.device))
        return -divergence(classes, Gaussian(*(part.unsqueeze(1) for part in alone)))

    def loss(
        self, x: Tensor, labels: Tensor, target_x: Tensor, target_y: Tensor, second_order: bool
    ) -> tuple[Tensor, Tensor]:
        """Minus the bound on log p of the classes' images, an image."""
        x, n, sets = torch.cat([x, target_x]), len(x), torch.cat([labels, target_y])
        h = self.encoder(x)
        with torch.no_grad():  # before the sets, whose statistics are to be the last
            logits = self._answer(self.contexts(h[:n], labels), h[n:])
        contexts = self.contexts(h, sets)
        c = contexts.drawn()
        of_image = self.latent(F.elu(self.latent_h(h) + self.latent_c(c)[sets]))
        z, prior = of_image.drawn(), self.prior(F.elu(self.prior_c(c)))
        log_p = self.log_likelihood(x, z, c[sets])
        standard = Gaussian(*(torch.zeros_like(part) for part in contexts))
        apart = divergence(contexts, standard).sum() + divergence(of_image, prior.rows(sets)).sum()
        return (apart - log_p.sum()) / len(x), logits

    def log_likelihood(self, x: Tensor, z: Tensor, c: Tensor) -> Tensor:  # [N]
        """log p(x|z, c)."""
        made = self.decoder(F.elu(self.decoder_z(z) + self.decoder_c(c)))
        made = made[..., : self.image_size, : self.image_size]
        if self.binary:
            losses = F.binary_cross_entropy_with_logits(made, x, reduction="none")
        else:
            var = self.logvar.exp().expand_as(x)
            losses = F.gaussian_nll_loss(made, x, var, full=True, reduction="none")
        return -losses.flatten(1).sum(1)


class _Normal(nn.Module):
    """A layer that gives one, normalised as a whole."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, 2 * width), nn.BatchNorm1d(1, eps=1e-3)

    def forward(self, e: Tensor) -> Gaussian:
        values = self.norm(self.linear(e).unsqueeze(1)).squeeze(1)
        return Gaussian(*values.chunk(2, 1))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        layers = [_linear(width, width) for _ in range(_LAYERS - 1)]
        self.layers = nn.Sequential(*layers, _linear(width, width)[:-1])

    def forward(self, e: Tensor) -> Tensor:
        return F.elu(e + self.layers(e))


def _linear(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ELU())


def _convolution(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ELU())


def _doubled(width: int) -> nn.Sequential:
    layer = nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ELU())
