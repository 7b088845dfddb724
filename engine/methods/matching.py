"""Matching networks without full context embeddings (Vinyals et al. 2016, arXiv 1606.04080).

    a_i(x) = softmax_i(τ cos(f_θ(x), f_θ(x_i))) over the n support images
    p(w|x) = Σ_{i in w} a_i(x),   min over θ of Σ_tasks −log p(y|x)

No inner loop; f = g. With A the softmax over all images and B the one within each class the
gradient in a score is (A_i − 1[i in y] B_i)/m. The network's own classifier takes no part. τ is 1
in the paper (`--temperature`): then p is at most e/(e + (W − 1)/e) for S = 1, some 0.28 at 20 ways,
and the loss stays far above 0.

Published: Omniglot 98.1 / 98.9 / 93.8 / 98.5 for 5w1s, 5w5s, 20w1s, 20w5s (retold). The figures of
mini-ImageNet, 43.56 / 55.31, are Ravi & Larochelle's with context embeddings; 43.40 / 51.09
without. Training settings and τ are not in the paper as far as known. Others: for several shots
Ravi & Larochelle sum cosines and take the softmax over classes, which is another method; Meta-
Dataset normalises the support alone; with squared distances it learns faster.

Support and target are one batch for batch norm. `--train-ways` may differ from the test's.

Neutral value: at S = 1 on features of length 1, τ = 2, it is `protonet`.
"""

from engine.methods.base import EMBEDDING, Method


def _loop(cfg, model):
    from engine.methods.embedding import ClosedForm
    from engine.methods.heads import Matching

    return ClosedForm(Matching(cfg.temperature), cfg.train_ways or cfg.ways, cfg.ways)


METHOD = Method("matching", EMBEDDING, {"norm_statistics": "running"}, head="made", loop=_loop)
