"""Tasks of one's own: episodes drawn from arrays, a torch data set, or folders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import data as datasets
from engine.allowed import check, check_type
from engine.data.bank import ClassBank
from engine.episodes import Episode, EpisodeSampler, Values
from engine.errors import UserError, as_arguments, listed, say
from kernels.checks import integer

_MISSING = ("None", "nan", "NaN", "NaT", "<NA>")  # as tables show a label that is not there


class Tasks:
    """Episodes of `tasks` tasks each, of `ways` classes with `shots` support and `targets` target
    samples: episode i is a function of (seed, i) alone.

    data: (x, y), y [M] of any labels and x [M, ...] an array, a tensor or a dict of them; a torch
        `Dataset` of pairs, whose labels are its `targets` or are read once; or the path of a folder
        or archive of pictures, of which `part` is drawn, normalised as `engine.train` does.
    length: how many episodes an iteration over it gives; None: it does not end.

    Labels of an episode are 0 to ways - 1. Raises UserError when there are too few classes, or a
    class has too few samples.
    """

    def __init__(
        self,
        data: Any,
        *,
        ways: int,
        shots: int,
        targets: int,
        tasks: int = 4,
        seed: int = 0,
        length: int | None = None,
        part: str = "train",
        image_size: int = 84,
        channels: int = 3,
        split_ratio: str | None = None,
    ):
        given = {"ways": ways, "shots": shots, "targets": targets, "seed": seed, "tasks": tasks}
        task = {name: _whole(value) for name, value in given.items()}
        for name, value in task.items():
            check_type(name, value, "int")
            least = {"ways": ">= 2", "seed": ">= 0"}.get(name, ">= 1")
            check(name, value, least, name)
        tasks, length = task.pop("tasks"), _whole(length)
        if length is not None and not (type(length) is int and length >= 1):
            raise UserError(f"length is {length!r}: give a number of episodes >= 1, or None")
        self.tasks, self.length = tasks, length
        self._samples, self._ways = (shots, targets), ways
        self._dataset = None
        pictures = {
            "part": (part, "train"),
            "image_size": (_whole(image_size), 84),
            "channels": (_whole(channels), 3),
            "split_ratio": (split_ratio, None),
        }
        if isinstance(data, str | Path):
            for name, kind in (("part", str), ("image_size", int), ("channels", int)):
                value, _ = pictures[name]
                if type(value) is not kind:
                    what = "a whole number" if kind is int else "the name of a part"
                    raise UserError(f"{name} is {value!r}: give {what}")
            with as_arguments():
                found = datasets.load(
                    "folder",
                    data,
                    image_size=_whole(image_size),
                    channels=_whole(channels),
                    split_ratio=split_ratio,
                )
            self._sampler, self._take = EpisodeSampler(found, part, **task), None
            self.notes = found.notes
            say(*(f"{found.name}: {note}" for note in self.notes))
            return
        if given := [name for name, (value, usual) in pictures.items() if value != usual]:
            raise UserError(
                f"{listed(given)} {'are' if given[1:] else 'is'} of a folder of pictures, and data "
                f"is a {type(data).__name__}: leave out, and give each part's samples by themselves"
            )
        self.notes = ()
        labels, self._take = _pairs(data)
        self._dataset = None if isinstance(data, tuple | list) else data
        names, self._order, starts = _by_class(labels)
        # A bank of nothing: its rows are drawn, and are places in `order`.
        nothing = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(labels), 1, 1, 1)
        bank = ClassBank(nothing, torch.from_numpy(starts), names)
        made = datasets.Dataset("data", {part: bank}, 1.0, (0.0,), (1.0,), "")
        self._sampler = EpisodeSampler(made, part, **task)

    @property
    def plain(self) -> bool:
        """Whether no code of others makes a sample, as a data set's transform may."""
        return self._dataset is None

    def __iter__(self) -> Iterator[Episode]:
        i = 0
        while self.length is None or i < self.length:
            yield self.episode(i)
            i += 1

    def episode(self, i: int) -> Episode:
        if not (type(i := _whole(i)) is int and 0 <= i < 2**63):
            raise UserError(f"episode {i!r}: they are counted from 0 in whole numbers")
        if self._take is None:
            return self._sampler.episode(i, self.tasks)
        rows = self._order[self._sampler.draw(i, self.tasks).rows]  # [T, ways, shots + targets]
        shots, targets = self._samples
        support, target = rows[..., :shots], rows[..., shots:]
        return Episode(
            self._taken(support),
            self._sampler.labels(self.tasks, shots),
            self._taken(target),
            self._sampler.labels(self.tasks, targets),
        )

    def _taken(self, rows: np.ndarray) -> Values:  # [T, ways, n] -> [T, ways · n, ...]
        flat = self._take(rows.reshape(-1))
        shape = self.tasks, rows[0].size
        if isinstance(flat, dict):
            return {name: part.view(*shape, *part.shape[1:]) for name, part in flat.items()}
        return flat.view(*shape, *flat.shape[1:])


def _whole(value: Any) -> Any:
    """An int for a whole number of any library."""
    found = integer(value)
    return value if found is None else found


def _pairs(data: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Values]]:
    """Labels [M], and what gives the inputs at some places [n] as tensors [n, ...]."""
    if isinstance(data, tuple | list) and len(data) == 2:
        x, y = data
        x = {n: torch.as_tensor(v) for n, v in x.items()} if isinstance(x, dict) else x
        try:
            x = x if isinstance(x, dict) else torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"x is no array of numbers ({reason}): give one, [M, ...]") from None
        labels = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
        lengths = {len(v) for v in (x.values() if isinstance(x, dict) else [x])} | {len(labels)}
        if labels.ndim != 1 or len(lengths) > 1:
            raise UserError(
                f"x and y have {' and '.join(map(str, sorted(lengths)))} samples, y of shape "
                f"{list(labels.shape)}: give a label for each sample, [M]"
            )

        def take(places: np.ndarray) -> Values:
            at = torch.from_numpy(places)
            return {n: v[at] for n, v in x.items()} if isinstance(x, dict) else x[at]

        return labels, take
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _labels(data), lambda places: _batch([data[int(i)][0] for i in places])
    raise UserError(
        f"data is a {type(data).__name__}: give (x, y), a torch Dataset of pairs, or a path"
    )


def _labels(dataset: Sequence) -> np.ndarray:
    given = getattr(dataset, "targets", None)
    if given is None:
        given = [dataset[i][1] for i in range(len(dataset))]
    elif (change := getattr(dataset, "target_transform", None)) is not None:  # as torchvision's
        given = [change(y) for y in given]
    labels = np.asarray([y.item() if isinstance(y, Tensor) else y for y in given])
    if labels.shape != (len(dataset),):
        raise UserError(
            f"the data set has {len(dataset)} samples and labels of shape {list(labels.shape)}: "
            "give pairs of an input and one label"
        )
    return labels


def _batch(samples: list) -> Values:
    if isinstance(samples[0], dict):
        return {name: _batch([sample[name] for sample in samples]) for name in samples[0]}
    tensors = [torch.as_tensor(np.asarray(s) if not isinstance(s, Tensor) else s) for s in samples]
    if len(shapes := {tuple(t.shape) for t in tensors}) > 1:
        raise UserError(
            f"samples have shapes {listed(map(str, sorted(shapes)), 3)}: give them one, by a "
            "transform"
        )
    return torch.stack(tensors)


def refuse_missing(labels: np.ndarray) -> None:
    """Raises UserError where there is none, as tables have None or NaN."""
    for place, label in enumerate(labels.tolist() if labels.dtype.kind in "fcmMO" else ()):
        if not isinstance(label, str) and str(label) in _MISSING:
            raise UserError(f"label {place} is {label}: give each sample one, or leave it out")


def _by_class(labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the classes, the samples' places class by class, and where each class begins."""
    refuse_missing(labels)
    try:
        names, codes = np.unique(labels, return_inverse=True)
    except TypeError:
        raise UserError("y has labels that cannot be sorted: give labels of one kind") from None
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.bincount(codes, minlength=len(names)).cumsum()])
    return tuple(map(str, names)), order, starts.astype(np.int64)
