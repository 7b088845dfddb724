"""ANIL, almost no inner loop (Raghu, Raghu, Bengio & Vinyals 2020, arXiv 1909.09157).

    φ_{k+1} = φ_k − M ∘ α ∇L_s(φ_k),   M = 1 on the head, 0 on the body

Training and test by the same mask; the outer loop learns all of θ. The body is the same in all
steps: rows of batch norm are shared, and the features of both sets are computed once
(`engine.methods.once`).

Published: mini-ImageNet 46.30 ± 0.40 / 61.00 ± 0.60 (a later table), 46.7 ± 0.4 / 61.5 (others).
Settings from memory: α 0.01, K 5 in training and 10 at test, 4 tasks, 30,000 iterations.
learn2learn trains with α 0.1, K 5, 32 tasks, Adam 1e-3.

Neutral value: a mask of ones is MAML, bit for bit.
"""

from engine.methods.base import NEUTRAL, Method

METHOD = Method(
    "anil", {"adapt": "head", "norm_weights": "shared", "norm_stats": "shared"}, NEUTRAL
)
