"""Images and the rows of each class, by whatever keys a pickle or npz archive has for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from engine.data.arrays.machine import MOST_LETTERS, text
from engine.data.arrays.pixels import Images, Note, images_of, is_encoded, set_scale
from engine.errors import UserError, listed

_IMAGES = ("image_data", "data", "images", "image", "x", "arr_0")
_LABELS = ("labels", "label", "label_specific", "fine_labels", "targets", "y", "arr_1")
_NAMES = ("catname2label", "label_specific_str")
_AGAIN = "get the file again"

Class = tuple[Images, np.ndarray]  # and its rows among them
Table = dict[str | int, Class]  # int where a class has a number and no name


def read_table(content: Any, labels: Any, where: str, note: Note) -> Table:
    """``labels`` is the content of a file of labels, None if there is none.

    Raises UserError with all that is wrong when images or classes are not to be found, not of a
    known form, or do not fit together.
    """
    if labels is not None:
        labels = labels if isinstance(labels, dict) else {"labels": labels}
        images = content if isinstance(content, dict) else {"images": content}
        content = {**labels, **images}
    if not isinstance(content, dict):
        raise UserError(f"{where} holds a {type(content).__name__}, not a dict of images")
    pixels, labels = _key(content, _IMAGES), _key(content, _LABELS)
    if pixels is not None and (by := "class_dict") in content:
        images = images_of(content[pixels], where, note)
        rows = content[by]
    elif pixels is not None and (by := labels) is not None:
        images = images_of(content[pixels], where, note)
        if "label_specific" in content and images.reverse_colours():
            note("images are blue, green and red, as tiered-ImageNet's authors wrote them: turned")
        rows = _by_label(content[by], content, len(images), where, note)
    elif pixels is None and content and all(map(_is_images, content.values())):
        return _by_class(content, where, note)
    else:
        raise UserError(
            f"{where} has keys {listed(sorted(map(str, content)))}; known are image_data and "
            "class_dict, data and labels (with catname2label for the classes' names), or an array "
            "of images for each class"
        )
    set_scale([images], note)
    note(f"read by {pixels} and {by}")
    return {name: (images, r) for name, r in _checked(rows, len(images), where, note).items()}


def _key(content: dict, names: tuple[str, ...]) -> Any:
    """The first of the names that is there, as it is written there."""
    keys = {str(key).lower(): key for key in content}
    return next((keys[name] for name in names if name in keys), None)


def _by_class(content: dict, where: str, note: Note) -> Table:
    table, problems = {}, []
    for name, value in content.items():
        try:
            images = images_of(value, f"{where}, class {name}", note)
            table[name] = images, np.arange(len(images))
        except UserError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - 10} more classes" if len(problems) > 10 else ""
        raise UserError("; ".join(problems[:10]) + more)
    set_scale((images for images, _ in table.values()), note)
    note("read by an array of images for each class")
    return table


def _is_images(value: Any) -> bool:
    if isinstance(value, list) and value:
        return is_encoded(value[0]) or isinstance(value[0], np.ndarray) and value[0].ndim > 1
    return isinstance(value, np.ndarray) and value.ndim > 2


def integers(values: Any) -> np.ndarray | None:
    """int64 [n], n > 0; None if these are none, or of other dimensions."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        array = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        fits = array.ndim == 1 and len(array) and array.max() < 1 << 62
        return array.astype(np.int64) if fits else None
    if not isinstance(values, list | range) or not values or {*map(type, values)} != {int}:
        return None
    return np.array(values, np.int64) if max(map(abs, values)) < 1 << 62 else None


def _texts(values: Any) -> list[str] | None:
    """None if these are no strings, or no names."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "SU" and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, list) or not values or {*map(type, values)} - {str, bytes}:
        return None
    found = [text(v) if isinstance(v, bytes) else v for v in values]
    return found if max(map(len, found)) <= MOST_LETTERS else None


def _by_label(labels: Any, content: dict, count: int, where: str, note: Note) -> dict:
    """Rows of each class."""
    numbers = integers(labels)
    texts = _texts(labels) if numbers is None else None
    if numbers is None and texts is None:
        raise UserError(f"{where}: the labels are no list of whole numbers or names; {_AGAIN}")
    if len(labels) != count:
        raise UserError(f"{where}: {count:,} images have {len(labels):,} labels; {_AGAIN}")
    if texts is not None:
        classes, numbers = np.unique(np.array(texts, dtype=object), return_inverse=True)
        names = dict(enumerate(classes.tolist()))
    else:
        names = _names(content, where, note)
    order = np.argsort(numbers, kind="stable")
    present, starts = np.unique(numbers[order], return_index=True)
    rows = dict(zip(present.tolist(), np.split(order, starts[1:]), strict=True))
    if names is None:
        return rows
    if lacking := [str(number) for number in rows if number not in names]:
        raise UserError(f"{where}: {len(lacking)} labels have no name: {listed(lacking)}; {_AGAIN}")
    if empty := [str(name) for number, name in names.items() if number not in rows]:
        note(f"{where}: left out, {len(empty)} classes without images: {listed(sorted(empty))}")
    return {names[number]: r for number, r in rows.items()}


def _names(content: dict, where: str, note: Note) -> dict[int, str] | None:
    """Number → name of a class; None if there are no names."""
    by = next((key for key in _NAMES if key in content), None)
    if by is None:
        return None
    given = content[by]
    if by == "label_specific_str":  # the names in the order of their numbers
        names = _texts(given)
        pairs = None if names is None else list(enumerate(names))
    elif not isinstance(given, dict):
        pairs = None
    else:
        pairs = [(n, str(name)) for name, n in given.items()]
    if pairs is None:
        raise UserError(f"{where}: {by} is no {'dict' if by == _NAMES[0] else 'list'}; {_AGAIN}")
    if wrong := [name for number, name in pairs if type(number) is not int]:
        raise UserError(
            f"{where}: {by} must give each class a whole number, but does not to {listed(wrong)}; "
            f"{_AGAIN}"
        )
    numbers = Counter(number for number, _ in pairs)
    if shared := [name for number, name in pairs if numbers[number] > 1]:
        raise UserError(f"{where}: {by} gives {listed(shared)} one number; {_AGAIN}")
    times = Counter(name for _, name in pairs)
    if twice := [name for name in times if times[name] > 1]:
        note(f"{where}: several classes have one name, told apart by number: {listed(twice)}")
    return {n: name if times[name] == 1 else f"{name} ({n})" for n, name in pairs}


def _checked(rows: dict, images: int, where: str, note: Note) -> dict:
    """Class → row numbers, int64, of which each is in range and in one class."""
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{where}: class_dict is no dict of classes; {_AGAIN}")
    found = {name: integers(given) for name, given in rows.items()}
    problems = []
    if bad := [str(name) for name, numbers in found.items() if numbers is None]:
        problems.append(f"no list of row numbers for {len(bad)} classes: {listed(bad)}")
    found = {name: numbers for name, numbers in found.items() if numbers is not None}
    outside = [
        f"{name} ({numbers.min()} to {numbers.max()})"
        for name, numbers in found.items()
        if numbers.min() < 0 or numbers.max() >= images
    ]
    if outside:
        problems.append(f"rows outside the {images:,} images in {listed(outside)}")
    else:
        owners: dict[int, list[str]] = {}
        used = np.concatenate([np.empty(0, np.int64), *found.values()])
        times = np.bincount(used, minlength=images)
        for name, numbers in found.items():
            for row in numbers[times[numbers] > 1].tolist():
                owners.setdefault(row, []).append(str(name))
        if owners:
            twice = (f"{row} ({', '.join(names[:5])})" for row, names in sorted(owners.items()))
            problems.append(
                f"{len(owners):,} images belong to two classes or twice to one: {listed(twice)}"
            )
        if left := int((times == 0).sum()):
            note(f"{where}: left out, {left:,} images that belong to no class")
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}; {_AGAIN}")
    return found
