"""Tasks of one's own: episodes drawn from arrays, a torch data set, or folders of pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import data as datasets
from engine.allowed import check, check_type, shown
from engine.data.bank import ClassBank
from engine.data.layout import SPLITS
from engine.episodes import Episode, EpisodeSampler, Values
from engine.errors import UserError, as_arguments, listed, say
from kernels.checks import integer

_LAST = 2**63 - 1  # of the episodes
_MISSING = ("None", "nan", "NaN", "NaT", "<NA>")  # as tables show a label that is not there


class Tasks:
    """Episodes of `tasks` tasks each, of `ways` classes with `shots` support and `targets` target
    samples: episode i is a function of (seed, i) alone.

    data: (x, y), y [M] of any labels and x [M, ...] an array, a tensor or a dict of them; a torch
        `Dataset` of pairs, whose labels are its `targets` or are read once; or the path of a folder
        or archive of pictures, of which `part` is drawn, normalised as `engine.train` does.
    length: how many episodes an iteration over it gives; None: it does not end.

    `part`, `image_size`, `channels` and `split_ratio` are of pictures at a path alone. Labels of an
    episode are 0 to ways - 1. Raises UserError when there are too few classes, or a class has too
    few samples.
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
        pictures = {"image_size": image_size, "channels": channels, "split_ratio": split_ratio}
        if isinstance(data, str | Path):
            check("part", part, SPLITS, "part")
            pictures = {name: _whole(value) for name, value in pictures.items()}
            for name, value in pictures.items():
                check_type(name, value, "str | None" if name == "split_ratio" else "int")
            with as_arguments():
                found = datasets.load("folder", data, **pictures)
            self._sampler, self._take = EpisodeSampler(found, part, **task), None
            self.notes = found.notes
            say(*(f"{found.name}: {note}" for note in self.notes))
            return
        for name, value in ({"part": part} | pictures).items():
            if value != inspect.signature(Tasks).parameters[name].default:
                raise UserError(
                    f"{name} is {shown(value)}, which is of pictures at a path alone: give one, or "
                    "leave it out"
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
        if type(i := _whole(i)) is not int or not 0 <= i <= _LAST:
            raise UserError(f"episode {shown(i)}: they are counted from 0 to {_LAST}")
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
        if isinstance(x, dict):
            x = {name: _tensor(f"x[{name!r}]", value) for name, value in x.items()}
        else:
            x = _tensor("x", x)
        labels = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
        lengths = {len(v) for v in (x.values() if isinstance(x, dict) else [x])}
        lengths.add(len(np.atleast_1d(labels)))
        if labels.ndim != 1 or len(lengths) > 1:
            raise UserError(
                f"x and y have {' and '.join(map(str, sorted(lengths)))} samples, y of shape "
                f"{list(labels.shape)}: give a label for each sample, [M]"
            )

        def take(places: np.ndarray) -> Values:
            at = torch.from_numpy(places)
            return {n: v[at] for n, v in x.items()} if isinstance(x, dict) else x[at]

        return labels, take
    if isinstance(data, tuple):
        raise UserError(f"data is a tuple of {len(data)}: give (x, y), a label for each sample")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _labels(data), lambda places: _batch([data[int(i)][0] for i in places])
    raise UserError(
        f"data is a {type(data).__name__}: give (x, y), a torch Dataset of pairs, or a path"
    )


def _tensor(name: str, value: Any) -> Tensor:  # [M, ...]
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is no array of numbers ({error}): give one, [M, ...]") from error
    if not found.dim():
        raise UserError(f"{name} is {shown(value)}: give an array of samples, [M, ...]")
    return found


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
