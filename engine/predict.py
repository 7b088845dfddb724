"""Labels pictures: by a network that engine.adapt saved, or that adapts to --support first.

    python -m engine.predict pets.pt IMAGES...
    python -m engine.predict RUN --support SUPPORT/ IMAGES...

IMAGES are files, folders with all below them, and zip or tar archives.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import weights
from engine.adapt import LOOP, adapted, add_options, options
from engine.combinations import refuse_without_effect
from engine.commandline import Parser, a_path, add_flags
from engine.errors import UserError, listed, say
from engine.files import output, write
from engine.runs.interrupt import Interrupt, answered

if TYPE_CHECKING:  # torch takes seconds to import; a wrong flag is answered before
    from engine.classifier import FewShotClassifier

FORMS = {
    "csv": "path,label,probability a row; with --top 2 label_2,probability_2 beside, and so on",
    "json": "the same, the classes, and what could not be read",
    "html": "one page that shows the pictures with their labels",
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return answered(lambda interrupt: _predict(argv, interrupt), stopped="nothing was written")


def _flags(argv: list[str]) -> dict[str, Any]:
    parser = Parser(
        prog="python -m engine.predict",
        usage="%(prog)s RUN|FILE.pt [flags] IMAGES...",
        description=__doc__.split("\n\n")[0],
        epilog="What is not given is as the run is evaluated, but for --protocol: inductive.",
    )
    parser.add_argument(
        "source",
        type=a_path,
        metavar="RUN|FILE.pt",
        help=f"run folder, checkpoint, adapted network, {listed(weights.names())}",
    )
    parser.add_argument(
        "images",
        type=a_path,
        nargs="+",
        metavar="IMAGES",
        help="files, folders, zip or tar archives",
    )
    parser.group("data").add_argument(
        "--support", type=a_path, metavar="PATH", help="adapt to these first: <class>/<image>"
    )
    parser.group("data").add_argument(
        "--skip-unreadable",
        action="store_true",
        help="label the others, instead of failing, when pictures cannot be read",
    )
    results = parser.group("results")
    results.add_argument(
        "--top", type=int, default=1, metavar="INT", help="likeliest labels shown (default: 1)"
    )
    for form, text in FORMS.items():
        kind = partial(_output, f"--{form}")
        results.add_argument(f"--{form}", type=kind, metavar="FILE", help=text)
    add_options(parser)
    add_flags(parser, ["protocol"])
    return vars(parser.parse_intermixed_args(argv))


def _output(flag: str, name: str) -> Path:
    from engine.data.images import is_image

    if is_image(name):
        raise UserError(f"{flag} is {name}, which is a picture's name: give another {flag}")
    return output(flag, name)


def _predict(argv: list[str], interrupt: Interrupt) -> None:
    given = _flags(argv)
    outputs = {form: given[form] for form in FORMS if form in given}
    if len({*outputs.values()}) < len(outputs):
        raise UserError("two of --csv, --json and --html are the same file: give each its own")
    if given["top"] < 1:
        raise UserError(f"--top is {given['top']}: give a number >= 1")
    from engine import answers
    from engine.classifier import FewShotClassifier
    from engine.data.pictures import asked

    interrupt.phase = "unwind"
    classifier = _classifier(given, FewShotClassifier)
    cfg, protocol = classifier.fitted.cfg, {n: v for n, v in given.items() if n == "protocol"}
    refuse_without_effect(cfg, protocol, vars(cfg) | {"protocol": "inductive"})
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
        write(path, getattr(answers, f"as_{form}")(found, faults))
    say(*answers.table(found.answers))
    if outputs:
        say(f"saved in {listed(map(str, outputs.values()))}")


def _classifier(given: dict[str, Any], kind: type[FewShotClassifier]) -> FewShotClassifier:
    support, useless = given.get("support"), [n for n in (*LOOP, "ensemble") if n in given]
    arguments = options(given)
    transductive = given.get("protocol") == "transductive"
    loaded = kind.load(given["source"], transductive=transductive, **arguments)
    loaded.by_flags = True
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
