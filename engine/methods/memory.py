"""Learning to remember rare events (Kaiser, Nachum, Roy & Bengio 2017, arXiv 1703.03129).

    q(x) = h_θ(x) P / ‖h_θ(x) P‖,   class of x: the value of the key K with the largest q·K
    min over θ, P of Σ max(0, q·K⁻ − q·K⁺ + α) − α,   α = 0.1

over every image at its time: K⁺ and K⁻ are the best keys of right and wrong value, constants to
the gradient and left out where there is none. Then it is written: where the best key has the right
value, that becomes (K⁺ + q)/‖K⁺ + q‖, else q is a new key. No inner loop.

`--network own` always: the authors' code's (github.com/tensorflow/models,
research/learning_to_remember_rare_events), four convolutions without batch norm and a query of 256
numbers, 1,930,432 parameters at 28×28 grey pixels, 74 M products an image; `--filters 64` is its
width.

Published, background set with rotations for training and evaluation set without: Omniglot 98.4 /
99.6 / 95.0 / 98.6 for 5w1s, 5w5s, 20w1s, 20w5s. The authors' code trains streams of width 5 and
length 30, 16 in step with one memory of 8,192 slots, each position a step of Adam (1e-4, ε 1e-4,
norm of the gradient within 5), 100,000 streams in all; dropout leaves 0.3 of an embedding; k-shot
accuracy is that of images whose class was seen k times, while the memory is written. Stream lengths
for 20 ways, numbers of steps and the width behind each figure are not known here; the author of the
code names a query of 256, its default is 128.

Not as the paper, so that its row is another protocol: a stream is a task, support images by turns
of their classes and then the targets, all of it one loss; each task has a memory of its own with
room for all, so that nothing is overwritten and ages mean nothing; targets are answered by what the
support set left, and are not written in evaluation. All slots are looked at, not the 256 nearest.
There is no dropout: in a few hundred iterations nothing was learned with it. Adam and its rate are
the preset's (`--lr`), its ε is fixed and the norm is not bounded.

Neutral value: with one support image a class its answer is that of `matching`, the nearest by
cosine.
"""

from functools import cache

from engine.methods.base import NORM, OWN, STEPS, Method


def _model(cfg):
    return _network(cfg.channels, cfg.image_size, cfg.filters)


@cache
def _network(*sizes):
    from engine.models.remember import Remember
    from engine.models.whole import Whole

    return Whole(lambda: Remember(*sizes))


def _loop(cfg, model):
    from engine.methods.remembering import Networks

    return Networks(cfg.ways)


METHOD = Method(
    "memory",
    OWN,
    {"filters": 64, "norm_statistics": "running"},
    head="made",
    without=STEPS + NORM,
    loop=_loop,
    model=_model,
)
