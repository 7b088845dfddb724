"""First-order MAML (Finn, Abbeel & Levine 2017, §5.2).

    φ_{k+1} = φ_k − α ∇L_s(φ_k),   θ's gradient := Σ_tasks ∇L_t(φ_K)

MAML whose step gradients are constants to the outer loop: no second derivatives in any epoch.

Published: mini-ImageNet 48.07 ± 1.75 / 63.15 ± 0.91 (quoted by others), on Omniglot by the Reptile
paper 98.3 / 99.2 / 89.4 / 97.9 for 5w1s, 5w5s, 20w1s, 20w5s. It fails without the statistics of the
target set (`--protocol inductive`), say others (github.com/fmu2/PyTorch-MAML).

Neutral value: where the support loss has no curvature it is MAML.
"""

from engine.methods.base import NEUTRAL, Method

METHOD = Method(
    "fomaml",
    {"rates": "fixed", "first_order_epochs": lambda settings: settings["epochs"]},
    NEUTRAL,
)
