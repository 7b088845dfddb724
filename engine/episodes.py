"""Few-shot tasks drawn from a class bank.

Task i of iteration t is a function of (seed, split, t, i) alone. Draws come from a counter-based
hash, not from a stream, so that resuming, prefetching and any division of the work give the same
tasks, and all tasks of a batch are drawn at once. The work is numpy's: torch would start a second
team of threads for the prefetching thread, which then fights the first for the same cores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.config import ROTATIONS, Config, check
from engine.data import Dataset
from engine.errors import UserError, flag, listed

_LAST = np.uint64(2**64 - 1)
_MANY = 1 << 12  # images of a class; of more, a draw looks at those alone that it takes


# Of the tasks of an episode: a tensor [T, N, ...]; several by name; or, where tasks differ in their
# numbers of samples, a list of T tensors [N, ...] or dicts of them.
Values = Tensor | dict[str, Tensor] | list


@dataclass(frozen=True)
class Episode:
    """Some tasks: what each adapts to, and what it is then tested on.

    Of images, labels are 0 to ways - 1, class-major, and images are NHWC in memory: each x[t]
    channels-last.
    """

    support_x: Values  # images: float32 [T, ways * shots, C, H, W]
    support_y: Values  # classes: int64 [T, ways * shots]
    target_x: Values  # images: float32 [T, ways * targets, C, H, W]
    target_y: Values  # classes: int64 [T, ways * targets]

    @property
    def tasks(self) -> int:
        return count(self.support_x)

    def slice(self, start: int, stop: int) -> Episode:
        """Tasks start to stop - 1, as views."""
        return self.map(lambda values: part(values, start, stop))

    def to(self, device: torch.device | str) -> Episode:
        return self.map(lambda values: moved(values, device))

    def map(self, function: Callable[[Values], Values]) -> Episode:
        """Of the four fields."""
        return Episode(*(function(getattr(self, f.name)) for f in fields(self)))


def count(values: Values) -> int:
    """How many tasks."""
    return len(next(iter(values.values())) if isinstance(values, dict) else values)


def part(values: Values, start: int, stop: int) -> Values:
    """Tasks start to stop - 1."""
    if isinstance(values, dict):
        return {name: tensor[start:stop] for name, tensor in values.items()}
    return values[start:stop]


def moved(values: Values, device: torch.device | str) -> Values:
    """To a device."""
    return mapped(lambda tensor: tensor.to(device), values)


def mapped(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Of the tensors at the same place in each of nested tuples, lists and dicts; what is no
    tensor is that of the first.
    """
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, dict):
        return {n: mapped(function, v, *(o[n] for o in others)) for n, v in first.items()}
    if isinstance(first, tuple | list):
        parts = [mapped(function, *each) for each in zip(first, *others, strict=True)]
        named = hasattr(first, "_fields")
        return type(first)(*parts) if named else type(first)(parts)
    return first


def each(values: Values) -> list:
    """Of every task its own: tensors [N, ...], or dicts of them."""
    if isinstance(values, dict):
        return [{n: tensor[t] for n, tensor in values.items()} for t in range(count(values))]
    return list(values)


class Source(Protocol):
    """Of tasks: each is a function of the iteration and of its place in it."""

    def episode(self, iteration: int, tasks: int, first_task: int = 0) -> Episode: ...


class Draw(NamedTuple):
    """Which images the tasks are made of."""

    rows: np.ndarray  # int64 [T, ways, shots + targets] of the bank
    turns: np.ndarray  # int64 [T, ways] quarter turns of each class


class EpisodeSampler:
    """Draws tasks of ``ways`` classes with disjoint support and target images.

    rotations: ``classes`` makes every class turned by k * 90 degrees a class of its own, on every
    split; ``augment`` turns each class of a training task by a random k * 90 degrees.
    skip_small: classes with too few images are left out; ``notes`` then says which.
    Raises UserError when the split has too few classes, or a class too few images.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        ways: int,
        shots: int,
        targets: int,
        seed: int,
        rotations: str = "none",
        skip_small: bool = False,
        # that a message is to name: a command line's flags, or a program's arguments
        flags: tuple[str, str, str] = ("ways", "shots", "targets"),
    ):
        check("rotations", rotations, ROTATIONS)
        given = {"ways": ways, "shots": shots, "targets": targets}
        for words, (name, value) in zip(flags, given.items(), strict=True):
            check(name, value, ">= 1", words)
        if split not in dataset.banks:
            raise UserError(f"{dataset.name} has no split {split!r}, only {[*dataset.banks]}")
        bank = dataset.banks[split]
        self.ways, self.shots, self.targets = ways, shots, targets
        self._turned_classes = rotations == "classes"
        self._augment = rotations == "augment" and split == "train"
        self._starts, self._counts = bank.starts[:-1].numpy(), bank.counts.numpy()
        self.notes = self._skip_small(bank.names, split) if skip_small else []
        self.bank = bank.images  # uint8 [M, H, W, C]
        self._images, self._shape = bank.images.numpy(), bank.images.shape[1:]
        digest = hashlib.sha256(f"{seed}/{split}".encode()).digest()
        self._stream = np.frombuffer(digest, "<u8", 1).astype(np.uint64)
        _require_enough(self, dataset.name, split, bank.names, flags)
        # as rows of an image, so that the innermost loop of numpy is long
        std = np.array(dataset.std)
        self.scale = self._row(dataset.scale / std)  # float32 [W * C]
        self.shift = self._row(-np.array(dataset.mean) / std)

    def _skip_small(self, names: tuple[str, ...], split: str) -> list[str]:
        needed = self.shots + self.targets
        kept = self._counts >= needed
        small = [names[c] for c in (~kept).nonzero()[0]]
        self._starts, self._counts = self._starts[kept], self._counts[kept]
        return [
            f"left out: {len(small)} of {len(names)} classes of {split}, with fewer than {needed} "
            f"images ({listed(small, 3)})"
        ][: len(small)]

    @classmethod
    def of(
        cls, cfg: Config, dataset: Dataset, part: str, seed: int, evaluation: bool = True
    ) -> EpisodeSampler:
        """The tasks of a configuration, those of its evaluation or of its training."""
        own = {name: name for name in ("ways", "shots", "targets")}
        apart = ["eval_targets"] if evaluation else ["train_ways", "train_shots"]
        own |= {name.split("_")[1]: name for name in apart if getattr(cfg, name)}
        return cls(
            dataset,
            part,
            **{name: getattr(cfg, field) for name, field in own.items()},
            seed=seed,
            rotations="none" if evaluation and cfg.rotations == "augment" else cfg.rotations,
            skip_small=cfg.skip_small_classes,
            flags=tuple(flag(name) for name in own.values()),
        )

    @property
    def classes(self) -> int:
        """Classes to draw from, turned ones included."""
        return len(self._counts) * (4 if self._turned_classes else 1)

    def episode(self, iteration: int, tasks: int, first_task: int = 0) -> Episode:
        """Tasks ``first_task`` to ``first_task + tasks - 1`` of an iteration."""
        rows, turns = self.draw(iteration, tasks, first_task)
        support, target = rows[..., : self.shots], rows[..., self.shots :]
        return Episode(
            self._gather(support, turns),
            self.labels(tasks, self.shots),
            self._gather(target, turns),
            self.labels(tasks, self.targets),
        )

    def draw(self, iteration: int, tasks: int, first_task: int = 0) -> Draw:
        """What an episode is made of."""
        stream = _mix(self._stream ^ _mix(np.array([iteration], np.uint64)))
        keys = _mix(stream + np.arange(first_task, first_task + tasks, dtype=np.uint64))  # [T]
        drawn = _choose(_hashes(keys, self.classes), self.ways)
        classes = drawn % len(self._counts)
        turns = drawn // len(self._counts)
        if self._augment:
            turns = (_hashes(_mix(keys ^ np.uint64(1)), self.ways) >> np.uint64(62)).astype(int)
        counts = self._counts[classes][..., None]  # [T, ways, 1]
        each = _hashes(_mix(keys ^ np.uint64(2)), self.ways)  # [T, ways]
        places = self._places(each, counts, self.shots + self.targets)
        return Draw(self._starts[classes][..., None] + places, turns)

    def _places(self, keys: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
        """int64 [T, ways, k]: different images of classes of counts [T, ways, 1]."""
        large = counts[..., 0] > _MANY
        chosen = np.empty((*large.shape, k), np.int64)
        if not large.all():
            places = np.arange(min(counts.max(), _MANY))
            chosen = _choose(np.where(places < counts, _hashes(keys, len(places)), _LAST), k)
        chosen[large] = _choose_few(keys[large], counts[large], k)
        return chosen

    def _gather(self, rows: np.ndarray, turns: np.ndarray) -> Tensor:
        """float32 [T, ways * samples, C, H, W] of the images in ``rows`` [T, ways, samples]."""
        tasks, ways, samples = rows.shape
        images = self._images[rows.reshape(-1)]
        for quarter in range(1, 4):
            (turned,) = (turns == quarter).repeat(samples).nonzero()
            if len(turned):
                images[turned] = np.rot90(images[turned], quarter, (1, 2))
        images = images.reshape(len(images), self._shape[0], -1)
        x = np.multiply(images, self.scale, dtype=np.float32)
        x += self.shift
        x = torch.from_numpy(x).view(tasks, ways * samples, *self._shape)
        return x.permute(0, 1, 4, 2, 3)

    def _row(self, values: np.ndarray) -> np.ndarray:
        """float32 [W * C] of values [C]."""
        return np.tile(values, self._shape[1]).astype(np.float32)

    def labels(self, tasks: int, samples: int) -> Tensor:
        """int64 [T, ways * samples]"""
        classes = torch.arange(self.ways, dtype=torch.int64, device="cpu")
        return classes.repeat_interleave(samples).repeat(tasks, 1)


def _require_enough(
    sampler: EpisodeSampler,
    name: str,
    split: str,
    names: tuple[str, ...],
    flags: tuple[str, str, str],
) -> None:
    needed, counts = sampler.shots + sampler.targets, sampler._counts
    if sampler.classes < sampler.ways:
        after, cure = "", "give fewer"
        if left_out := len(names) - len(counts):
            after = f" after leaving out {left_out} classes with fewer than {needed} images"
            fewer = "give fewer, or " if sampler.classes > 1 else ""
            cure = f"{fewer}lower {flags[1]} or {flags[2]}"
        raise UserError(
            f"{flags[0]} is {sampler.ways}, but the {split} split of {name} has {sampler.classes} "
            f"classes{after}; {cure}"
        )
    if small := [f"{names[c]} ({counts[c]})" for c in (counts < needed).nonzero()[0]]:
        left = sampler.classes * (len(counts) - len(small)) // len(counts)
        skip = flags[0].startswith("--") and left >= sampler.ways
        raise UserError(
            f"{flags[1]} {sampler.shots} and {flags[2]} {sampler.targets} need {needed} images a "
            f"class, but {len(small)} of {len(names)} in the {split} split of {name} have fewer: "
            f"{listed(small)}; lower one of them"
            + ", or leave the classes out by --skip-small-classes"
            * skip
        )


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters its input (finaliser of splitmix64, Steele 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hashes(keys: np.ndarray, n: int) -> np.ndarray:
    """uint64 [..., n]: the first n draws of the stream of each key [...]."""
    return _mix(keys[..., None] + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _choose(order: np.ndarray, k: int) -> np.ndarray:
    """int64 [..., k]: indices of the k least of [..., n], in order: k of n without replacement
    when ``order`` is random."""
    least = np.argpartition(order, k - 1, axis=-1)[..., :k]
    ranks = np.take_along_axis(order, least, -1).argsort(-1)
    return np.take_along_axis(least, ranks, -1)


def _choose_few(keys: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    """int64 [n, k]: k of counts [n, 1] without replacement in random order, by the streams of keys
    [n], in a time that does not grow with counts (Floyd's sampling, Bentley & Floyd 1987)."""
    drawn, chosen = _hashes(keys, k), np.empty((len(keys), k), np.int64)
    for i in range(k):
        last = counts[:, 0] - k + i
        one = (drawn[:, i] % (last + 1).astype(np.uint64)).astype(np.int64)
        taken = (chosen[:, :i] == one[:, None]).any(-1)
        chosen[:, i] = np.where(taken, last, one)
    return np.take_along_axis(chosen, _hashes(_mix(keys), k).argsort(-1), -1)
