"""What pictures were found to be: as lines, CSV, JSON, and a page that shows them."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from engine.data.images import Unreadable, as_shown, decoded
from engine.errors import printable
from kernels.pools import each

if TYPE_CHECKING:
    from engine.classifier import FewShotClassifier
    from engine.data.pictures import Picture
    from engine.data.preparation import Preparation

_SIDE = 160  # pixels of a picture on the page


class Read(NamedTuple):
    where: str
    pixels: np.ndarray  # uint8 [size, size, channels], as the network takes them
    small: bytes | None  # a JPEG for the page


class Answer(NamedTuple):
    where: str
    top: list[tuple[str, float]]  # label and probability, likeliest first
    small: bytes | None


class Answers(NamedTuple):
    classes: list[str]
    answers: list[Answer]


def read(
    pictures: list[Picture], preparation: Preparation, thumbnails: bool
) -> tuple[list[Read], list[str]]:
    """Every picture that can be read, in order, and of each other in words what is wrong."""

    def one(picture: Picture) -> Read | Unreadable:
        def make(image: Image.Image) -> Read:
            small = _small(image) if thumbnails else None
            return Read(picture.where, preparation.array(image), small)

        try:
            return decoded(picture.read(), picture.where, make)
        except Unreadable as error:
            return error

    results = each(one, pictures)
    good = [result for result in results if isinstance(result, Read)]
    return good, [f for bad in results if isinstance(bad, Unreadable) for f in bad.faults]


def _small(image: Image.Image) -> bytes:
    shown = as_shown(image, 3)
    shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=85)
    return file.getvalue()


def answered(classifier: FewShotClassifier, pictures: list[Read], top: int) -> Answers:
    """The ``top`` likeliest labels of each picture, or all if there are fewer."""
    labels = [str(label) for label in classifier.classes_.tolist()]
    found = classifier.probabilities(np.stack([picture.pixels for picture in pictures]))
    order = np.argsort(-found, axis=1, kind="stable")[:, :top]
    answers = [
        Answer(picture.where, [(labels[c], float(row[c])) for c in best], picture.small)
        for picture, row, best in zip(pictures, found, order, strict=True)
    ]
    return Answers(labels, answers)


def table(answers: list[Answer]) -> list[str]:
    """A line a picture, in columns."""
    rows = [[printable(a.where), *(_percent(*entry) for entry in a.top)] for a in answers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _percent(label: str, probability: float) -> str:
    return f"{printable(label)} {100 * probability:.1f} %"


def as_csv(found: Answers, faults: list[str]) -> str:
    """path,label,probability, then label_2,probability_2 and so on; rows as CSV has them."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    ranks = [f"_{k}" if k > 1 else "" for k in range(1, len(found.answers[0].top) + 1)]
    writer.writerow(["path", *(name + k for k in ranks for name in ("label", "probability"))])
    for answer in found.answers:
        writer.writerow([answer.where, *(value for entry in answer.top for value in entry)])
    return file.getvalue()


def as_json(found: Answers, faults: list[str]) -> str:
    """``classes``, ``pictures`` with the ``top`` of each, and ``unreadable``: which and why."""
    pictures = [
        {
            "path": answer.where,
            "label": answer.top[0][0],
            "probability": answer.top[0][1],
            "top": [{"label": label, "probability": p} for label, p in answer.top],
        }
        for answer in found.answers
    ]
    content = {"classes": found.classes, "pictures": pictures, "unreadable": faults}
    return json.dumps(content, indent=1) + "\n"


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 1em }
figure { margin: 0; padding: .6em; border: 1px solid #ddd; border-radius: 6px }
img { display: block; max-width: 100%; height: 160px; margin: auto; object-fit: contain }
figcaption { margin-top: .5em; overflow-wrap: anywhere }
figcaption b { font-size: 17px } ol { margin: .2em 0; padding-left: 1.4em } small { color: #666 }
"""


def as_html(found: Answers, faults: list[str]) -> str:
    """One page that needs no other file: the pictures, shrunk, with their labels."""
    figures = "\n".join(map(_figure, found.answers))
    classes = html.escape(printable(", ".join(found.classes)))
    left = "".join(f"<li>{html.escape(printable(fault))}</li>" for fault in faults)
    left = f"<h2>Not read</h2><ul>{left}</ul>" if faults else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{len(found.answers)} pictures</title>
<style>{_STYLE}</style></head><body>
<h1>{len(found.answers)} pictures</h1><p>Classes: {classes}</p>
<main>
{figures}
</main>
{left}
</body></html>
"""


def _figure(answer: Answer) -> str:
    source = base64.b64encode(answer.small).decode()
    (label, probability), *others = answer.top
    rest = "".join(f"<li>{html.escape(_percent(*entry))}</li>" for entry in others)
    rest = f'<ol start="2">{rest}</ol>' if rest else " "
    where = html.escape(printable(answer.where))
    return (
        f'<figure><img src="data:image/jpeg;base64,{source}" alt=""><figcaption>'
        f"<b>{html.escape(printable(label))}</b> {100 * probability:.1f} %{rest}"
        f"<small>{where}</small></figcaption></figure>"
    )
