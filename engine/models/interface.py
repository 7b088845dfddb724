"""What the unroll needs of a network, and what it gives it: the seam between both.

A model is a `Model`: `Backbone` runs fused passes, `Module` wraps any `nn.Module` with any loss.
The unroll knows neither. Parameters lie in flat buffers; the leading axis is the task.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor

from engine.episodes import Episode, Values


class Params(NamedTuple):
    """Everything that the outer loop learns. One row of `norm` and `rates` a step; a single row of
    `norm` is shared.
    """

    theta: Tensor  # [P] initial values of the adapted parameters, one flat buffer
    norm: Tensor  # [K or 1, G] of those that the inner loop leaves: batch norm's (BNWB), and after
    # them what a method has of its own (`engine.methods.beside`)
    rates: Tensor  # [K, L] inner learning rates a tensor (LSLR), or [K or 1, P] a number


class Moments(NamedTuple):
    """Batch statistics of every normalisation of a network, S channels in all."""

    mean: Tensor  # [..., S]
    var: Tensor  # [..., S] as `Model.bessel` makes it unbiased

    def first(self) -> Moments:  # [S]
        """The first row, which is all of them where steps share one."""
        return Moments(*(m[0] for m in self))


class Kept(Protocol):
    """What a pass keeps."""

    def tangent(
        self,
        direction: Tensor,  # [T, P]
    ) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
        """Derivative of (gradient, norm_gradient) along a direction of theta: the Hessian-vector
        product, and by symmetry the gradient of ⟨gradient, direction⟩ in gains and biases.
        """


class Pass(NamedTuple):
    """A forward and backward pass over one set of inputs a task."""

    loss: Tensor  # [T]
    logits: Values  # [T, N, ways], or whatever the network answers
    gradient: Tensor  # [T, P]
    norm_gradient: Tensor  # [T, G]
    moments: Moments  # [T, S] each
    kept: Kept | None


class KeptFeatures(Protocol):
    """What a pass to the features keeps."""

    def pullback(
        self,
        d_features: Tensor,  # [T, N, D]
    ) -> tuple[Tensor, Tensor]:  # [T, P], [T, G]
        """The gradient of ⟨d_features, features⟩ in theta, of the classifier 0, and in the row."""


class Embedding(NamedTuple):
    """A forward pass that stops at the features, which the classifier would see."""

    features: Tensor  # [T, N, D]
    moments: Moments  # [T, S] each
    kept: KeptFeatures | None


class Inputs(Protocol):
    """A set of inputs a task, ready for passes. `statistics` normalise instead of the batch's.

    Those of a `Backbone` have `embed` besides: as `predict`, to an `Embedding`, with `keep` for its
    pullback.
    """

    def predict(
        self,
        theta: Tensor,  # [T, P]
        row: Tensor,  # [G] gains and biases of the step
        statistics: Moments | None = None,  # [S], or [T, S] of each task
    ) -> tuple[Values, Moments]:  # logits [T, N, ways], the batch's own moments
        """A forward pass alone; its variances are biased, as they normalise."""

    def loss_and_gradient(
        self,
        theta: Tensor,  # [T, P]
        row: Tensor,  # [G]
        labels: Values,  # [T, N]
        statistics: Moments | None = None,  # [S], or [T, S] of each task
        keep: bool = False,
    ) -> Pass:
        """The loss of each task and its gradient; `keep` for the tangent."""


class Model(Protocol):
    sizes: tuple[int, ...]  # of the L adapted tensors, in the order of theta
    random: bool  # whether a pass draws random numbers of torch's own generators
    spreads: bool  # whether a task has the same bits on any number of cores

    def prepare(self, x: Values, passes: int) -> Inputs:
        """Inputs that `passes` passes will read, as these read them best."""

    def bessel(self, x: Values, like: Tensor) -> Tensor:
        """[S] by what the variances of a pass over `x` are to be multiplied to be unbiased."""

    def loss(
        self, theta: Tensor, row: Tensor, x: Values, labels: Values, statistics, ops
    ) -> tuple[Tensor, Values, Moments]:  # loss [T], logits, moments
        """The loss of each task for autograd to differentiate, by `ops` in place of `kernels`."""

    def parallel(self, episode: Episode) -> bool:
        """Whether its tasks should run at once, in a thread each, where they may."""

    def tied(self, gradient: Params) -> Params:
        """With the same gradient in all rows of what is one parameter in each of them."""

    def task_block(self, episode: Episode, keeps: bool) -> int | None:
        """Tasks worth giving to one call, `None`: all; `keeps` if passes are kept for tangents."""

    def during(self, episode: Episode, keeps: bool) -> AbstractContextManager[None]:
        """Entered around all tasks of an iteration, for what it needs of the process, not of a
        thread: results depend neither on the number of threads nor on their timing.
        """
