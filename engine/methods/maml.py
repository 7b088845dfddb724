"""MAML (Finn, Abbeel & Levine 2017, arXiv 1703.03400) as its authors' code has it.

    φ_{k+1} = φ_k − α ∇L_s(φ_k),   min over θ of Σ_tasks L_t(φ_K)

One fixed rate, the last step's loss alone, second order from the beginning. Of batch norm, which
always takes the statistics of the set at hand, there is a bias for all steps and no gain
(`utils.py` normalize of github.com/cbfinn/maml @a7f45f1: contrib.layers.batch_norm by its
defaults); the inner loop leaves it alone.

The code sums the cross-entropy over a set and divides by S, the shots: that is W times the mean of
n = W·S images. So its inner rate is W·α on a mean, and its outer loss, of W·Q targets, W·Q/S times
the mean; Adam does not care, the bound on the gradient's entries does. The preset `finn-2017` has
the rate and the bound for losses that are means.

Published settings (the paper's A.1 and the header of `main.py`): Omniglot 5-way K 1, at test 3,
α 0.4, 32 tasks; 20-way K 5 and 5, α 0.1, 16 tasks; 64 filters of stride 2, their mean, Q = S.
mini-ImageNet K 5, at test 10, α 0.01, 4 tasks (the paper: 2 for 5-shot), 32 filters and pooling,
Q 15, the gradient's entries within ±10. All: Adam 1e-3, 60,000 iterations, eps of batch norm 1e-3;
tested with S targets a class on 600 tasks.

Where preset and method differ from the code: the split (1100/100/423 characters there, shuffled
from an unsorted listing); rotations on training tasks alone (there on every split); training tasks
without end (200,000 drawn once); the best epoch on validation (there the last one); the head starts
as Xavier (there N(0, 1) on Omniglot); convolutions have no bias, whose gradient is 0; images are
normalised as the engine's; padding of stride 2 on both sides. 5 or 10 steps at test as in the
paper's tables, where the code prints all up to 10. The rate is not sharply determined: others
reproduce mini-ImageNet with 0.01 on a mean.

Neutral value: its choices but the gain are those of the preset `maml`, bit for bit.
"""

from engine.methods.base import NEUTRAL, Method

METHOD = Method(
    "maml",
    {"rates": "fixed", "norm_gains": "fixed"},
    NEUTRAL,
    presets=("maml++", "maml", "finn-2017"),
)
