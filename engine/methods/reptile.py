"""Reptile (Nichol, Achiam & Schulman 2018, arXiv 1803.02999).

    φ_0 = θ,   φ_{k+1} = U(φ_k; minibatch k of the task), k < K
    θ ← θ + ε · mean over tasks of (φ_K − θ),   ε from 1 to 0

U is Adam without first moment: v ← β v + (1 − β) g², φ ← φ − α g / (√(v/(1 − βᵗ)) + 1e-8), β 0.999
(`--inner-optimizer sgd`: φ ← φ − α g). Gains and biases of batch norm are part of φ and θ. There is
no target loss: targets of a training task are for the metrics. v and t are never reset, in the
authors' code (github.com/openai/supervised-reptile @8f2b71c) from one task to the next, and each
evaluation starts from them.

Published (README there): Omniglot `--train-shots 10`, 5-way batches of 10, K 5, α 0.001, 20-way
batches of 20, K 10, α 0.0005; mini-ImageNet 15, 10, K 8, α 0.001; 5 tasks an iteration, 100,000
(20-way 200,000); at test K 50 and batches of 5 (20-way 10, mini-ImageNet 5-shot 15). Inductive
Omniglot 95.39 / 98.90 / 88.14 / 96.65 for 5w1s, 5w5s, 20w1s, 20w5s, mini-ImageNet 47.07 / 62.74;
transductive 97.68 / 99.48 / 89.43 / 97.12, 49.97 / 65.99 (quoted by others, who find the same).

At test it normalises in its own way: `transductive` takes a batch of the targets, one a class, and
`inductive` a batch of each target with the whole support set.

Where this differs from the code: tasks of an iteration start from one v, and the mean of theirs
goes on; the order of images in minibatches is that of all tasks of an iteration; ε falls epoch by
epoch; 1e-8 is added to the corrected root, there to √v; data, network and test tasks are the
preset's (there Omniglot's 1200/423 characters, turned ones in training alone, features flattened
after stride 2; mini-ImageNet pooled to 6x6; 10,000 test tasks; the last model); own pictures are
normalised by the support set alone.

Neutral value: with K 1 and gradient descent θ − φ is α times the gradient of the joint loss.
"""

from engine.methods.base import NEUTRAL, Method


def _loop(cfg, model):
    from engine.methods.reptile_loop import Reptile

    return Reptile(cfg.inner_rate, cfg.inner_batch, cfg.eval_batch, cfg.inner_optimizer == "adam")


def _own(cfg, model):
    return sum(model.sizes) + 2 * model.stat_width + 1


def _by_data(omniglot, twenty, natural):
    """A value for Omniglot, for 20 ways of it, and for other pictures."""

    def value(settings):
        if settings["dataset"] != "omniglot":
            return natural
        return twenty if settings["ways"] > 5 else omniglot

    return value


def _eval_batch(settings):
    return _by_data(5, 10, 15 if settings["shots"] > 1 else 5)(settings)


METHOD = Method(
    "reptile",
    {
        "optimizer": "sgd",
        "task_reduction": "mean",
        "rates": "fixed",
        "norm_weights": "shared",
        "norm_stats": "shared",
        "norm_statistics": "batch",
        "train_norm_statistics": "batch",
        "adapt": "all",
        "norm_gains": "learned",
        "msl_epochs": 0,
        "unroll": "adjoint",
    },
    NEUTRAL
    | {
        "first_order_epochs": lambda settings: settings["epochs"],
        "train_shots": _by_data(10, 10, 15),
        "targets": 1,
        "tasks": 5,
        "steps": _by_data(5, 10, 8),
        "eval_steps": 50,
        "inner_optimizer": "adam",
        "inner_batch": _by_data(10, 20, 10),
        "eval_batch": _eval_batch,
        "inner_rate": _by_data(1e-3, 5e-4, 1e-3),
        "lr": 1.0,
        "min_lr": 0.0,
        "annealing": "linear",
        "clamp": 0.0,
    },
    without=("first_order_epochs",),
    only=("inner_optimizer", "inner_batch", "eval_batch"),
    loop=_loop,
    own=_own,
    averaged=True,
    by_rate=True,
)
