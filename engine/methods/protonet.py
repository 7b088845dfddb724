"""Prototypical networks (Snell, Swersky & Zemel 2017, arXiv 1703.05175).

    c_w = mean of f_θ(x) over the support images of class w
    p(w|x) = softmax_w(−‖f_θ(x) − c_w‖²),   min over θ of Σ_tasks −log p(y|x)

No inner loop: an embedding and a classifier in closed form, 2 f·c_w − ‖c_w‖² once ‖f‖² cancels.
With δ = (p − y)/m the gradients are 2 δ c in a target's features and 2 (δᵀ f − diag(Σ δ) c) in c.
The network's own classifier takes no part.

Published (github.com/jakesnell/prototypical-networks @c9bb4d2, `run_train.py`): Omniglot 60-way
training for all, Q 5, Adam 1e-3 halved every 2,000 episodes, until 200 epochs of 100 without a
better validation loss, then again on train and val; 1028/172/423 characters, rotations as classes
on every split; mini-ImageNet 30-way for 1-shot, 20-way for 5-shot, Q 15. Support and target are one
batch for batch norm, test by running statistics. Omniglot 98.8 / 99.7 / 96.0 / 98.9 for 5w1s, 5w5s,
20w1s, 20w5s; mini-ImageNet 49.42 ± 0.78 / 68.20 ± 0.66, with 5-way training 46.61 / 65.77.

Here: `--train-ways` is the training's W, by default that of the test; the outer rate follows the
preset, unless `--annealing halving --min-lr 0` (every `--halving-epochs` 20, of the preset's
iterations) asks for theirs; the best epoch on validation is taken, and nothing is trained on val;
splits and Q are the preset's.

Neutral value: on features of length 1 with one support image a class it is `matching` at τ = 2.
"""

from engine.methods.base import EMBEDDING, STEPS, Method


def _loop(cfg, model):
    from engine.methods.embedding import ClosedForm
    from engine.methods.heads import Prototypes

    return ClosedForm(Prototypes(), cfg.train_ways or cfg.ways, cfg.ways)


METHOD = Method(
    "protonet",
    EMBEDDING,
    {"norm_statistics": "running"},
    without=STEPS,
    head="made",
    loop=_loop,
)
