"""Neural statistician (Edwards & Storkey 2017, arXiv 1606.02185).

    p(c) = N(0, I),   p(z|c),   p(x|z, c);   q(c|D) of a set D of one class,   q(z|x, c)
    max over all of Σ_D E_q[Σ_x log p(x|z, c)] − KL(q(c|D) ‖ p(c)) − Σ_x KL(q(z|x, c) ‖ p(z|c))
    class of x: argmin_w KL(q(c|D_w) ‖ q(c|x))

No labels but which images belong together, and no inner loop: a set is a class of a task, all of
its S + Q images in training and its S images afterwards. All distributions are normal with diagonal
variances but p(x|z, c), which is Bernoulli on Omniglot's pixels; on other data, which this engine
normalises, it is normal with one learned variance.

`--network own` always: as a published approximation of the paper's
(github.com/conormdurkan/neural-statistician), nine convolutions with batch norm and ELU, a context
of 512 and latents of 16 numbers, 8.4 M parameters at 28×28 pixels and some 230 M products an image;
`--filters 64` is its width.

Published: Omniglot 98.1 / 99.5 / 93.2 / 98.1 for 5w1s, 5w5s, 20w1s, 20w5s (retold; the paper's own
split). Not known here: that split, the direction of the KL (this one is a student repository's),
whether batch norm takes the batch's statistics at test (here running ones, always), and what the
paper drops of a set at random. No readable reproduction of the classification is known.

Not as that code: its sets have 5 images (here `--shots` and `--targets` make them, by default 5 or
more, and `--eval-targets` is the preset's `--targets`); rotations by multiples of 90° in place of
flips and any angle; the bound itself from the beginning, where the code weighs reconstruction by
1 + w and the KL by 1/(1 + w), w halved every epoch; what lies behind the pool is normalised over
the sets of a task, there over 32 (`--train-ways 32 --tasks 1`). Entries of the gradient of the mean
over all images are within 0.5 (`--clamp`) as there.

Neutral value: a target that is the only image of a class in the support set is at distance 0 of it.
"""

from functools import cache

from engine.methods.base import OWN, STEPS, Method

SET = 5  # images, in training


def _model(cfg):
    return _network(cfg.channels, cfg.image_size, cfg.filters, cfg.dataset == "omniglot")


@cache
def _network(*sizes):
    from engine.models.statistician import Statistician
    from engine.models.whole import Whole

    return Whole(lambda: Statistician(*sizes))


def _loop(cfg, model):
    from engine.methods.remembering import Networks

    return Networks(cfg.ways)


METHOD = Method(
    "statistician",
    OWN | {"norm_statistics": "running"},
    {
        "filters": 64,
        "clamp": 0.5,
        "task_reduction": "mean",
        "targets": lambda s: max(s["targets"], SET - s["shots"]),
        "eval_targets": lambda s: s.get("eval_targets") or s["targets"],
    },
    without=(*STEPS, "negative_slope", "norm_eps"),
    head="made",
    loop=_loop,
    model=_model,
)
