"""Methods of few-shot learning, a file each: equations, source, published settings, neutral value.

One is a set of choices among the engine's settings wherever it can be, so that it is trained, saved
and evaluated by the same code as MAML++; `--method` names it. Importing this takes no torch.
"""

from collections.abc import Callable

from engine.methods import (
    anil,
    boil,
    fomaml,
    imaml,
    lstm,
    maml,
    mamlpp,
    matching,
    memory,
    metanet,
    metasgd,
    protomaml,
    protonet,
    reptile,
    siamese,
    statistician,
)
from engine.methods.base import Method

__all__ = ["METHODS", "Method", "those"]

METHODS: dict[str, Method] = {
    m.METHOD.name: m.METHOD
    for m in (
        mamlpp,
        maml,
        fomaml,
        metasgd,
        anil,
        boil,
        protonet,
        matching,
        protomaml,
        reptile,
        imaml,
        lstm,
        siamese,
        memory,
        statistician,
        metanet,
    )
}


def those(has: Callable[[Method], bool]) -> tuple[str, ...]:
    """The names of methods that have a property."""
    return tuple(name for name, method in METHODS.items() if has(method))
