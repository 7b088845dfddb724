"""Methods of few-shot learning, a file each: equations, source, published settings, neutral value.

One is a set of choices among the engine's settings wherever it can be, so that it is trained, saved
and evaluated by the same code as MAML++; `--method` names it. Importing this takes no torch.
"""

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
from engine.methods.base import Method, Rule

__all__ = ["EMBEDDING", "HEADLESS", "KEEPING", "METHODS", "Method", "Rule"]

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
# Whose classifier is made of the support set, for any number of classes; and of those, they that
# have no inner loop.
HEADLESS = tuple(name for name, m in METHODS.items() if m.head != "learned")
EMBEDDING = tuple(name for name, m in METHODS.items() if m.head == "made")
# Whose network is their own, and answers by what they keep of the support set.
KEEPING = tuple(name for name, m in METHODS.items() if m.model)
