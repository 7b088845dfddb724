"""The loop as one CUDA graph: separate cuDNN convolutions for every task, autograd's double
backward, clamp and Adam, captured once and replayed.

What is left between it and the engine is how the work is divided into kernels: the host, which
holds the loop back on a GPU, has no part in it any more. cuDNN measures its algorithms before the
capture.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.baselines.loop import Loop
from bench.graphs import captured


class CudnnGraph(Loop):
    """The first iteration captures, for batches of its size; later ones are copied into it."""

    replay: Callable[[], object] | None = None

    def step(self, *batch: Tensor) -> Tensor:
        if self.replay is None:
            self._capture(batch)
        for own, new in zip(self.batch, batch, strict=True):
            if own is not new:
                own.copy_(new)
        self.replay()
        return self.loss_value

    def _capture(self, batch: tuple[Tensor, ...]) -> None:
        """Leaves parameters, optimiser and statistics as they were before the warm-ups."""
        self.batch = batch
        group = self.optimiser.param_groups[0]
        learned = group["params"]
        group["capturable"] = learned[0].is_cuda
        kept = [*learned, *self.stats.values()]
        before = [t.detach().clone() for t in kept]
        measured, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            self.replay = captured(self._work)
        finally:
            torch.backends.cudnn.benchmark = measured
        moments = [m for state in self.optimiser.state.values() for m in state.values()]
        with torch.no_grad():
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)
            for moment in moments:
                moment.zero_()

    def _work(self) -> None:
        self.loss_value = super().step(*self.batch)
