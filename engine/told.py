"""What does not fit together, a network, its loss and its tasks, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.episodes import Episode, Values, count, each
from engine.errors import UserError, is_out_of_memory

# What torch, or code that was written for other values, raises of them. Anything else passes.
_MISFITS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def fitting(what: str, values: dict[str, Any], cure: str) -> Iterator[None]:
    """For a call of somebody's own code with these values: what it raises becomes the cause of a
    UserError that shows them.
    """
    try:
        yield
    except _MISFITS as error:
        if is_out_of_memory(error):
            raise
        given = " and ".join(f"{name} {shown(value)}" for name, value in values.items())
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{what} failed on {given}: {lines[0].rstrip('.')}; {cure}") from error


def shown(value: Any) -> str:
    """A tensor by dtype and shape, anything else by its type."""
    if isinstance(value, Tensor):
        return f"{kind(value)} {list(value.shape)}"
    if isinstance(value, tuple | list) and value:
        return f"({', '.join(map(shown, value))})"
    return type(value).__name__


def kind(tensor: Tensor) -> str:
    """Its dtype, and its device if that is not the CPU."""
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{tensor.dtype}".removeprefix("torch.") + place


def checked(episode: Any) -> Episode:
    """The same. Raises UserError when it is no episode, or its fields do not belong together."""
    if not isinstance(episode, Episode):
        raise UserError(
            f"an episode is a {type(episode).__name__}: give an engine.Episode of support_x, "
            "support_y, target_x and target_y"
        )
    fields = vars(episode)
    for name, values in fields.items():
        of_tasks = values if isinstance(values, list) else [values]
        least = 1 if isinstance(values, list) else 2  # a task's own tensors have no axis for it
        if not of_tasks or not all(is_samples(of_task, least) for of_task in of_tasks):
            found = f"of shape {list(values.shape)}" if isinstance(values, Tensor) else None
            raise UserError(
                f"{name} is {found or f'a {type(values).__name__}'}: give a tensor [tasks, "
                "samples, ...], a dict of them, or a list of a tensor or dict a task"
            )
    found = {name: count(values) for name, values in fields.items()}
    if len(set(found.values())) > 1 or not episode.tasks:
        told = ", ".join(f"{name} of {tasks}" for name, tasks in found.items())
        raise UserError(f"an episode has {told} tasks: give each field the same number, 1 or more")
    for part in ("support", "target"):
        x, y = (fields[f"{part}_{axis}"] for axis in "xy")
        pairs = zip(each(x), each(y), strict=True) if isinstance(x, list) else [(x, y)]
        for of_x, of_y in pairs:
            check_lengths(f"{part}_x", of_x, f"{part}_y", of_y, 0 if isinstance(x, list) else 1)
    return episode


def is_samples(values: Any, axes: int) -> bool:
    """Whether it is a tensor of so many axes or more, or a dict of some, of one less or more."""
    if not isinstance(values, dict):
        return isinstance(values, Tensor) and values.dim() >= axes
    tensors = [v for v in values.values() if isinstance(v, Tensor) and v.dim() >= axes - 1]
    return bool(values) and len(tensors) == len(values)


def check_lengths(name_x: str, x: Any, name_y: str, y: Any, axis: int) -> None:
    """What is in dicts need not be of samples alone, and the network knows what it is."""
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape[axis] != y.shape[axis]:
        raise UserError(
            f"{name_x} has {x.shape[axis]} samples a task and {name_y} {y.shape[axis]}: give each "
            "sample its own y"
        )
    if isinstance(y, Tensor) and not y.shape[axis]:
        raise UserError(f"{name_y} has no samples: give a task one or more")


def check_images(model: Any, like: Tensor, **fields: Values) -> None:
    """Of one of the engine's networks: images [T, N, C, H, W] of the dtype and device of `like`,
    and labels [T, N] by names that end with y. Raises UserError when they do not fit it.
    """
    side, device = model.image_size, like.device
    for name, given in fields.items():
        if name.endswith("y"):
            fits = isinstance(given, Tensor) and given.dim() == 2 and given.dtype == torch.int64
            wanted = f"int64 [tasks, samples] of 0 to {model.ways - 1}"
        else:
            shape = [model.in_channels, side, side]
            fits = isinstance(given, Tensor) and list(given.shape[2:]) == shape
            fits = fits and given.dtype == like.dtype
            wanted = f"{kind(like)} [tasks, samples, {', '.join(map(str, shape))}]"
        if not (fits and given.device == device and given.shape[1]):
            raise UserError(
                f"{name} is {shown(given)}: a {type(model).__name__} takes {wanted}, as it was made"
            )
        if name.endswith("y") and device.type == "cpu":  # a GPU would be waited for
            low, high = given.min().item(), given.max().item()
            if low < 0 or high >= model.ways:
                raise UserError(
                    f"{name} has labels from {low} to {high}: the network has {model.ways} "
                    f"outputs; give labels from 0 to {model.ways - 1}, or a network of more ways"
                )
