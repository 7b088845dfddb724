"""Meta-SGD (Li, Zhou, Chen & Li 2017, arXiv 1707.09835).

    φ_{k+1} = φ_k − a ∘ ∇L_s(φ_k),   min over θ, a of Σ_tasks L_t(φ_K)

a [1, P] has a rate for each number of θ, of either sign, learned with θ by the same outer loss; K
is 1 in the paper. With more steps the same a serves all of them. With v = ∇L_t(φ_1) the gradients
are −Σ_tasks v ∘ ∇L_s(θ) in a, and v − H(a ∘ v) in θ. No bound is laid on a's gradient.

Published: K 1 (abstract). Where a starts is not known here (0.005 to 0.1, equal or random, from
memory), nor the outer rate, batches and regularisation: `--inner-rate` is where all of it starts,
by default that of the preset. Omniglot 99.53 / 99.93 / 95.93 / 98.97 for 5w1s, 5w5s, 20w1s, 20w5s;
mini-ImageNet 50.47 ± 1.87 / 64.03 ± 0.94. github.com/jik0730/Meta-SGD-pytorch finds 49.1 / 66.0
with 0.001 at the start and adapts gains and biases too. Others call a rate a tensor by this name.

Neutral value: equal rates that are not learned are MAML, bit for bit.
"""

from engine.methods.base import NEUTRAL, Method

METHOD = Method("meta-sgd", {"rates": "per-parameter"}, NEUTRAL | {"steps": 1})
