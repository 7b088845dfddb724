"""Siamese networks (Koch, Zemel & Salakhutdinov 2015, Siamese neural networks for one-shot image
recognition, ICML workshop).

    z(x, x_i) = Σ_j w_j |h(x) − h(x_i)|_j + b,   p(one class | x, x_i) = σ(z)
    min over θ, w, b of Σ_tasks mean of −log p over pairs;   class of x: argmax_w mean_{i in w} z

No inner loop. Pairs are those of a target with a support image of its task, all W·Q × W·S of them
in one pass; the few of one class count as much as all others together. With δ the gradient in z the
others are Σ δ |h(x) − h(x_i)| in w, and ± δ w sign(h(x) − h(x_i)) in the features.

`--network conv4`: h is the embedding that all methods here share, which is nearer to the row that
papers quote. `--network own`: Koch's, of 38,951,745 parameters at 105×105 grey pixels (909 M
products an image), with its first weights; `--filters 64` is its width.

Published: Koch reports one figure, 92.0 for 20-way 1-shot within an alphabet (400 trials, 30
alphabets for training, affine distortions). The row that others quote, Omniglot 97.3 / 98.4 / 88.2
/ 97.0 for 5w1s, 5w5s, 20w1s, 20w5s, is the reimplementation of the paper on matching networks,
whose network, training and rule for several shots are not known here; from memory, its line with
fine-tuning.

Not as the paper: pairs come of tasks, not of a list of 30,000 to 150,000; no distortions; Adam and
the preset's rate in place of rates, momenta and decays by layer, which were found by search and are
not printed. Others train Koch's by Adam 6e-5 (`--lr`). The mean over a class's images is this
engine's choice; for S = 1 there is none to make. b is not in the formula, but in all codes.

Neutral value: with w = −1 and b = 0 its answer is the nearest support image by absolute distance.
"""

from functools import cache

from engine.methods.base import EMBEDDING, NORM, STEPS, Method


def _network(settings):
    return "own" if _is_koch(settings) else "conv4"


def _gains(settings):
    return "learned" if _is_koch(settings) else settings.get("norm_gains", "learned")


def _is_koch(settings):
    return settings.get("network") == "own"


def _model(cfg):
    from dataclasses import replace

    from engine.models.backbone import Backbone

    if cfg.network == "own":
        return _koch(cfg.channels, cfg.image_size, cfg.filters)
    return replace(Backbone.of(cfg), ways=1)


@cache
def _koch(*sizes):
    from engine.models.koch import Koch
    from engine.models.whole import Whole

    return Whole(lambda: Koch(*sizes))


def _loop(cfg, model):
    from engine.methods.remembering import Networks, Pairs

    if cfg.network == "own":
        return Networks(cfg.ways)
    return Pairs(cfg.ways, cfg.train_ways or cfg.ways)


METHOD = Method(
    "siamese",
    EMBEDDING | {"network": _network, "norm_gains": _gains},
    {
        "norm_statistics": "running",
        "image_size": lambda s: 105 if _is_koch(s) else s["image_size"],
        "filters": lambda s: 64 if _is_koch(s) else s["filters"],
    },
    without=lambda s: STEPS + NORM * _is_koch(s),
    head="made",
    loop=_loop,
    model=_model,
)
