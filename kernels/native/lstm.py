"""The update rule of the meta-learner LSTM; signatures as in `kernels.plain.lstm`, which has the
formulas. The sums behind the gradients of its numbers are of a task alone and in one order,
whatever the number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import checks
from kernels.native.tensors import expect, ops
from kernels.plain.layout import vectors, whole
from kernels.plain.lstm import MEMORY, SIZES
from kernels.tensors import address, matrix
from kernels.threads import threads


def fwd(
    own: Tensor,  # [R] the rule's numbers
    loss: Tensor,  # [T]
    gradient: Tensor,  # [T, N]
    c: Tensor,  # [T, N]
    memory: Tensor | None,  # as the step before gave it; None: this is the first one
    spent: bool = False,  # the new memory may take the place of the old one
) -> tuple[Tensor, Tensor]:  # c and the memory after it
    tasks, count = _rows(c=c)
    block = ops(c.dtype).lstm_block
    shape = tasks, -(-count // block), sum(MEMORY), block
    operands = {"own": (own, (sum(SIZES),)), "loss": (loss, (tasks,)), "memory": (memory, shape)}
    expect("lstm", c, ("memory",), gradient=(gradient, (tasks, count)), **operands)
    own, loss, gradient, c = whole(own), whole(loss), vectors(gradient), vectors(c)
    memory = whole(memory)
    new_c = torch.empty((tasks, count), dtype=c.dtype, device=c.device)
    reused = spent and memory is not None
    new_memory = memory if reused else torch.empty(shape, dtype=c.dtype, device=c.device)
    matrices = map(matrix, (gradient, c, memory, new_c, new_memory))
    ops(c.dtype).lstm_fwd(tasks, count, threads(), address(own), address(loss), *matrices)
    return new_c, new_memory


def bwd(
    own: Tensor,  # [R]
    losses: Sequence[Tensor],  # K of [T]
    gradients: Sequence[Tensor],  # K of [T, N]
    start: Tensor,  # [N] c before the first step
    carry: Tensor,  # [T, N] gradient of c after the last one
) -> tuple[Tensor, Tensor]:  # gradients of start [T, N], and of the rule's numbers [T, R]
    rows = tasks, count = _rows(carry=carry)
    if not 0 < len(losses) == len(gradients):
        raise ValueError(
            f"native lstm: losses and gradients must be of as many steps, of one at least, got "
            f"{len(losses)} and {len(gradients)}"
        )
    expect("lstm", carry, own=(own, (sum(SIZES),)), start=(start, (count,)))
    for loss, gradient in zip(losses, gradients, strict=True):
        expect("lstm", carry, loss=(loss, (tasks,)), gradient=(gradient, rows))
    own, start, carry = whole(own), whole(start), vectors(carry)
    of_steps, loss = [*map(vectors, gradients)], torch.stack([*losses])
    d_start, d_own = (
        torch.empty((tasks, width), dtype=carry.dtype, device=carry.device)
        for width in (count, sum(SIZES))
    )
    ops(carry.dtype).lstm_bwd(
        tasks,
        count,
        threads(),
        address(own),
        address(loss),
        [*map(matrix, of_steps)],
        address(start),
        *map(matrix, (carry, d_start, d_own)),
    )
    return d_start, d_own


def _rows(**given: Tensor) -> tuple[int, int]:
    """Tasks and coordinates."""
    checks.tensors("native lstm", **given)
    ((name, rows),) = given.items()
    if rows.dim() != 2 or 0 in rows.shape:
        raise ValueError(
            f"native lstm: {name} must be [T, N] of a task and a coordinate at least, got "
            f"{list(rows.shape)}"
        )
    return tuple(rows.shape)
