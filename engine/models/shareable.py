"""Whether processes may share the tasks of a network of one's own without a change in any bit."""

from __future__ import annotations

from engine.episodes import Episode
from engine.errors import UserError
from engine.models.module import Module


def bound_to_threads(model: Module, episode: Episode) -> bool:
    """Whether several threads compute one task, so that its bits depend on their number."""
    with model.during(episode, True):
        alone = model.parallel(episode) and model.task_block(episode, True) is not None
        alone = alone and not model.random
        return next(model.module.parameters()).device.type == "cpu" and not alone


def require_shareable(model: Module, episode: Episode, own: int, threads: int) -> None:
    """Raises UserError where the bits of tasks of which each rank has `own` would depend on the
    number of ranks: `vmap` takes others together, or other threads (0: not said) compute a task.
    """
    with model.during(episode, True):
        block = model.task_block(episode, True)
    if block is None or own % block:
        raise UserError(
            f"vectorize is {model.vectorize!r} with {own} tasks a rank: bits depend on which tasks "
            f"vmap takes together; give a number that divides {own}, or False, in every run that "
            "is to be the same"
        )
    if not threads and bound_to_threads(model, episode):
        why = "draws random numbers" if model.random else "is large"
        raise UserError(
            f"{type(model.module).__name__} {why}, so that all threads compute one task, and bits "
            "depend on their number: give threads, as threads=1, in every run that is to be the "
            "same"
        )
