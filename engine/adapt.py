"""Adapts a trained network to classes of your own pictures, and saves it for engine.predict.

    python -m engine.adapt RUN SUPPORT/ -o pets.pt

RUN is a run folder (its best epoch), a checkpoint, or the name of a network that comes with the
package. SUPPORT is a folder, zip or tar archive of ``<class>/<image>``.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import weights
from engine.commandline import Parser, a_path, add_flags, parse
from engine.errors import listed, say
from engine.files import output
from engine.runs.interrupt import Interrupt, answered

if TYPE_CHECKING:  # torch takes seconds to import; a wrong flag is answered before
    from engine.classifier import FewShotClassifier

LOOP = ("eval_steps", "norm_statistics")
MACHINE = ("device", "threads", "backend", "precision")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _adapt(argv, interrupt), stopped="nothing was written")


def add_options(parser: Parser) -> None:
    """What adapting takes beside the run and the pictures."""
    parser.group("evaluation").add_argument(
        "--ensemble",
        action="store_true",
        help="average the logits of all the best epochs of a run folder",
    )
    add_flags(parser, [*LOOP, *MACHINE])


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Those flags as arguments of FewShotClassifier; takes them out of ``given``."""
    names = {name: name for name in ("ensemble", *LOOP, *MACHINE)} | {"eval_steps": "steps"}
    return {names[flag]: given.pop(flag) for flag in names if flag in given}


def adapted(classifier: FewShotClassifier, support: Path) -> FewShotClassifier:
    """Fitted to the pictures of a folder or archive, which is said."""
    from engine.classifier import of_folder
    from engine.data.pictures import labelled

    found = labelled(support)
    say(*(f"{support}: {note}" for note in found.notes))
    with of_folder(support):
        classifier.fit(found.pictures, found.labels)
    classes = [f"{label} ({count})" for label, count in sorted(Counter(found.labels).items())]
    say(f"adapted to {len(classes)} classes of {support}: {listed(classes)}")
    return classifier


def _adapt(argv: list[str], interrupt: Interrupt) -> None:
    parser = Parser(
        prog="python -m engine.adapt",
        usage="%(prog)s RUN SUPPORT -o FILE.pt [flags]",
        description=__doc__.split("\n\n")[0],
        epilog="What is not given is as the run is evaluated.",
    )
    parser.add_argument(
        "run", type=a_path, metavar="RUN", help=f"run folder, checkpoint, {listed(weights.names())}"
    )
    parser.add_argument(
        "support", type=a_path, metavar="SUPPORT", help="folder or archive of <class>/<image>"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=partial(output, "-o", ending=".pt"),
        required=True,
        metavar="FILE.pt",
        help="what engine.predict takes",
    )
    add_options(parser)
    given = parse(parser, argv)
    from engine.classifier import FewShotClassifier

    interrupt.phase = "unwind"
    classifier = FewShotClassifier.load(given["run"], **options(given))
    classifier.by_flags = True
    adapted(classifier, given["support"]).save(given["output"])
    say(f"saved in {given['output']}")


if __name__ == "__main__":
    sys.exit(main())
