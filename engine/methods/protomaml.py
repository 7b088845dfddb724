"""ProtoMAML (Triantafillou et al. 2020, arXiv 1903.03096).

    φ_0 = (θ's body, head of class w: weights 2c_w, bias −‖c_w‖²),   c_w as in `protonet` at θ
    φ_{k+1} = φ_k − α ∇L_s(φ_k) on everything,   min over θ of Σ_tasks L_t(φ_K)

The gradient flows through the start: what the reverse sweep leaves on the head, V and v, goes to
c_w as 2V − 2 diag(v) c and from there back through the support features at θ. θ's own head takes
no part.

Published (github.com/google-research/meta-dataset @1676095): first order (`--first-order-epochs`),
α 0.01, K 5, gains and biases not adapted, Adam; on ImageNet α 0.0054, K 6. Its two configurations
of mini-ImageNet include the one of plain MAML, which turns the prototypes off. No number of this
network on mini-ImageNet is known. Here it is second order unless told otherwise.

Neutral value: without a step, or with rates of 0, it is `protonet` whose sets are two batches.
"""

from engine.methods.base import NEUTRAL, Method


def _loop(cfg, model):
    from engine.methods import prototypical

    return prototypical


METHOD = Method(
    "protomaml",
    {"network": "conv4", "adapt": "all", "unroll": "adjoint"},
    NEUTRAL,
    head="begun",
    loop=_loop,
)
