"""BOIL, body only update in the inner loop (Oh, Yoo, Kim & Yun 2021, arXiv 2008.08882).

    φ_{k+1} = φ_k − M ∘ α ∇L_s(φ_k),   M = 0 on the head, 1 on the body

Training and test by the same mask; the outer loop learns all of θ.

Published: mini-ImageNet 49.61 ± 0.16 / 66.45 ± 0.37; its code (github.com/jhoon-oh/BOIL @437e9a0)
has K 1, α 0.5, Adam 1e-3, 4 tasks, 300 epochs of 100 iterations, and adapts gains and biases of
batch norm with the body, which this engine does not. LibFewShot finds 47.92 / 64.39. The rate here
is the preset's unless `--inner-rate` says otherwise.

Neutral value: a mask of ones is MAML, bit for bit.
"""

from engine.methods.base import NEUTRAL, Method

METHOD = Method("boil", {"adapt": "body"}, NEUTRAL | {"steps": 1})
