"""The rows of each table: what is quoted of them, and which settings train them.

A row whose method is not in `engine.methods.METHODS` is quoted alone; one of METHODS that no row
names has a row of its own all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.methods import METHODS
from engine.tables import quoted
from engine.tables.quoted import MINI, OMNIGLOT, Quoted, Task


class Row(NamedTuple):
    key: str  # of its run folders
    label: str
    quoted: Mapping[Task, Quoted]
    settings: Mapping[str, Any]  # of engine.train, beside the task and its data set
    tasks: tuple[Task, ...]  # that are trained
    tricks: tuple[str, ...] = ()  # settings that it takes from MAML++, of the same length

    @property
    def method(self) -> str:
        return self.settings.get("method", "maml++")


class Table(NamedTuple):
    name: str
    title: str
    dataset: str
    tasks: tuple[Task, ...]
    rows: list[Row]
    notes: tuple[str, ...] = ()
    base: str = ""  # key of the row over which the gain of each other one is told


TRICKS = {
    "MSL": ("msl_epochs",),
    "LSLR": ("rates",),
    "BNWB + BNRS": ("norm_weights", "norm_stats"),
    "CA": ("min_lr",),
    "DA": ("first_order_epochs",),
}
_LABELS = {
    "siamese": "Siamese nets",
    "matching": "Matching nets",
    "matching-context": "Matching nets",
    "statistician": "Neural statistician",
    "memory": "Memory module",
    "meta-sgd": "Meta-SGD",
    "metanet": "Meta-networks",
    "maml-original": "MAML (original)",
    "maml": "MAML (replicated)",
    "maml++": "MAML++",
}
_OTHERS = {
    "matching": "Matching nets, no context",
    "fomaml": "First-order MAML",
    "anil": "ANIL",
    "boil": "BOIL",
    "protonet": "Prototypical nets",
    "protomaml": "ProtoMAML",
    "reptile": "Reptile",
    "imaml": "iMAML",
    "lstm": "Meta-learner LSTM",
}
_METHODS_NOTE = (
    "What is known of a method's published settings, and where ours differs: its file in "
    "engine/methods."
)
_TRICK_NOTE = "The tricks of MAML++ one by one: table ablation."


def of(name: str) -> Table:
    """One of TABLES, by the methods that there are now."""
    return TABLES[name]()


def _omniglot(ways: int) -> Table:
    tasks = tuple(task for task in OMNIGLOT if task[0] == ways)
    rows = [_row(key, quoted.OMNIGLOT_ROWS, tasks) for key in quoted.OMNIGLOT_ROWS]
    rows += _others(quoted.OTHERS_OMNIGLOT, tasks, rows)
    notes = (_METHODS_NOTE, _TRICK_NOTE)[: 1 + (ways == 20)]
    return Table(f"omniglot-{ways}way", f"Omniglot, {ways}-way", "omniglot", tasks, rows, notes)


def _mini() -> Table:
    rows = [_row(key, quoted.MINI_ROWS, MINI) for key in quoted.MINI_ROWS]
    rows[-1] = rows[-1]._replace(label="MAML++, 5 steps")
    rows += _others(quoted.OTHERS_MINI, MINI, rows)
    return Table("mini", "mini-ImageNet, 5-way", "mini", MINI, rows, (_METHODS_NOTE,))


def _ablation() -> Table:
    tasks = OMNIGLOT[:1]
    tricks = [
        Row(key, f"MAML + {name}", figures, {"preset": "maml"}, tasks, TRICKS[name])
        for (key, figures), name in zip(quoted.ABLATION_ROWS.items(), TRICKS, strict=True)
    ]
    first, last = (_row(key, quoted.OMNIGLOT_ROWS, tasks) for key in ("maml", "maml++"))
    title = "Omniglot, 20-way 1-shot: MAML, each trick alone, and MAML++"
    notes = (
        "The paper's Table 1. MAML++ has all five tricks; the others are off in each row. BNRS "
        "keeps running statistics a step, which nothing reads where tests take the batch's, as "
        "here and in the authors' code: its row is BNWB's.",
    )
    return Table("ablation", title, "omniglot", tasks, [first, *tricks, last], notes, first.key)


def _figure1() -> Table:
    tasks = OMNIGLOT[:1]
    rows = [
        Row(
            f"strided-{key}", f"strided {key.upper()}", {}, _preset(key, downsample="stride"), tasks
        )
        for key in ("maml", "maml++")
    ]
    title = "Omniglot, 20-way 1-shot: strided MAML beside strided MAML++"
    notes = (
        "The paper's Figure 1: convolutions of stride 2 in place of pooling, then the mean over "
        "space. It prints curves and no figures; of which data set is not known here.",
    )
    return Table("figure1", title, "omniglot", tasks, rows, notes)


TABLES = {
    "omniglot-20way": lambda: _omniglot(20),
    "omniglot-5way": lambda: _omniglot(5),
    "mini": _mini,
    "ablation": _ablation,
    "figure1": _figure1,
}


def _preset(name: str, **settings: Any) -> dict[str, Any]:
    return {"preset": name, **settings}


def _row(key: str, figures: Mapping[str, Mapping[Task, Quoted]], tasks: tuple[Task, ...]) -> Row:
    """Of the paper, those of the tasks that it prints."""
    base, _, steps = key.partition("-step")[0].rpartition("-")
    own = {task: figures[key][task] for task in tasks if task in figures[key]}
    if base == "maml++":
        label = f"MAML++, {steps} step{'s' * (steps != '1')}"
        return Row(key, label, own, _preset("maml++", steps=int(steps)), tuple(own))
    settings = {
        "maml-original": _preset("finn-2017", method="maml"),
        "maml": _preset("maml"),
        # as Ravi & Larochelle have it, of whom the figures are
        "matching-context": _method("matching") | {"context": 3, "class_scores": "sum"},
    }
    return Row(key, _LABELS[key], own, settings.get(key) or _method(key), tuple(own))


def _others(
    figures: Mapping[str, Mapping[Task, Quoted]], tasks: tuple[Task, ...], rows: list[Row]
) -> list[Row]:
    """Methods that have no row in the paper."""
    known = {row.key for row in rows}
    found = [key for key in dict.fromkeys([*_OTHERS, *METHODS]) if key not in known]
    others = []
    for key in found:
        own = {task: figure for task, figure in figures.get(key, {}).items() if task in tasks}
        if own or key in METHODS:
            trained = tasks if key in METHODS else tuple(own)
            others.append(Row(key, (_LABELS | _OTHERS).get(key, key), own, _method(key), trained))
            if key == "matching":  # whose probabilities a temperature of 1, the paper's, bounds
                label, settings = f"{_OTHERS[key]}, temperature 10", {"temperature": 10.0}
                others.append(Row(f"{key}-10", label, {}, _method(key) | settings, trained))
    return others


def _method(name: str) -> dict[str, Any]:
    """Under the paper's protocol, or the first one that the method goes with."""
    presets = METHODS[name].presets if name in METHODS else ("maml++",)
    preset = "maml++" if "maml++" in presets else presets[0]
    return _preset(preset, **({} if name == "maml++" else {"method": name}))
