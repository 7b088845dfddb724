"""Meta networks (Munkhdalai & Yu 2017, arXiv 1703.00837).

    ∇_i = ∇_Q CE(u(Q, x_i), y_i),   Q* = d(∇_1 … ∇_n)          for the support images i
    ∇_i = ∇_W CE(b(W, x_i), y_i),   W*_i = m(∇_i),   r_i = u(Q, Q*, x_i)
    r = u(Q, Q*, x),   a = softmax_i cos(r, r_i),   W* = Σ_i a_i W*_i
    min over Q, W, d, m of Σ_tasks CE(b(W, W*, x), y)

Two networks with slow weights Q and W, and fast ones that are made of gradients: a layer gives
relu(slow x) + relu(fast x), but the two last ones, key and logits, a sum without ReLU. d is an LSTM
over five groups of the support set, each with the gradient of its mean loss, m a network of three
layers, both the same for all weights (one for convolutions, another for linear layers) and of each
gradient g given (log|g|/p, sign g), or (−1, e^p g) where it is small, p = 7. Gradients are
constants to the outer loop; with `--first-order-epochs 0` it differentiates through them.

`--network own` always: as the authors' code (bitbucket.org/tsendeemts/metanet, MetaNetFull) has it
for Omniglot, in u and b each five convolutions of 64 filters, a pool of 2×2 behind each, and two
linear layers, 152,448 weights for 5 grey classes of 28×28; `--filters 64` is the width. Every
target has weights of its own: a 5-way 1-shot task takes seconds of a core.

Published: Omniglot 98.95 / 97.00 for 5w1s and 20w1s, mini-ImageNet 49.21 for 5w1s.

Not as that code: fast weights begin small (the last layers of d and m with a deviation of 0.001,
there as all others), so that it begins near b with its slow weights; the loss is a mean over
targets, there a sum over ten a class, of one task an iteration, so that the bound of the gradient's
norm (`--max-norm 10`) binds later; the support set lies class by class; sizes of mini-ImageNet's
network, of which only some layers have fast weights there. Of several shots the paper takes a
contrastive loss of pairs for u; here it is the same cross-entropy.

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
    {
        "filters": 64,
        "first_order_epochs": lambda settings: settings["epochs"],
        "norm_statistics": "running",
        "clamp": 0.0,
        "max_norm": 10.0,
    },
    without=STEPS + NORM,
    loop=_loop,
    model=_model,
)
