"""Twice-differentiable ops for meta-learning, batched over tasks. Importable alone.

Shapes: `T` tasks, `N` images of a task, `C H W` channels and image size, `F` filters, `R S` kernel
size, `K` inner steps, `L` segments (parameter tensors), `P` parameters, `D` features, `ways`
classes of a task. The leading axis is the task; `T = 1` is ordinary training. Images are [T, N, C,
H, W], fastest when NHWC in memory. `kernels.nn` has modules for loops of ordinary torch.
"""

from kernels import nn, reference
from kernels.conv import task_conv2d
from kernels.dispatch import (
    PRECISIONS,
    BackendError,
    backend,
    fastest_precision,
    gather,
    passes,
    refusal,
    rule,
    task_block,
    use,
)
from kernels.head import linear_cross_entropy
from kernels.net import Net
from kernels.norm_act import per_step_batch_norm
from kernels.threads import only_kernels, threads
from kernels.update import elementwise_update, lslr_update

__all__ = [
    "PRECISIONS",
    "BackendError",
    "Net",
    "backend",
    "fastest_precision",
    "gather",
    "linear_cross_entropy",
    "lslr_update",
    "elementwise_update",
    "nn",
    "only_kernels",
    "passes",
    "reference",
    "refusal",
    "rule",
    "per_step_batch_norm",
    "task_block",
    "task_conv2d",
    "threads",
    "use",
]
