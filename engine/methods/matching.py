"""Matching networks (Vinyals et al. 2016, arXiv 1606.04080).

    a_i(x) = softmax_i(τ cos(f(x, S), g(x_i, S))) over the n support images
    p(w|x) = Σ_{i in w} a_i(x),   min over θ of Σ_tasks −log p(y|x)

No inner loop. Without full context embeddings f = g = f_θ, the network's features; with J steps of
them (`--context J`) LSTMs see the support set, too: `engine.methods.context`, 28 D² + 12 D numbers
of their own. With A the softmax over all images and B the one within each class the gradient in a
score is (A_i − 1[i in y] B_i)/m. The network's own classifier takes no part. τ is 1 in the paper
(`--temperature`): then p is at most e/(e + (W − 1)/e) for S = 1, some 0.28 at 20 ways, and the loss
stays far above 0.

Published: Omniglot 98.1 / 98.9 / 93.8 / 98.5 for 5w1s, 5w5s, 20w1s, 20w5s, without it (retold).
The figures of mini-ImageNet, 43.56 / 55.31, are Ravi & Larochelle's with context embeddings; 43.40
/ 51.09 without. Of the paper's training nothing is known: optimiser, rate, batch, J, τ, where r_0
begins, and in which order, said to be random, the LSTMs read the support set: here class by class.

Ravi & Larochelle (github.com/twitter-research/meta-learning-lstm @0df7fc7) have J 3, r_0 the mean
of g as here, Adam 1e-4, dropout 0.1 in the network, the gradient of the context LSTM within a norm
of 0.25 (`--max-norm` bounds that of everything), a task an iteration, 75 targets, and other class
scores: Σ_{i in w} cos, then a softmax over classes (`--class-scores sum`), which for S = 1 is the
same. Others: Meta-Dataset normalises the support alone; with squared distances it learns faster.

Support and target are one batch for batch norm. `--train-ways` may differ from the test's.

Neutral value: at S = 1 on features of length 1, τ = 2, it is `protonet`.
"""

from engine.methods.base import EMBEDDING, STEPS, Method


def _loop(cfg, model):
    from engine.methods.embedding import ClosedForm
    from engine.methods.heads import Matching

    return ClosedForm(Matching.of(cfg), cfg.train_ways or cfg.ways, cfg.ways, cfg.context)


def _width(model):
    """Of the features."""
    *_, weight, bias = model.sizes
    return weight // bias


def _own(cfg, model):
    from engine.methods import context

    return context.size(_width(model)) if cfg.context else 0


def _begin(cfg, model, generator):
    from engine.methods import context

    return context.initial(_width(model), generator)


METHOD = Method(
    "matching",
    EMBEDDING,
    {"norm_statistics": "running"},
    only=("temperature", "class_scores", "context"),
    without=STEPS,
    head="made",
    by_image=True,
    loop=_loop,
    own=_own,
    begin=_begin,
)
