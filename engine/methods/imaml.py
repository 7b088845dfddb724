"""iMAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv 1909.04630).

    φ*(θ) = argmin_φ L_s(φ) + λ/2 ‖φ − θ‖²,   min over θ of Σ_tasks L_t(φ*)
    dL_t/dθ = u,   (I + H/λ) u = ∇L_t(φ*),   H = ∇²L_s(φ*)

The gradient needs φ* alone, not the way to it. φ* is what K steps come to that take the loss by its
gradient and the proximal term as it is, which has the same end for any λ: φ_{k+1} = (φ_k − α g_k +
αλ θ)/(1 + αλ). u is that of `--cg-steps` conjugate gradients from 0, a product with H each: the
tangent of one support pass. A direction without positive curvature ends them; if it is the first,
u = ∇L_t. Gains and biases, which the inner loop leaves, get ∂L_t − (∂²L_s/∂γ∂φ) u/λ. In epochs of
first order u = ∇L_t.

Published (github.com/aravindr93/imaml_dev @6a2a669): λ 2, α 0.1, K 16, 5 conjugate gradients, 32
tasks, Adam 1e-3 with 1e-3 added to the root, 20,000 iterations or more over 200,000 fixed tasks.
That code takes 16 plain steps without the proximal term, then one of the proximal term alone, and
solves (1 + 1) u + H u/(λ + 10); it tests with λ 0, and adapts gains and biases. mini-ImageNet
5w1s 49.30 ± 1.88 (quoted), whose settings it has not; Omniglot 99.50 / 99.74 / 96.18 / 99.14 for
5w1s, 5w5s, 20w1s, 20w5s, Hessian-free (from memory).

Here λ is 0.5: where every step has the proximal term, 2 holds φ so near to θ that Omniglot is
learned far more slowly. K, α and the number of conjugate gradients are that code's; training and
test have one λ.

Neutral value: with λ without end it is the gradient of the target loss at θ.
"""

from engine.errors import flag
from engine.methods.base import NEUTRAL, Method


def _loop(cfg, model):
    from engine.methods.imaml_loop import Implicit

    return Implicit(cfg.inner_rate, cfg.proximal, cfg.cg_steps)


def _wrong(settings):
    for name in ("proximal", "cg_steps"):
        if not settings[name]:
            return f"{flag(name)} is 0 with --method imaml: give more"
    return None


METHOD = Method(
    "imaml",
    {
        "rates": "fixed",
        "adapt": "all",
        "norm_weights": "shared",
        "norm_stats": "shared",
        "norm_statistics": "batch",
        "train_norm_statistics": "batch",
        "msl_epochs": 0,
        "unroll": "adjoint",
    },
    NEUTRAL | {"steps": 16, "eval_steps": 0, "inner_rate": 0.1, "proximal": 0.5, "cg_steps": 5},
    only=("proximal", "cg_steps"),
    loop=_loop,
    wrong=_wrong,
    by_rate=True,
)
