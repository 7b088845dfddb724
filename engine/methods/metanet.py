"""Meta networks (Munkhdalai & Yu 2017, arXiv 1703.00837).

    ∇_i = ∇_Q CE(u(Q, x_i), y_i),   Q* = d(∇_1 … ∇_n)          for the support images i
    ∇_i = ∇_W CE(b(W, x_i), y_i),   W*_i = m(∇_i),   r_i = u(Q, Q*, x_i)
    r = u(Q, Q*, x),   a = softmax_i cos(r, r_i),   W* = Σ_i a_i W*_i
    min over Q, W, d, m of Σ_tasks CE(b(W, W*, x), y)

Two networks with slow weights Q and W, and fast ones that are made of gradients: a convolution
gives relu(slow ∗ x) + relu(fast ∗ x), a linear layer the sum of both. d is an LSTM over the images,
m a network of three layers, both the same for all weights (one for convolutions, another for linear
layers) and of each gradient g given (log|g|/p, sign g), or (−1, e^p g) where it is small, p = 7.
The outer loop differentiates through the gradients; `--first-order-epochs` makes them constants to
it.

`--network own` always: sizes of the one public port (github.com/duanyzhi/Meta-Networks @4fde08d),
in u and b each five convolutions of 64 filters and two linear layers, 152,448 weights for 5 grey
classes; `--filters 64` is the width. Every target has weights of its own, and the LSTM holds some
0.5 KB a weight and support image: a 5-way 1-shot task takes seconds of a core, and one of 20 ways
or 5 shots gigabytes.

Published: Omniglot 98.95 / 97.00 for 5w1s and 20w1s, mini-ImageNet 49.21 for 5w1s. The authors'
code is not to be had; of optimiser, schedule, first weights and d's order nothing is sure. The
port, for Omniglot 5w1s alone, gives its result as a picture.

Not as the paper or not known: of several shots the paper takes a contrastive loss of pairs for u;
here it is the same cross-entropy, of every image. Not as the port: maxima in both networks, no
centring, fast weights that begin small, and the preset's outer rate (`--lr`; 1e-3 to 1e-4
there).

Neutral value: where d and m give 0 it is b with its slow weights, the same for all tasks.
"""

from functools import cache

from engine.methods.base import NORM, OWN, STEPS, Method


def _model(cfg):
    return _network(cfg.channels, cfg.image_size, cfg.filters, cfg.ways)


@cache
def _network(*sizes):
    from engine.models.metanet import MetaNetwork
    from engine.models.whole import Whole

    return Whole(lambda: MetaNetwork(*sizes))


def _loop(cfg, model):
    from engine.methods.remembering import Networks

    return Networks(cfg.ways)


METHOD = Method(
    "metanet",
    {name: value for name, value in OWN.items() if name != "first_order_epochs"},
    {"filters": 64, "first_order_epochs": 0, "norm_statistics": "running"},
    without=STEPS + NORM,
    loop=_loop,
    model=_model,
)
