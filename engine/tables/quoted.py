"""Accuracies that others printed, in %, with their place and what is known of their protocol.

None was measured here. What is known from memory alone is not among them: of ANIL and iMAML no
figure on Omniglot, of siamese networks none by their own authors.
"""

from __future__ import annotations

from typing import NamedTuple

Task = tuple[int, int]  # ways, shots
OMNIGLOT: tuple[Task, ...] = (20, 1), (20, 5), (5, 1), (5, 5)
MINI: tuple[Task, ...] = (5, 1), (5, 5)
PAPER = "arXiv 1810.09502"


class Quoted(NamedTuple):
    text: (
        str  # as printed; what stands after ± is over seeds, tasks or trials, as the source has it
    )
    source: str
    protocol: str

    @property
    def accuracy(self) -> float:
        return float(self.text.split(" ± ")[0])

    @property
    def deviation(self) -> float | None:
        _, *after = self.text.split(" ± ")
        return float(after[0]) if after else None


def _of(tasks: tuple[Task, ...], source: str, protocol: str, *figures: str | None) -> dict:
    """By task, those that there are."""
    found = zip(tasks, figures, strict=True)
    return {task: Quoted(text, source, protocol) for task, text in found if text}


def _retold(whom: str) -> str:
    return f"{PAPER}, which quotes {whom}"


_NOTHING = "not known here"
_UNKNOWN = f"the rest is {_NOTHING}"
_OWN = f"{PAPER}, its own runs"
_OMNIGLOT = (
    "1150/50/423 shuffled, turned as classes; 1 target a class; batch statistics and 600 tasks by "
    "its code; best epoch by its text, ensemble of 5 by its code"
)
_MINI = (
    "64/16/20; 15 targets a class; batch statistics and 600 tasks by its code; best epoch by its "
    "text, ensemble of 5 by its code"
)
_FINN = "S targets a class; batch statistics, transductive; 600 tasks; last model"
_FINN_OMNIGLOT = f"1100/100/423 shuffled, turned on every split; {_FINN}"
_FINN_MINI = f"64/16/20; 10 steps at test; {_FINN}"
_SNELL = "inductive, running statistics; 15 targets a class; single"
_REPTILE = "transductive, its own statistics; 1 target a class; 10,000 tasks; last model"
_META_SGD = f"K = 1; {_UNKNOWN}"

# The rows of the paper, by the key of ours.
OMNIGLOT_ROWS: dict[str, dict[Task, Quoted]] = {
    "siamese": _of(
        OMNIGLOT,
        _retold("the siamese networks of Vinyals et al. 2016, not Koch et al. 2015"),
        f"pairs; {_UNKNOWN}",
        *("88.2", "97.0", "97.3", "98.4"),
    ),
    "matching": _of(
        OMNIGLOT,
        _retold("Vinyals et al. 2016"),
        f"1200/423, turned as classes; no context embeddings; inductive; {_UNKNOWN}",
        *("93.8", "98.5", "98.1", "98.9"),
    ),
    "statistician": _of(
        OMNIGLOT,
        _retold("Edwards & Storkey 2017"),
        f"a split of its own; {_UNKNOWN}",
        *("93.2", "98.1", "98.1", "99.5"),
    ),
    "memory": _of(
        OMNIGLOT,
        _retold("Kaiser et al. 2017"),
        "background and evaluation sets, turned in training; a stream, each label's k-th image, "
        "the memory still written",
        *("95.0", "98.6", "98.4", "99.6"),
    ),
    "meta-sgd": _of(
        OMNIGLOT,
        _retold("Li et al. 2017"),
        _META_SGD,
        *("95.93 ± 0.38", "98.97 ± 0.19", "99.53 ± 0.26", "99.93 ± 0.09"),
    ),
    "metanet": _of(
        OMNIGLOT,
        _retold("Munkhdalai & Yu 2017"),
        _NOTHING,
        *("97.00", None, "98.95", None),
    ),
    "maml-original": _of(
        OMNIGLOT,
        _retold("Finn et al. 2017"),
        _FINN_OMNIGLOT,
        *("95.8 ± 0.3", "98.9 ± 0.2", "98.70 ± 0.4", "99.9 ± 0.1"),
    ),
    "maml": _of(OMNIGLOT, _OWN, _OMNIGLOT, "91.27 ± 1.07", "98.78", "98.57", "99.82"),
    "maml++": _of(OMNIGLOT, _OWN, _OMNIGLOT, "97.65 ± 0.05", "99.33 ± 0.03", "99.47", "99.85"),
}
_RAVI = f"64/16/20; sums of cosines; inductive, running statistics; {_UNKNOWN}"
MINI_ROWS: dict[str, dict[Task, Quoted]] = {
    "matching-context": _of(
        MINI,
        _retold("Ravi & Larochelle's matching networks, with full context embeddings"),
        _RAVI,
        *("43.56", "55.31"),
    ),
    "meta-sgd": _of(MINI, _retold("Li et al. 2017"), _META_SGD, "50.47 ± 1.87", "64.03 ± 0.94"),
    "metanet": _of(MINI, _retold("Munkhdalai & Yu 2017"), _NOTHING, "49.21", None),
    "maml-original": _of(
        MINI, _retold("Finn et al. 2017"), _FINN_MINI, "48.70 ± 1.84", "63.11 ± 0.92"
    ),
    "maml": _of(MINI, _OWN, _MINI, "48.64", "64.78"),
    "maml++-1-step": _of(MINI, _OWN, _MINI, "51.05 ± 0.31", None),
    "maml++-2-steps": _of(MINI, _OWN, _MINI, "51.49 ± 0.25", None),
    "maml++-3-steps": _of(MINI, _OWN, _MINI, "51.11 ± 0.11", None),
    "maml++-4-steps": _of(MINI, _OWN, _MINI, "51.65 ± 0.34", None),
    "maml++": _of(MINI, _OWN, _MINI, "52.40 ± 1.13", "67.15 ± 0.26"),
}
# The paper's Table 1, trick by trick; what stands beside them is in OMNIGLOT_ROWS.
ABLATION_ROWS: dict[str, dict[Task, Quoted]] = {
    key: _of(OMNIGLOT[:1], _OWN, _OMNIGLOT, figure)
    for key, figure in {
        "maml+msl": "91.53 ± 0.69",
        "maml+lslr": "95.77 ± 0.38",
        "maml+bnwb+bnrs": "95.35 ± 0.23",
        "maml+ca": "93.03 ± 0.44",
        "maml+da": "92.3 ± 0.55",
    }.items()
}
# Of methods that have no row in the paper, as they were published elsewhere.
OTHERS_OMNIGLOT: dict[str, dict[Task, Quoted]] = {
    "fomaml": _of(
        OMNIGLOT,
        "Nichol et al. 2018, who report it",
        _NOTHING,
        *("89.4", "97.9", "98.3", "99.2"),
    ),
    "protonet": _of(
        OMNIGLOT,
        "Snell et al. 2017",
        f"1028/172/423, turned as classes; 60-way training; {_SNELL}; 1,000 tasks",
        *("96.0", "98.9", "98.8", "99.7"),
    ),
    "reptile": _of(
        OMNIGLOT,
        "Nichol et al. 2018",
        f"1200/423, turned as classes in training; {_REPTILE}",
        *("89.43 ± 0.14", "97.12 ± 0.32", "97.68 ± 0.04", "99.48 ± 0.06"),
    ),
}
OTHERS_MINI: dict[str, dict[Task, Quoted]] = {
    "matching": _of(
        MINI,
        "Snell et al. 2017, of Ravi & Larochelle's without context embeddings",
        _RAVI,
        *("43.40 ± 0.78", "51.09 ± 0.71"),
    ),
    "fomaml": _of(MINI, "Finn et al. 2017", _FINN_MINI, "48.07 ± 1.75", "63.15 ± 0.91"),
    "anil": _of(MINI, "Raghu et al. 2020, as others quote it", _NOTHING, "46.7 ± 0.4", "61.5"),
    "boil": _of(
        MINI,
        "Oh et al. 2021",
        f"64/16/20; batch statistics, gains and biases adapted with the body; {_UNKNOWN}",
        *("49.61 ± 0.16", "66.45 ± 0.37"),
    ),
    "protonet": _of(
        MINI,
        "Snell et al. 2017",
        f"64/16/20; 30-way training for 1-shot, 20-way for 5-shot; {_SNELL}; 600 tasks",
        *("49.42 ± 0.78", "68.20 ± 0.66"),
    ),
    "reptile": _of(
        MINI, "Nichol et al. 2018", f"64/16/20; {_REPTILE}", "49.97 ± 0.32", "65.99 ± 0.58"
    ),
    "imaml": _of(
        MINI, "Rajeswaran et al. 2019, as others quote it", _NOTHING, "49.30 ± 1.88", None
    ),
    "lstm": _of(
        MINI,
        "Ravi & Larochelle 2017, as others quote it",
        "64/16/20; 15 targets a class; inductive, statistics of the support set; last model",
        *("43.44 ± 0.77", "60.60 ± 0.71"),
    ),
}
