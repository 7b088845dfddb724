"""The meta-learner LSTM (Ravi & Larochelle 2017, "Optimization as a model for few-shot learning").

    x_t = LSTM_20(ρ(L_t), ρ(g_t)),   ρ(u) = (log|u|/p, sign u), or (−1, e^p u) if |u| < e^−p, p 10
    F_t = w_F·(x_t, c_{t-1}, F_{t-1}) + b_F,   I_t = w_I·(x_t, c_{t-1}, I_{t-1}) + b_I
    c_t = σ(F_t) c_{t-1} − σ(I_t) g_t,   min over c_0 = θ and the weights of Σ_tasks L_t(c_K)

for every coordinate of the network, gains and biases of batch norm among them, by the same 2,046
weights. Losses L_t and gradients g_t of the support set at c_{t-1} are constants to the outer loop:
no second derivatives. F and I are fed back as they are before the sigmoid.

Published (github.com/twitter-research/meta-learning-lstm @0df7fc7): K 12 for 1-shot, for 5-shot 8
in the code and 5 in the paper, which has 43.44 ± 0.77 / 60.60 ± 0.71 on mini-ImageNet (quoted;
which K gave the second is not known), 32 filters, Q 15, a task an iteration, 75,000 and 50,000 of
them, Adam 1e-3, the norm of the gradient within 0.25 (`--max-norm`). It begins with weights within
±0.01, b_F in 4 to 5, b_I in −5 to −4: here around what `--inner-rate` is the sigmoid of, by default
that. Others find 57.8 and 58.1 for 5-shot (github.com/markdtw/meta-learning-lstm-pytorch).

Where this differs: that code divides the mean gradient once more by the number of images; at test
its targets are normalised by averages over the steps (of momentum 0.9 or 0.95, begun anew in each
task), here by the support set's statistics after the last step; images, tasks an iteration, outer
rate and length are the preset's, and the best epoch on validation is taken (there the last one).

Neutral value: without weights, with b_F without end and σ(b_I) = α, it is gradient descent.
"""

from engine.methods.base import NEUTRAL, Method


def _loop(cfg, model):
    from engine.methods.lstm_loop import MetaLearner

    return MetaLearner()


def _own(cfg, model):
    from kernels.plain.lstm import SIZES

    return sum(SIZES)


def _begin(cfg, model, generator):
    from engine.methods.lstm_loop import initial

    return initial(cfg.inner_rate, generator)


def _wrong(settings):
    if (rate := settings["inner_rate"]) >= 1:
        return (
            f"--inner-rate is {rate} with --method lstm, whose rate is a sigmoid: give less than 1"
        )
    return None


METHOD = Method(
    "lstm",
    {
        "rates": "fixed",
        "adapt": "all",
        "norm_gains": "learned",
        "norm_weights": "shared",
        "norm_stats": "shared",
        "norm_statistics": "batch",
        "train_norm_statistics": "batch",
        "msl_epochs": 0,
        "first_order_epochs": lambda settings: settings["epochs"],
        "unroll": "adjoint",
    },
    NEUTRAL
    | {
        "steps": lambda settings: 12 if settings["shots"] == 1 else 5,
        "eval_steps": 0,
        "inner_rate": 0.011,
        "max_norm": 0.25,  # of one task there, of the mean here
        "task_reduction": "mean",
        "clamp": 0.0,
        "protocol": "inductive",
    },
    loop=_loop,
    own=_own,
    begin=_begin,
    wrong=_wrong,
)
