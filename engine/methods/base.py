"""What a method says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine.errors import UserError, flag

if TYPE_CHECKING:  # the command line answers a wrong flag before torch is there
    from torch import Generator, Tensor

    from engine.config import Config
    from engine.episodes import Values
    from engine.models.interface import Inputs, Model
    from engine.unroll import MetaGradient

# Every trick of MAML++ at its neutral value; no annealing of the outer rate is a preset's to say.
NEUTRAL = {
    "msl_epochs": 0,
    "first_order_epochs": 0,
    "norm_weights": "shared",
    "norm_stats": "shared",
    "rates": "fixed",
}


# Without an inner loop: one "step", which is the classifier in closed form.
EMBEDDING = NEUTRAL | {
    "network": "conv4",
    "adapt": "all",
    "unroll": "adjoint",
    "steps": 1,
    "eval_steps": 0,
}
# The same of a network that is the method's own.
OWN = EMBEDDING | {"network": "own", "norm_gains": "learned"}
# What has no effect where there are no inner steps, and in such a network without batch norm.
STEPS = ("inner_rate",)
NORM = (
    "negative_slope", "norm_eps", "norm_momentum", "norm_statistics", "train_norm_statistics",
    "protocol",
)  # fmt: skip


class Method(NamedTuple):
    """A set of choices among the settings, on top of those of a preset.

    A value may be a function of the other settings.
    """

    name: str
    fixed: Mapping[str, Any]  # what makes it this method
    usual: Mapping[str, Any]  # what else it takes, unless told otherwise
    presets: tuple[str, ...] = ("maml++", "maml")  # the protocols that it goes with
    only: tuple[str, ...] = ()  # settings that mean nothing to any other
    # Settings that mean nothing to it.
    without: tuple[str, ...] | Callable[[Mapping[str, Any]], tuple[str, ...]] = ()
    # What is wrong with its settings together, and what to do.
    wrong: Callable[[Mapping[str, Any]], str | None] | None = None
    # The classifier: "learned", a part of θ; "begun" by the support set, then adapted; "made" of it
    head: str = "learned"
    by_image: bool = False  # and that has an output an image of it, not a class
    loop: Callable[[Config, Model], Loop] | None = None  # what runs it, if others than the unroll
    # The network, if another than the setting of this name says; its loop is then `Remembering`.
    model: Callable[[Config], Model] | None = None
    # Numbers beside the network's and how they begin, the first by how many: see `beside`.
    own: Callable[[Config, Model], int] | None = None
    begin: Callable[[Config, Model, Generator], Tensor] | None = None  # None: as zeros
    averaged: bool = False  # they are no parameters: of what tasks leave, the mean of an iteration
    by_rate: bool = False  # its steps have the setting's inner rate, whatever `Params.rates` are

    @property
    def any_ways(self) -> bool:
        """Whether it takes tasks of any number of classes, whatever it was trained on."""
        return self.head != "learned"

    @property
    def closed_form(self) -> bool:
        """Whether its classifier is all that a task changes, and is made of the support set."""
        return self.head == "made"

    @property
    def remembers(self) -> bool:
        """Whether it answers by what it remembers of a support set, with a network of its own."""
        return self.model is not None

    @property
    def has_steps(self) -> bool:
        """Whether it has an inner loop."""
        return not (self.closed_form or self.remembers)

    def settings(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """All that it says, given the other settings."""
        return {n: _value(v, others) for n, v in {**self.usual, **self.fixed}.items()}

    def ignored(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of those that have no effect."""
        return _value(self.without, settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises UserError when these are not of this method."""
        if (preset := settings["preset"]) not in self.presets:
            raise UserError(
                f"--preset is {preset!r} with --method {self.name}: it goes with "
                f"{' and '.join(self.presets)}; give one of these, or another --method"
            )
        for name, value in self.fixed.items():
            if (has := settings[name]) != (wants := _value(value, settings)):
                raise UserError(
                    f"{flag(name)} is {has} with --method {self.name}, which is {flag(name)} "
                    f"{wants}: leave it out, or give another --method"
                )
        if self.wrong and (why := self.wrong(settings)):
            raise UserError(why)


def _value(value: Any | Callable, others: Mapping[str, Any]) -> Any:
    return value(others) if callable(value) else value


class Loop(Protocol):
    """What `engine.unroll` is of methods that are choices of its settings. One whose tasks are best
    computed each by itself has `alone = True`.
    """

    def adjoint(
        self, model: Model, params, episode, loss_weights, second_order: bool, running=None
    ) -> MetaGradient:
        """The outer loss of each task and its gradient: see `engine.unroll.adjoint`."""

    def adapt_and_predict(
        self, model: Model, params, running, episode, *, steps: int, **options
    ) -> Values:
        """Logits of the target sets: see `engine.unroll.adapt_and_predict`."""


class Remembering(Loop, Protocol):
    """A loop that says what it remembers of a support set, and answers by that alone."""

    def learn(self, model: Model, params, x: Tensor, labels: Tensor, given=None) -> tuple:
        """What it remembers of the support sets [T, M], and their batch statistics [T, S]; `given`
        are statistics [S] or [T, S] to normalise by."""

    def answer(
        self,
        model: Model,
        images: Inputs,
        theta: Tensor,  # [T, P]
        remembered: Tensor,  # [T, M]
        ways: int,
        row: Tensor,
        given=None,
    ) -> Tensor:  # logits [T, N, ways]
        """Of images that the model prepared, by θ and what it remembers of so many classes."""

    def remembered_sizes(self, model: Model) -> tuple[int, int]:
        """Numbers that it remembers of a set, and of each image or class of it."""


class Adapted(Protocol):
    """After a step."""

    index: int
    row: Tensor  # [G], or of each task its own [T, G]
    adapted: Tensor  # [T, P]
