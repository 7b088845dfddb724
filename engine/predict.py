"""Labels pictures: by a network that engine.adapt saved, or that adapts to --support first.

    python -m engine.predict pets.pt IMAGES...
    python -m engine.predict RUN --support SUPPORT/ IMAGES...

IMAGES are files, folders with all below them, and zip or tar archives.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.adapt import LOOP, adapted, add_options, checked_output, options
from engine.config import Parser, add_flags
from engine.errors import UserError, listed, say
from engine.runs.interrupt import Interrupt, answered

if TYPE_CHECKING:  # torch takes seconds to import; a wrong flag is answered before
    from engine.classifier import FewShotClassifier

FORMS = {"csv": ".csv", "json": ".json", "html": ".html"}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _predict(argv, interrupt), stopped="nothing was written")


def _flags(argv: list[str]) -> dict[str, Any]:
    parser = Parser(prog="python -m engine.predict", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, help="run folder, checkpoint, or file of engine.adapt")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGES", help="files, folders, archives"
    )
    parser.add_argument(
        "--support", type=Path, metavar="PATH", help="adapt to these pictures: <class>/<image>"
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="INT", help="likeliest labels that are shown"
    )
    texts = {
        "csv": "path,label,probability a row; with --top 2 label_2,probability_2 beside, and so on",
        "json": "the same, the classes and what could not be read",
        "html": "one page that shows the pictures with their labels",
    }
    for form, text in texts.items():
        parser.add_argument(f"--{form}", type=Path, metavar=f"FILE{FORMS[form]}", help=text)
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="label the others, instead of failing, when pictures cannot be read",
    )
    add_options(parser)
    add_flags(parser, ["protocol"])
    return vars(parser.parse_intermixed_args(argv))


def _predict(argv: list[str], interrupt: Interrupt) -> None:
    given = _flags(argv)
    outputs = {form: given[form] for form in FORMS if form in given}
    for form, path in outputs.items():
        checked_output(f"--{form}", path, FORMS[form])
    if given["top"] < 1:
        raise UserError(f"--top is {given['top']}: give a number >= 1")
    from engine import answers
    from engine.classifier import FewShotClassifier
    from engine.data.pictures import asked

    interrupt.phase = "unwind"
    classifier = _classifier(given, FewShotClassifier)
    pictures, notes = asked(given["images"])
    say(*notes)
    read, faults = answers.read(pictures, classifier.fitted.preparation, "html" in outputs)
    count = f"{len(faults)} picture{'s' * (len(faults) > 1)}"
    if faults and "skip_unreadable" not in given:
        cure = "correct that, or leave out what cannot be read by --skip-unreadable"
        raise UserError(f"{count} cannot be read ({listed(faults)}); {cure}")
    if faults:
        say(f"left out: {count} that cannot be read ({listed(faults)})")
    if not read:
        raise UserError("there is no picture to label: name others")
    found = answers.answered(classifier, read, given["top"])
    for form, path in outputs.items():
        answers.write(path, getattr(answers, f"as_{form}")(found, faults))
    say(*answers.table(found.answers))
    if outputs:
        say(f"saved in {listed(map(str, outputs.values()))}")


def _classifier(given: dict[str, Any], kind: type[FewShotClassifier]) -> FewShotClassifier:
    support, useless = given.get("support"), [n for n in (*LOOP, "ensemble") if n in given]
    arguments = options(given)
    transductive = given.get("protocol") == "transductive"
    loaded = kind.load(given["source"], transductive=transductive, **arguments)
    if support is not None:
        return adapted(loaded, support)
    if not hasattr(loaded, "classes_"):
        raise UserError(
            f"{given['source']} knows no classes of yours yet: name pictures of them by --support, "
            "or give what engine.adapt saved"
        )
    if useless:
        flags = ", ".join("--" + name.replace("_", "-") for name in useless)
        raise UserError(
            f"{flags} is of the adaptation, and {given['source']} is adapted: leave it out, or "
            "give --support"
        )
    return loaded


if __name__ == "__main__":
    sys.exit(main())
